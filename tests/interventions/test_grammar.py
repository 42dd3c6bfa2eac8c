"""Interventions as text, there and back."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lvlm_attn as la

UNIT = st.floats(0, 1).map(lambda x: round(x, 4))
LISTS = st.one_of(st.none(), st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True).map(sorted))
VARS = st.builds(
    la.VAR,
    rho=UNIT,
    removed_fraction=UNIT,
    tau=st.floats(0.5, 60),
    mass_floor=UNIT,
    sink_dims=LISTS,
    layers=LISTS,
    require_visual_sink=st.booleans(),
)
VHRS = st.builds(
    la.VHR,
    alpha=st.floats(1e-3, 1e6),
    layers=LISTS,
    outlier_filter=st.booleans(),
    std_guard=st.booleans(),
    vhd_power=st.sampled_from([1, 2]),
)


@given(VARS)
def test_var_round_trip(method):
    assert la.parse(str(method)) == (method,)
    assert str(la.parse(str(method))[0]) == str(method)


@given(VHRS)
def test_vhr_round_trip(method):
    assert la.parse(str(method)) == (method,)


@given(VARS, VHRS)
def test_two_methods(a, b):
    assert la.parse(f"{a}+{b}") == (a, b)


@given(st.text(alphabet="varh:=,.+-[]0129e _", max_size=30))
def test_any_text_is_read_or_refused(text):
    with suppress(la.LvlmAttnError):
        methods = la.parse(text)
        assert la.parse("+".join(map(str, methods))) == methods


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", ()),
        ("none", ()),
        ("var", (la.VAR(),)),
        (" VAR : rho = 0.8 ", (la.VAR(rho=0.8),)),
        ("var:rho=.8,tau=1e+1+vhr:alpha=3", (la.VAR(rho=0.8, tau=10.0), la.VHR(alpha=3.0))),
        ("vhr:layers=[1,18..20]", (la.VHR(layers=(1, 18, 19, 20)),)),
        ("vhr:outlier_filter=false,std_guard=False", (la.VHR(outlier_filter=False, std_guard=False),)),
        ("var:sink_dims=[1415,2533]", (la.VAR(sink_dims=(1415, 2533)),)),
        ("var:sink_dims=none", (la.VAR(),)),
    ],
)
def test_examples(text, want):
    got = la.parse(text)
    assert tuple(map(str, got)) == tuple(map(str, want))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vra", ["'vra'", "'var'"]),
        ("vhrr:alpha=2", ["'vhrr'", "'vhr'"]),
        ("var:rh=0.5", ["'rh'", "'rho'"]),
        ("vhr:alhpa=2", ["'alhpa'", "'alpha'"]),
        ("var:rho", ["rho", "key=value"]),
        ("var:rho=0.5,rho=0.6", ["rho", "twice"]),
        ("var:rho=much", ["rho", "much"]),
        ("var:rho=-0.5", ["rho", "-0.5"]),
        ("vhr:layers=[1,2", ["["]),
        ("vhr:alpha=true", ["alpha"]),
        ("var:sink_dims=[a]", ["sink_dims"]),
        ("var+", []),
        ("var:preset=papr", ["papr", "paper"]),
    ],
)
def test_mistakes_are_named(text, words):
    with pytest.raises(la.LvlmAttnError) as caught:
        la.parse(text)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_equal_presets_are_equal_objects():
    assert la.parse("var:preset=paper") == (la.VAR(preset="paper"),)
    assert la.VAR(preset="paper").removed_fraction == 0.6
    assert la.VAR(preset="code").removed_fraction == 0.4
    assert la.VAR(preset="paper", removed_fraction=0.3).removed_fraction == 0.3
    for name in ("paper", "code"):
        assert la.parse(str(la.VAR(preset=name))) == (la.VAR(preset=name),)


def test_methods_are_listed():
    assert {"var", "vhr"} <= set(la.methods())
