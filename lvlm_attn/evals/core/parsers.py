"""How a free-text answer becomes yes, no or unknown: the rules in use, as a table of pure functions.

On answers that are exactly "Yes" or "No" all rules agree; on anything else they do not, so a result names its
rule.

Sources: ``official`` is POPE's ``evaluate.py`` (RUCAIBox/POPE; LLaVA uses the same), ``opera`` is OPERA's and
PAI's ``pope_eval.py``, ``vcd`` is DAMO VCD's ``eval_pope.py``, ``lmms`` is lmms-eval's ``pope`` task,
``vlmeval`` is VLMEvalKit's ``YOrN_Extraction`` after its ``process_punctuation``; of other benchmarks, ``amber`` is
AMBER's ``inference.py``, ``mme`` MME's ``calculation.py`` (as in lmms-eval's ``mme`` task), ``naturalbench``
NaturalBench's ``naturalbench_vqa.py``, ``dash-b`` DASH-B's ``eval_utils.py``. ``strict`` is ours, and the only one that
looks past reasoning and echoed instructions, since the others do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from lvlm_attn.errors import LvlmAttnError, closest

Verdict = Literal["yes", "no", "unknown"]
Label = Literal["yes", "no"]

_WORD = re.compile(r"(?<![\w'’-])(yes|no)(?![\w'’]|-\w)", re.IGNORECASE)
_MARKS = re.compile(r"[*_`\"“”«»]+|(?<!\w)['’‘]+|['’]+(?!\w)")
_REASONING = re.compile(
    r"<(think|thinking|thought|reasoning|analysis)>.*?(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL
)
_REASONING_END = re.compile(r"</(?:think|thinking|thought|reasoning|analysis)>", re.IGNORECASE)
_REASONING_CLOSED = re.compile(r"</(?:think|thinking|thought|reasoning|analysis)>\Z", re.IGNORECASE)
# Both words offered side by side are the instruction, or a choice not made: "yes or no", "'yes'/'no'", "yes, no?".
_BOTH = re.compile(
    r"(?<![\w'’-])'?(?:yes|no)'?\s*(?:,?\s*(?:or|and|nor|/|\||vs\.?)\s*)'?(?:yes|no)(?![\w])'?", re.IGNORECASE
)
# "answer yes if there is a dog and no otherwise", "If yes, ..." restate the task.
_SAY = r"(?:answer|respond|reply|say|write|output)(?:\s+with)?\s+'?(?:yes|no)\b'?"
_CONDITION = re.compile(
    rf"(?:\b{_SAY}|\byes\b'?),?\s+(?:if|when)\b[^.!?\n]{{0,120}}?\bno\b'?,?\s+(?:otherwise|if|when)\b[^.!?\n:]{{0,120}}"
    rf"|\bif\b[^.!?\n]{{0,120}}?,\s*{_SAY}"
    r"|\b(?:if|whether|unless)\s+(?:it\s+is\s+|the\s+answer\s+is\s+)?(?:yes|no)\b",
    re.IGNORECASE,
)
# No denial and no answer: "no doubt", "no idea", "no way to tell", "not a yes".
_IDIOM = re.compile(
    r"\bno\s+(?:doubt|idea|clue|question|problem|matter)\b|\bno\s+way\s+(?:to|of)\s+(?:\w+\s+)?(?:tell|know)\w*"
    r"|(?:\b(?:not|cannot|neither)|n['’]t)\s+(?:(?:a|an|say|definitely|necessarily|simply|just|clear|clearly)\s+)*"
    r"(?:yes|no)\b",
    re.IGNORECASE,
)
_VLMEVAL_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FIRST_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_FULL_STOP = re.compile(r"\.(?!\d)")


@dataclass(frozen=True)
class Reading:
    """What ``strict`` made of an answer.

    Attributes:
        verdict: yes, no, or unknown where the answer does not decide.
        reasoning: whether a reasoning block was skipped.
        unfinished: whether that block never ended, so that nothing was left to read.
        echo: whether an echoed instruction was skipped.
    """

    verdict: Verdict
    reasoning: bool = False
    unfinished: bool = False
    echo: bool = False


def without_reasoning(text: str) -> tuple[str, bool, bool]:
    """Cuts reasoning blocks, also one whose beginning stood in the prompt or whose end was cut off.

    Returns:
        What is left, whether anything was cut, and whether a block was unfinished.

    Example:
        >>> without_reasoning("<think>a dog?</think> Yes"), without_reasoning("<think>a dog")
        ((' Yes', True, False), ('', True, True))
    """
    if "<" not in text:
        return text, False, False
    unfinished = False

    def cut(block: re.Match[str]) -> str:
        nonlocal unfinished
        unfinished |= _REASONING_CLOSED.search(block.group()) is None
        return " "

    left = _REASONING.sub(cut, text)
    ends = list(_REASONING_END.finditer(left))
    if ends:
        left = left[ends[-1].end() :]
    return (left if left.strip() else ""), left != text, unfinished


@lru_cache(maxsize=1 << 14)
def read_strictly(text: str) -> Reading:
    """Reads an answer by the rule ``strict`` and says what it skipped.

    Example:
        >>> read_strictly("Please answer yes or no. No")
        Reading(verdict='no', reasoning=False, unfinished=False, echo=True)
    """
    left, reasoning, unfinished = without_reasoning(text)
    left = _MARKS.sub(" ", left)
    decisive = _BOTH.sub(" ", _CONDITION.sub(" ", left))
    echo = decisive != left
    found = _WORD.search(_IDIOM.sub(" ", decisive))
    verdict: Verdict = "unknown"
    if found is not None:
        verdict = "yes" if found.group(1).lower() == "yes" else "no"
    return Reading(verdict, reasoning, unfinished, echo)


def strict(text: str, label: Label) -> Verdict:
    """The first word that is yes or no decides, in any case; without one the answer is unknown.

    Skipped are reasoning blocks (``<think>``), echoed instructions ("answer yes or no") and what denies nothing ("no
    doubt"). "Yes and no" does not decide.
    """
    return read_strictly(text).verdict


def official(text: str, label: Label) -> Verdict:
    """No if the first sentence holds the token ``No``, ``no`` or ``not``; all else is yes, even silence."""
    tokens = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(tokens) else "yes"


def opera(text: str, label: Label) -> Verdict:
    """No if any token of the whole text is ``No``, ``NO``, ``no``, ``not`` or ends in ``n't``; else yes."""
    tokens = text.replace(".", "").replace(",", "").split(" ")
    denies = any(token in ("No", "NO", "no", "not") or token.endswith("n't") for token in tokens)
    return "no" if denies else "yes"


def vcd(text: str, label: Label) -> Verdict:
    """The label's own word, found anywhere inside the text, makes the answer right; else it is wrong.

    The rule looks at the label, so "know" is a right answer to a no question and a wrong one to a yes
    question.
    """
    text = text.lower().strip()
    if label == "yes":
        return "yes" if "yes" in text else "no"
    return "no" if "no" in text else "yes"


def lmms(text: str, label: Label) -> Verdict:
    """The whole answer must be yes or no, apart from case and outer blanks."""
    text = text.lower().strip()
    if text == "yes":
        return "yes"
    return "no" if text == "no" else "unknown"


def vlmeval(text: str, label: Label) -> Verdict:
    """Exactly one of the words yes and no must occur, after that tool's own way with punctuation.

    A mark that touches a blank anywhere in the text is deleted everywhere, and so is every mark once a comma stands
    between digits; any other becomes a blank. Full stops are deleted unless a digit follows, the first 32 of them.
    Colons, apostrophes and stars are no marks there, so "**No**" stays unread.
    """
    text = text.lower()
    left = text
    delete_all = _DIGIT_COMMA.search(text) is not None
    for mark in _VLMEVAL_MARKS:
        if mark in text:
            touches = f"{mark} " in text or f" {mark}" in text
            left = left.replace(mark, "" if touches or delete_all else " ")
    words = set(_FULL_STOP.sub("", left, count=32).split())
    if ("yes" in words) == ("no" in words):
        return "unknown"
    return "yes" if "yes" in words else "no"


def amber(text: str, label: Label) -> Verdict:
    """The whole answer must be ``Yes`` or ``No``, letter by letter."""
    return "yes" if text == "Yes" else "no" if text == "No" else "unknown"


def mme(text: str, label: Label) -> Verdict:
    """Yes or no within the first four characters, blanks and full stops taken away; ``y`` and ``n`` alone count."""
    text = text.lower().strip().replace(".", "")
    if len(text) == 1:
        return "yes" if text == "y" else "no" if text == "n" else "unknown"
    return "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else "unknown"


def naturalbench(text: str, label: Label) -> Verdict:
    """The first word that is yes or no."""
    found = _FIRST_WORD.search(text)
    return "unknown" if found is None else "yes" if found.group(1).lower() == "yes" else "no"


def dash_b(text: str, label: Label) -> Verdict:
    """Yes if "yes" is found anywhere, also inside a word; else no if "no" is."""
    text = text.lower()
    return "yes" if "yes" in text else "no" if "no" in text else "unknown"


PARSERS: dict[str, Callable[[str, Label], Verdict]] = {
    "strict": strict,
    "official": official,
    "opera": opera,
    "vcd": vcd,
    "lmms": lmms,
    "vlmeval": vlmeval,
    "amber": amber,
    "mme": mme,
    "naturalbench": naturalbench,
    "dash-b": dash_b,
}


def get_parser(name: str) -> Callable[[str, Label], Verdict]:
    """Returns a parser by name.

    Raises:
        LvlmAttnError: no such parser; the message suggests the closest.
    """
    if name not in PARSERS:
        known = ", ".join(PARSERS)
        raise LvlmAttnError(f"no answer parser {name!r}.{closest(name, PARSERS)} Known parsers: {known}.")
    return PARSERS[name]
