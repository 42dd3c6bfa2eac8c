"""How a free-text answer becomes yes, no or unknown: six rules in use, as a table of pure functions.

On answers that are exactly "Yes" or "No" all rules agree; on anything else they do not, so a result names its
rule.

Sources: ``official`` is POPE's ``evaluate.py`` (RUCAIBox/POPE; LLaVA uses the same), ``opera`` is OPERA's and
PAI's ``pope_eval.py``, ``vcd`` is DAMO VCD's ``eval_pope.py``, ``lmms`` is lmms-eval's ``pope`` task,
``vlmeval`` is VLMEvalKit's ``YOrN_Extraction``. ``strict`` is ours.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from typing import Literal

from lvlm_attn.errors import LvlmAttnError, closest

Verdict = Literal["yes", "no", "unknown"]
Label = Literal["yes", "no"]

_WORD = re.compile(r"(?<![\w'’-])(yes|no)(?![\w'’]|-\w)", re.IGNORECASE)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def strict(text: str, label: Label) -> Verdict:
    """The first word that is yes or no decides, in any case; without one the answer is unknown."""
    found = _WORD.search(text)
    if found is None:
        return "unknown"
    return "yes" if found.group(1).lower() == "yes" else "no"


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
    """Exactly one of the words yes and no must occur, after punctuation is taken out."""
    words = set(text.lower().translate(_NO_PUNCTUATION).split())
    if ("yes" in words) == ("no" in words):
        return "unknown"
    return "yes" if "yes" in words else "no"


PARSERS: dict[str, Callable[[str, Label], Verdict]] = {
    "strict": strict,
    "official": official,
    "opera": opera,
    "vcd": vcd,
    "lmms": lmms,
    "vlmeval": vlmeval,
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
