"""The expected verdicts were worked out by hand from each tool's rule, not by running the parsers."""

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.parsers import PARSERS, Reading, get_parser, read_strictly, without_reasoning

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
    ("Yes,there is a lamp", Y, Y, Y, Y, Y, U, Y),
    ("Yes, there is a lamp", Y, Y, Y, Y, Y, U, Y),
    ("No,there is none", N, Y, Y, N, N, U, N),
    ("**No**", N, Y, Y, N, N, U, U),
    ("Answer:no", N, Y, Y, N, N, U, U),
    ("Answer: no", N, N, N, N, N, U, N),
    ("'No'", N, Y, Y, N, N, U, U),
    ('"No"', N, Y, Y, N, N, U, N),
    ("(No)", N, Y, Y, N, N, U, N),
    ("No-one", U, Y, Y, N, N, U, N),
    ("yes/no", U, Y, Y, Y, N, U, U),
    ("yes/ no", U, N, N, Y, N, U, U),
    ("No/there is none", N, Y, Y, N, N, U, N),
    ("No!there is none", N, Y, Y, N, N, U, N),
    ("No!there! is none", N, Y, Y, N, N, U, U),
    ("No, 1,000 of them", N, N, N, N, N, U, N),
    ("No/none of 1,000", N, Y, Y, N, N, U, U),
    ("No.There is none", N, N, Y, N, N, U, U),
    ("No. There is none", N, N, N, N, N, U, N),
    ("no.1", N, N, Y, N, N, U, U),
    ("I see a dog, yes", Y, Y, Y, Y, Y, U, Y),
    ("There isn't a dog", U, Y, N, N, Y, U, U),
    ("There is not. Yes", Y, N, N, Y, N, U, Y),
    ("yes\tno", Y, Y, Y, Y, N, U, U),
    ("NO,", N, Y, N, N, N, U, N),
    ("Definitely NO", N, Y, N, N, N, U, N),
    ("[No]", N, Y, Y, N, N, U, N),
    ("<no>", N, Y, Y, N, N, U, N),
    ("no_dog", N, Y, Y, N, N, U, N),
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
    ("text", "verdict"),
    [
        ("**No**", N), ("__No__", N), ("Answer:no", N), ("No—none", N), ("(YES)", Y), ("“Yes”", Y), ("No: none", N),
        ("<answer>No</answer>", N), ("\\boxed{yes}", Y),
    ],
)  # fmt: skip
def test_strict_sees_the_word_through_punctuation(text, verdict):
    assert PARSERS["strict"](text, "no") == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Please answer yes or no. No", N),
        ("Answer with 'yes' or 'no'.\nYes", Y),
        ('Respond "yes" or "no" only: no', N),
        ("Yes/No? Yes", Y),
        ("Answer yes if there is a dog and no otherwise.\nNo", N),
        ("Answer 'yes' if you see it, and 'no' if not: No", N),
        ("If there is a dog, say yes. No", N),
        ("If yes, say where. No", N),
        ("yes or no", U),
        ("Yes and no", U),
        ("Neither yes nor no", U),
        ("I cannot say yes or no", U),
        ("Answer yes or no'No", N),
        ("If in doubt, answer yes'No", N),
    ],
)
def test_strict_skips_echoed_instructions(text, verdict):
    reading = read_strictly(text)
    assert (reading.verdict, reading.echo, reading.reasoning) == (verdict, True, False)


@pytest.mark.parametrize(
    ("text", "verdict", "unfinished"),
    [
        ("<think>yes or no?</think> No", N, False),
        ("<think>Yes.</think><think>No.</think>\n\nYes.", Y, False),
        ("yes, I see it</think>No", N, False),
        ("<THINKING>yes</THINKING>no", N, False),
        ("<think>\nyes it is, so", U, True),
        ("<think></think>", U, False),
        ("<think>a</think> No <think>yes", N, True),
    ],
)
def test_strict_skips_reasoning(text, verdict, unfinished):
    reading = read_strictly(text)
    assert (reading.verdict, reading.reasoning, reading.unfinished) == (verdict, True, unfinished)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("I have no idea", U),
        ("There is no way to tell", U),
        ("That isn't a yes", U),
        ("I would not say yes", U),
        ("There is no doubt: yes", Y),
        ("Yes, no doubt", Y),
        ("No doubt about it", U),
        ("The answer is yes because there is no doubt", Y),
        ("I do not see a lamp, so no", N),
        ("No. 2 cats are there", N),
    ],
)
def test_strict_says_unknown_where_nothing_is_decided(text, verdict):
    assert read_strictly(text).verdict == verdict


@pytest.mark.parametrize("text", ["yes", "Yes.", " NO! ", "no"])
def test_a_plain_answer_skips_nothing(text):
    assert read_strictly(text) == Reading("yes" if "y" in text.lower() else "no", False, False, False)
    assert without_reasoning(text) == (text, False, False)
    assert without_reasoning(f"{text} < 3") == (f"{text} < 3", False, False)


def test_what_reasoning_leaves():
    assert without_reasoning("<think>") == ("", True, True)
    assert without_reasoning("<think></think> \n") == ("", True, False)
    assert without_reasoning("so</think>a</analysis> b ") == (" b ", True, False)
    assert without_reasoning("<think>a</think>b<think>c</think>d") == (" b d", True, False)
    assert without_reasoning("<think>a</think>b<thought>c") == (" b ", True, True)


def test_vlmeval_deletes_marks_and_full_stops_as_its_tool_does():
    read = PARSERS["vlmeval"]
    assert read("see /no/none", "no") == U  # a blank before one mark deletes all: "nonone"
    assert read("see no/ no/ne", "no") == N  # and one behind it
    assert read("see no/ne", "no") == N  # else each becomes a blank
    assert read("." * 31 + "no.", "no") == N
    assert read("." * 32 + "no.", "no") == U  # the 33rd full stop stays


def test_mme_looks_at_four_characters():
    read = PARSERS["mme"]
    assert [read(text, "yes") for text in ("y. ", ".n", " n ", "a")] == [Y, N, N, U]
    assert [read(text, "yes") for text in ("o.k. yes", "a no", "ab no", "a yes", "b.yes")] == [U, N, U, U, Y]


def test_only_strict_looks_past_reasoning():
    assert {name: PARSERS[name]("<think> no </think> Yes", "yes") for name in PARSERS} == {
        "strict": Y, "official": N, "opera": N, "vcd": Y, "lmms": U, "vlmeval": U,
        "amber": U, "mme": U, "naturalbench": N, "dash-b": Y,
    }  # fmt: skip


def test_misspelt_parser_suggests_the_closest():
    with pytest.raises(LvlmAttnError, match=r"Did you mean 'official'\? Known parsers: strict, official,"):
        get_parser("offical")
