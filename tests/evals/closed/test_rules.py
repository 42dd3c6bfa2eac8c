"""How answers to closed questions are read."""

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.rules import first_letter, require_rule, strict_letter, verdict
from lvlm_attn.evals.core.parsers import PARSERS

# text, then what amber, mme, naturalbench and dash-b make of it by the definition in their sources
ANSWERS = [
    ("Yes", "yes", "yes", "yes", "yes"),
    ("No", "no", "no", "no", "no"),
    ("No.", "unknown", "no", "no", "no"),
    ("yes", "unknown", "yes", "yes", "yes"),
    ("y", "unknown", "yes", "unknown", "unknown"),
    ("N", "unknown", "no", "unknown", "unknown"),
    ("Yes, there is no doubt", "unknown", "yes", "yes", "yes"),
    ("No, not yes", "unknown", "no", "no", "yes"),
    ("I know.", "unknown", "unknown", "unknown", "no"),
    ("snow", "unknown", "no", "unknown", "no"),
    ("The answer is yes", "unknown", "unknown", "yes", "yes"),
    ("", "unknown", "unknown", "unknown", "unknown"),
]


@pytest.mark.parametrize(("text", "amber", "mme", "naturalbench", "dash_b"), ANSWERS)
def test_rules_of_the_benchmarks(text, amber, mme, naturalbench, dash_b):
    told = {"amber": amber, "mme": mme, "naturalbench": naturalbench, "dash-b": dash_b}
    for name, expected in told.items():
        assert PARSERS[name](text, "yes") == PARSERS[name](text, "no") == expected, name


LETTERS = [
    ("(a)", "yes", "yes"),
    ("(b)", "no", "no"),
    ("A", "yes", "yes"),
    ("B.", "no", "no"),
    ("a. Open", "yes", "yes"),
    ("**B**", "no", "no"),
    ("The answer is (b) Closed.", "no", "no"),
    ("Option A", "yes", "yes"),
    ("Answer: b", "no", "no"),
    ("The door is closed.", "no", "unknown"),
    ("a door that is closed", "no", "yes"),  # NaturalBench's rule takes the article for a letter
    ("Both (a) and (b)", "unknown", "yes"),
    ("I think the answer is B", "no", "no"),
    ("It looks like (A)", "yes", "yes"),
    ("Answer: (b) ", "no", "no"),
    ("open and closed", "unknown", "unknown"),
    ("I cannot tell", "unknown", "unknown"),
    ("<think>(a)? No.</think>(b)", "no", "yes"),
    ("", "unknown", "unknown"),
]


@pytest.mark.parametrize(("text", "strict", "naturalbench"), LETTERS)
def test_letters(text, strict, naturalbench):
    assert strict_letter(text, ("Open", "Closed")) == strict
    assert first_letter(text, ("Open", "Closed")) == naturalbench


def test_an_option_inside_the_other_is_not_taken_for_it():
    options = ("Two dogs", "Two dogs and a cat")
    assert strict_letter("There are two dogs and a cat.", options) == "no"
    assert strict_letter("There are two dogs.", options) == "yes"


def test_options_are_said_without_their_marks():
    assert strict_letter("It is open", (" Open. ", "Closed.")) == "yes"
    assert strict_letter("It is closed!", ("Open", " Closed ")) == "no"
    assert strict_letter("It is a box.", ("BAG", "BOX.")) == "no"
    assert strict_letter("It is closed. Sure.", ("", "Closed")) == "no"
    assert strict_letter("It is green", ("Red", "Blue", "Green")) == "unknown"
    assert strict_letter("It is (b) and opened", ("Open", "Closed")) == "no"


def test_a_verdict_goes_by_the_kind_of_question():
    assert verdict("B", "A", ("Open", "Closed"), "strict") == "no"
    assert verdict("not sure", "no", (), "vcd") == "no"  # that rule looks at the label
    assert verdict("not sure", "yes", (), "vcd") == "no"
    assert verdict("snow", "no", (), "strict") == "unknown"
    assert [verdict("", label, (), "vcd") for label in ("yes", "no")] == ["no", "yes"]
    assert [verdict("(b)", label, ("Open", "Closed"), "strict") for label in ("A", "B")] == ["no", "no"]


def test_unknown_rules_are_refused():
    require_rule("mme")
    require_rule("strict", letters=True)
    with pytest.raises(
        LvlmAttnError, match=r"'mme' for questions answered by a letter\. Known parsers: strict, natural"
    ):
        require_rule("mme", letters=True)
    with pytest.raises(LvlmAttnError, match=r"'mne'\. Did you mean 'mme'\? Known parsers: strict, official"):
        require_rule("mne")
    with pytest.raises(LvlmAttnError, match=r"'mne'\. Known parsers: strict, naturalbench"):
        require_rule("mne", letters=True)
