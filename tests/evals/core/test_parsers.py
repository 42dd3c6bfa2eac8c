"""The expected verdicts were worked out by hand from each tool's rule, not by running the parsers."""

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.parsers import PARSERS, get_parser

Y, N, U = "yes", "no", "unknown"
#   text                      strict official opera vcd(label yes) vcd(label no) lmms vlmeval
TABLE = [
    ("Yes", Y, Y, Y, Y, Y, Y, Y),
    ("No.", N, N, N, N, N, U, N),
    ("no, there is not", N, N, N, N, N, U, N),
    ("Yes, there is no doubt", Y, N, N, Y, N, U, U),
    ("I don't know", U, Y, N, N, N, U, U),
    ("NO", N, Y, N, N, N, N, N),
    ("", U, Y, Y, N, Y, U, U),
    ("There is a snowboard", U, Y, Y, N, N, U, U),
    ("not sure", U, N, N, N, N, U, U),
    ("None", U, Y, Y, N, N, U, U),
    ("Yes\nNo", Y, Y, Y, Y, N, U, U),
    ("ASSISTANT: Yes", Y, Y, Y, Y, Y, U, Y),
    ("There is a dog. There is no cat.", N, Y, N, N, N, U, N),
    (" yes ", Y, Y, Y, Y, Y, Y, Y),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: repr(row[0]))
def test_each_rule_reads_the_answer_as_its_tool_does(row):
    text, strict, official, opera, vcd_yes, vcd_no, lmms, vlmeval = row
    for name, verdict in [("strict", strict), ("official", official), ("opera", opera)]:
        assert PARSERS[name](text, "yes") == PARSERS[name](text, "no") == verdict, name
    for name, verdict in [("lmms", lmms), ("vlmeval", vlmeval)]:
        assert PARSERS[name](text, "yes") == PARSERS[name](text, "no") == verdict, name
    assert PARSERS["vcd"](text, "yes") == vcd_yes
    assert PARSERS["vcd"](text, "no") == vcd_no


@pytest.mark.parametrize("text", ["snow", "no-one", "Yesterday", "noyes", "the no's"])
def test_strict_wants_a_word_of_its_own(text):
    assert PARSERS["strict"](text, "yes") == "unknown"


@pytest.mark.parametrize(
    ("text", "verdict"), [("yes/no", Y), ("**No**", N), ("Answer:no", N), ("No—none", N), ("(YES)", Y)]
)
def test_strict_sees_the_word_through_punctuation(text, verdict):
    assert PARSERS["strict"](text, "no") == verdict


def test_misspelt_parser_suggests_the_closest():
    with pytest.raises(LvlmAttnError, match="Did you mean 'official'"):
        get_parser("offical")
