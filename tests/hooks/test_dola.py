"""DoLa against a float64 oracle that reads `hidden_states`, and in every way of generating."""

from typing import NamedTuple

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.dola import DoLa, bucket
from tests.doubled import Doubled
from tests.hooks.full_attention import extended
from tests.oracle_setup import generate, sink_model, twin
from tests.tiny import tiny_inputs, tiny_model, tiny_rows

FAMILIES = ["llava", "llava_next", "qwen2_5_vl"]
BATCH = [(1,), (0,), (2,)]
families = pytest.mark.parametrize("name", FAMILIES)


CLOSE = 1e-4
"""Words whose probability is within this share of the threshold may fall on either side of it in fp32."""


class Truth(NamedTuple):
    """Logits `(positions, vocabulary)`, minus infinity at words left out; and the words that rounding may decide."""

    logits: torch.Tensor
    is_close: torch.Tensor


def truth(model, row, layers, beta=0.1, mature=None, code=False, norm=False):
    """Contrast by hand: one row, every position, plain loops over the candidates."""
    with torch.no_grad(), Doubled():
        out = model(**row, output_hidden_states=True)
        final = model.model.language_model.norm if norm else (lambda x: x)

        def early(j):
            return model.lm_head(final(out.hidden_states[j]))[0].softmax(-1)

        late = out.logits[0].softmax(-1) if mature is None else early(mature)
        result = torch.full_like(late, -torch.inf)
        for place in range(len(late)):
            q, best = late[place], None
            for j in layers:
                p = early(j)[place]
                m = (p + q) / 2
                if code:
                    apart = ((m * (m / p).log()).mean() + (m * (m / q).log()).mean()) / 2
                else:
                    apart = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
                if best is None or apart > best[0]:
                    best = (apart, p)
            keep = q >= beta * q.max()
            result[place][keep] = (q / best[1]).log()[keep]
        floor = beta * late.amax(-1, keepdim=True)
        return Truth(result, (late - floor).abs() < CLOSE * floor)


def check(got, want, start=0, error=1e-4):
    """Compares with the last positions of a truth, from `start` on."""
    logits, is_close = want.logits[start:], want.is_close[start:]
    is_close = is_close & (got.dtype != torch.float64)
    finite = torch.isfinite(logits)
    assert torch.equal(torch.isfinite(got)[~is_close], finite[~is_close])
    assert bool((~finite & ~is_close).any())
    both = finite & torch.isfinite(got)
    assert (got[both].double() - logits[both]).abs().max() < error * logits[both].abs().max()


@families
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (DoLa(), {"layers": (0,)}),
        (DoLa(layers=(0, 2, 3)), {"layers": (0, 2, 3)}),
        (DoLa(layers="[1,2]", beta=0.3, divergence="code"), {"layers": (1, 2), "beta": 0.3, "code": True}),
        (DoLa(preset="code", layers=(1, 3)), {"layers": (1, 3), "code": True}),
        (DoLa(layers=(0, 1), mature=3), {"layers": (0, 1), "mature": 3}),
        (DoLa(layers=(0, 2), final_norm=True), {"layers": (0, 2), "norm": True}),
    ],
    ids=["low", "three", "code", "preset code", "mature", "norm"],
)
def test_against_the_definition(name, method, kind):
    model, double = sink_model(name), twin(name)
    if method == DoLa():
        kind = {"layers": (0,)}
        assert bucket("low", 5) == (0,)
    for row in tiny_rows(name, model, BATCH):
        want = truth(double, row, **kind)
        with torch.no_grad(), Doubled(), la.wrap(double, method):
            check(double(**row).logits[0], want, error=1e-9)
        with torch.no_grad(), la.wrap(model, method):
            check(model(**row).logits[0], want)


@families
def test_a_single_candidate_is_static_dola(name):
    model = sink_model(name)
    row = tiny_rows(name, model, BATCH)[2]
    results = []
    with torch.no_grad():
        for kind in ("jsd", "code"):
            with la.wrap(model, DoLa(layers=2, divergence=kind)):
                results.append(model(**row).logits[0])
    assert torch.equal(*results)
    check(results[0], truth(twin(name), row, (2,)))


@families
def test_no_candidate_keeps_every_bit(name):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare = generate(model, inputs, 4)
        with la.wrap(model, DoLa(layers=())):
            same = generate(model, inputs, 4)
        with la.wrap(model, DoLa()):
            other = generate(model, inputs, 4)
    assert torch.equal(bare[1], same[1])
    assert not torch.equal(bare[1], other[1])


@families
def test_rows_of_a_batch(name):
    """Each row chooses its own layer, so a batch with padding gives what the rows give alone."""
    model = sink_model(name)
    method = DoLa(layers=(0, 1, 2, 3))
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with torch.no_grad(), la.wrap(model, method):
        ids, logits = generate(model, inputs, 5)
        for index, row in enumerate(rows):
            single_ids, single = generate(model, row, 5)
            assert torch.equal(single_ids[0], ids[index])
            finite = torch.isfinite(single[0])
            assert torch.equal(finite, torch.isfinite(logits[index]))
            assert (single[0][finite] - logits[index][finite]).abs().max() < 1e-4


@families
def test_decoding_equals_a_full_forward(name):
    model = sink_model(name)
    row = tiny_rows(name, model, BATCH)[0]
    with torch.no_grad(), la.wrap(model, DoLa(layers=(0, 2))):
        ids, logits = generate(model, row, 5)
    check(logits[0], truth(twin(name), extended(row, ids[:, :-1]), (0, 2)), start=-5)


@families
def test_beams_add_up(name):
    """The score of a beam is the sum of the log probabilities that DoLa gives its tokens."""
    model = sink_model(name)
    row = tiny_rows(name, model, BATCH)[0]
    options = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False, "length_penalty": 0.0}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    with torch.no_grad(), la.wrap(model, DoLa(layers=(0, 2), beta=0.01)):
        out = model.generate(**row, **options)
    ids = out.sequences[:, row["input_ids"].shape[1] :]
    steps = truth(twin(name), extended(row, ids[:, :-1]), (0, 2), beta=0.01)
    steps = steps.logits[-4:].log_softmax(-1)
    want = sum(float(steps[place, token]) for place, token in enumerate(ids[0].tolist()))
    assert abs(want - float(out.sequences_scores[0])) < 1e-3


def test_state_and_errors_leave_nothing_behind():
    model = sink_model("llava")
    rows = tiny_rows("llava", model, BATCH)
    with torch.no_grad():
        bare = model(**rows[2]).logits
        with la.wrap(model, DoLa()):
            alone = model(**rows[2]).logits
        with la.wrap(model, DoLa()) as lvlm:
            model(**rows[0])
            assert torch.equal(model(**rows[2]).logits, alone)
            report = lvlm.report().rows[0]
        assert report[0]["layer"] == 0
        assert report[0]["chosen"] == 1

        class Breaks(la.Intervention):
            def observe(self, layer, hidden):
                if layer.index == 3:
                    raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"), la.wrap(model, DoLa(), Breaks()):
            model(**rows[0])
        assert torch.equal(model(**rows[2]).logits, bare)


def test_buckets_of_the_paper():
    assert bucket("low", 32) == tuple(range(0, 16, 2))
    assert bucket("high", 32) == tuple(range(16, 32, 2))
    assert bucket("low", 48) == tuple(range(0, 20, 2))
    assert bucket("high", 48) == tuple(range(28, 48, 2))
    assert bucket("low", 32, is_tied=True) == tuple(range(2, 16, 2))
    assert bucket("low", 2, is_tied=True) == (1,)
    assert all(bucket(name, count) for name in ("low", "high") for count in range(1, 5))


def test_tied_embeddings_are_no_candidate():
    model = tiny_model("llava", layers=8)
    with la.wrap(model, DoLa()) as lvlm:
        assert lvlm.interventions[0].layers == (0, 2)
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    with la.wrap(model, DoLa()) as lvlm:
        assert lvlm.interventions[0].layers == (2,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": 0}, "above 0"),
        ({"beta": 2}, "at most 1"),
        ({"divergence": "js"}, "jsd"),
        ({"layers": None}, "low"),
        ({"mature": -3}, "mature"),
        ({"layers": "lo"}, "Did you mean 'low'"),
    ],
)
def test_bad_parameters(options, words):
    with pytest.raises(la.LvlmAttnError, match=words) as caught:
        DoLa(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [DoLa(layers=(3,), mature=3), DoLa(layers=9), DoLa(mature=7)])
def test_bad_fits_install_nothing(method):
    model = sink_model("llava")
    with pytest.raises(la.LvlmAttnError), la.wrap(model, method):
        pass
    assert not model._forward_hooks


def test_extreme_logits_stay_defined():
    from lvlm_attn.hooks.dola import contrast

    late = torch.tensor([[0.0, -1e4, 5.0], [-torch.inf, 1.0, 2.0]])
    early = torch.tensor([[[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]])
    for kind in ("jsd", "code"):
        logits, _ = contrast(late, early, 0.1, kind)
        assert not torch.isnan(logits).any()
        assert torch.isfinite(logits).any(-1).all()


def test_a_loss_of_logits_that_are_not_those_returned_is_refused():
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    with (
        torch.no_grad(),
        la.wrap(model, DoLa()),
        pytest.raises(la.UnsupportedError, match="leave labels out"),
    ):
        model(**inputs, labels=inputs["input_ids"])
