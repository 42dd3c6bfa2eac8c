"""Interventions as text, there and back."""

import time
from contextlib import suppress
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lvlm_attn as la
from lvlm_attn.interventions.grammar import parse_interventions
from tests.fuzzing import drawn, value_or_sentence

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
    alpha=st.floats(1e-3, 100),
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


@drawn(200)
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


class Halve(la.Intervention):
    """Its author forgot the decorator."""

    name: ClassVar[str] = "halve"
    factor: float = 0.5


class MoreVAR(la.VAR):
    """A dataclass above it makes it none."""

    factor: float = 0.5


class Doubles(la.Intervention):
    """Takes parameters in its own way."""

    factor: float

    def __init__(self, factor: float) -> None:
        object.__setattr__(self, "factor", factor)


@pytest.mark.parametrize(
    ("kind", "written", "made"),
    [
        (
            Halve,
            r"halve has no parameter.*Halve is no dataclass.*factor is a param",
            r"Halve has no parameter named 'factor'. Halve is no dataclass",
        ),
        (
            MoreVAR,
            r"MoreVAR is no dataclass; put @dataclass\(frozen=True\) above",
            r"MoreVAR has no parameter named 'factor'. MoreVAR is no dataclass",
        ),
    ],
)
def test_annotations_of_a_class_that_is_no_dataclass_are_named(kind, written, made):
    with pytest.raises(la.LvlmAttnError, match=written):
        parse_interventions("halve:factor=2", {"halve": kind})
    with pytest.raises(la.LvlmAttnError, match=made):
        kind(factor=2)


def test_other_ways_to_take_parameters_stay():
    assert Doubles(factor=2).factor == 2
    with pytest.raises(la.LvlmAttnError, match=r"It takes rho"):
        la.VAR(factor=2)


def test_equal_presets_are_equal_objects():
    assert la.parse("var:preset=paper") == (la.VAR(preset="paper"),)
    assert la.VAR(preset="paper").removed_fraction == 0.6
    assert la.VAR(preset="code").removed_fraction == 0.4
    assert la.VAR(preset="paper", removed_fraction=0.3).removed_fraction == 0.3
    for name in ("paper", "code"):
        assert la.parse(str(la.VAR(preset=name))) == (la.VAR(preset=name),)


@pytest.mark.parametrize(
    "text",
    [
        "mma:marker=0.5",
        "var:sink_dims=0.5",
        "var:sink_dims=[[1]]",
        "var:sink_dims=[1.5,2]",
        "var:sink_dims=" + "1" * 5000,
        "vhr:layers=" + "1" * 5000,
        "vhr:layers=0..999999999",
        "vhr:layers=²",
        "vhr:layers=[]",
        "hollow:window=" + "9" * 5000,
        "cmai:layer=1e400",
        "vhr:alpha=1e999",
        "vhr:alpha=nan",
        "var:rho=" + "[" * 3000 + "]" * 3000,
        "[" * 3000,
        "var:" + "=" * 3000,
        "icd:prefix=" + '"' * 3001,
        "visual_self:mode=[a]",
        "vhr:alpha=2" + ",alpha=2" * 9000,
    ],
    ids=lambda text: text[:24],
)
def test_what_once_raised_something_else_is_one_sentence(text):
    began = time.process_time()
    with pytest.raises(la.LvlmAttnError) as caught:
        la.parse(text)
    assert time.process_time() - began < 1
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    "piece", ["var+", "a", "[", "]", "'", '"', "x,", "=", "1e+", "var:rho=1,", "var:a=[1]+", "\x1b"]
)
def test_long_text_takes_no_time(piece):
    for length in (60_000, 2_000_000):
        text = piece * (length // len(piece))
        began = time.process_time()
        with suppress(la.LvlmAttnError):
            la.parse(text)
        assert time.process_time() - began < 1


@pytest.mark.parametrize("value", [None, 5, b"var", ["var"]])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(la.LvlmAttnError, match="text"):
        la.parse(value)


PIECES = [
    "var",
    "vhr",
    "mma",
    "carve",
    ":",
    "=",
    ",",
    "+",
    "[",
    "]",
    "'",
    '"',
    "layers",
    "marker",
    "general",
    "rho",
]
PIECES += ["1e999", "0.5", "-1", "none", "true", "²", "\ud800", "\n", "18..31", "2:-1"]


@drawn(200)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=20).map("".join))
def test_text_of_any_kind_gives_a_value_or_one_sentence(text):
    found = value_or_sentence(la.parse, text)
    if not isinstance(found, la.LvlmAttnError):
        assert la.parse("+".join(map(str, found))) == found


WORDS = st.text(min_size=1, max_size=30).filter(lambda text: text.strip())
WRITTEN = st.one_of(
    st.builds(la.ICD, prefix=WORDS),
    st.builds(la.CARVE, general=WORDS, suffix=WORDS, preset=st.sampled_from(["auto", "paper", "code"])),
    st.builds(la.MMA, marker=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4)),
    st.builds(la.CrossLMM, weights=WORDS),
    st.builds(la.CrossLMM.reuse, grid=st.tuples(st.integers(1, 9), st.integers(1, 9)), w=UNIT),
    st.builds(la.AGLA, matcher=WORDS.map(lambda text: "/" + text)),
    st.builds(la.PAINT, alpha=st.floats(0, 100), head_cap=st.one_of(st.none(), st.floats(1e-9, 100))),
    st.builds(la.DoLa, layers=st.sampled_from(["low", "high", (), (0, 2), "0:4", "1,3:-1"])),
    st.builds(la.OPERA, r=st.one_of(st.none(), st.integers(1, 10**6))),
    st.builds(la.VHR, layers=st.one_of(st.integers(0, 9999), st.lists(st.integers(0, 9999), min_size=1))),
)


@given(st.lists(WRITTEN, min_size=1, max_size=3))
def test_everything_that_is_written_reads_back(methods):
    assert la.parse("+".join(map(str, methods))) == tuple(methods)


def test_methods_are_listed():
    assert {"var", "vhr"} <= set(la.methods())
