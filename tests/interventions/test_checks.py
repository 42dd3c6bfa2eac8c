"""Bounds: no parameter of any method takes what could never act, or what would fill the model with infinities."""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch

import lvlm_attn as la
from lvlm_attn.interventions.base import parameters
from tests.oracle_setup import sink_model
from tests.tiny import tiny_inputs

FIELDS = [(kind, item.name) for kind in la.methods().values() for item in parameters(kind) if item.init]
fields = pytest.mark.parametrize(("kind", "key"), FIELDS, ids=lambda one: getattr(one, "__name__", one))


class Odd:
    def __repr__(self):
        raise RuntimeError("no text of mine")


def answer(kind, options):
    """The intervention, or the one sentence that refuses it."""
    try:
        return kind(**options)
    except la.LvlmAttnError as error:
        return str(error)


@fields
def test_no_parameter_takes_what_is_not_finite_or_beyond_all_bounds(kind, key):
    for value in (math.nan, math.inf, -math.inf, 10**400, -(10**400), 1e300, 1j):
        said = answer(kind, {key: value})
        assert isinstance(said, str), value
        assert key in said
        assert "\n" not in said


@fields
def test_odd_values_are_taken_or_refused_with_one_sentence(kind, key):
    odd = ["", "x\ny", [], {}, (0.5,), object(), Odd(), np.zeros((2, 2)), b"a", -1, True, Fraction(1, 3)]
    for value in odd:
        said = answer(kind, {key: value})
        assert isinstance(said, kind) or (key in said and "\n" not in said), value


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (la.VAR, {"rho": 5}),
        (la.VAR, {"sink_dims": ()}),
        (la.VHR, {"alpha": 1e999}),
        (la.VHR, {"alpha": 1e30}),
        (la.VMTC, {"keep": 577}),
        (la.MMA, {"marker": (-1,)}),
        (la.VCD, {"noise_step": 1000}),
        (la.PAI, {"gamma": 1e9}),
    ],
    ids=str,
)
def test_values_that_can_never_act_are_refused(kind, options):
    (key,) = options
    with pytest.raises(la.LvlmAttnError, match=key):
        kind(**options)


def test_a_threshold_no_sink_can_reach_is_refused_by_the_model_it_cannot_be_reached_in():
    model = sink_model("llava")
    for tau in (20, 20.0, 6):
        with pytest.raises(la.LvlmAttnError, match=r"tau.*never"), la.wrap(model, la.VAR(tau=tau)):
            pass
    with la.wrap(model, la.VAR()) as lvlm:
        assert lvlm.interventions[0].tau == pytest.approx(0.3125 * 32**0.5)


def test_numbers_of_numpy_are_numbers():
    made = la.VAR(rho=np.float32(0.5), sink_dims=np.array([3, 1]), layers=np.array([2, 3]))
    assert made == la.VAR(rho=0.5, sink_dims=(1, 3), layers=(2, 3))
    assert la.Hollow(window=np.int64(7)) == la.Hollow(window=7)
    assert la.parse(str(made)) == (made,)


def test_the_largest_window_takes_no_memory():
    model = sink_model("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    with torch.no_grad():
        bare = model(**inputs).logits
        with la.wrap(model, la.Hollow(window=2**31 - 1)):
            assert torch.equal(model(**inputs).logits, bare)


def test_crosslmm_without_weights_says_it_is_the_bare_model():
    model = sink_model("llava")
    method = la.CrossLMM()
    with pytest.warns(UserWarning, match="bare model"):
        lvlm = la.wrap(model, method).__enter__()
    try:
        with torch.no_grad():
            model(**tiny_inputs("llava", model, [(1,)]))
        assert "bare model" in str(lvlm.report().rows[0][0])
    finally:
        lvlm.__exit__(None, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (la.CrossLMM.reuse(w=0.5), la.CrossLMM(layers=(1, 2)), la.CrossLMM(source="S1")):
            with la.wrap(model, other):
                pass
