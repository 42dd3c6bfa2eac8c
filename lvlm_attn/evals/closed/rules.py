"""How an answer to a closed question is read: yes and no as everywhere, and letters.

Source of ``naturalbench`` for letters: NaturalBench's ``naturalbench_vqa.py``. ``strict`` is ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.evals.core.parsers import PARSERS, Verdict, without_reasoning

_FIRST_LETTER = re.compile(r"\b([AB])\b", re.IGNORECASE)
# "A", "(a)", "B.", "A: open", "**B**"; "a dog" is an article.
_LETTER_ALONE = re.compile(r"[\s*_\"'`]*(?:\(([ab])\)|([ab])\)|([AB])(?=[\s.:,;*_\"'`]|$)|([ab])[.:]?\s*$)")
_LETTER_TOLD = re.compile(
    r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*[*_\"'`]*\(?([AB])\)?(?!\w)", re.IGNORECASE
)
_BRACKETED = re.compile(r"\(([ab])\)", re.IGNORECASE)


def strict_letter(text: str, options: Sequence[str]) -> Verdict:
    """The letter an answer begins with or calls its answer, else the one option it repeats.

    Example:
        >>> strict_letter("(b) Closed", ("Open", "Closed")), strict_letter("It is open.", ("Open", "Closed"))
        ('no', 'yes')
    """
    text = without_reasoning(text)[0].strip()
    found = _LETTER_ALONE.match(text) or _LETTER_TOLD.search(text)
    letters = {next(filter(None, found.groups())).lower()} if found else set()
    if not letters:
        letters = {letter.lower() for letter in _BRACKETED.findall(text)}
    if not letters:
        said = [i for i, option in enumerate(options) if _says(text, option)]
        longer = [i for i in said if not any(i != j and _says(options[j], options[i]) for j in said)]
        letters = {"ab"[i] for i in longer if i < 2}
    if len(letters) != 1:
        return "unknown"
    return "yes" if letters == {"a"} else "no"


def first_letter(text: str, options: Sequence[str]) -> Verdict:
    """NaturalBench's rule: the first ``A`` or ``B`` that stands alone, in any case, an article included."""
    found = _FIRST_LETTER.search(text)
    return "unknown" if found is None else "yes" if found.group(1).lower() == "a" else "no"


def _says(text: str, option: str) -> bool:
    plain = option.strip().rstrip(".")
    return bool(plain) and re.search(rf"(?<!\w){re.escape(plain)}(?!\w)", text, re.IGNORECASE) is not None


LETTER_RULES: dict[str, Callable[[str, Sequence[str]], Verdict]] = {
    "strict": strict_letter,
    "naturalbench": first_letter,
}


def require_rule(name: str, letters: bool = False) -> None:
    """Checks the name of a rule.

    Args:
        name: the rule.
        letters: whether there are questions answered by a letter, which fewer rules can read.

    Raises:
        LvlmAttnError: no such rule; the message suggests the closest.
    """
    known = tuple(LETTER_RULES) if letters else tuple(PARSERS)
    if name not in known:
        what = " for questions answered by a letter" if letters and name in PARSERS else ""
        raise LvlmAttnError(
            f"no answer parser {name!r}{what}.{closest(name, known)} Known parsers: {', '.join(known)}."
        )


def verdict(text: str, label: str, options: Sequence[str], rule: str) -> Verdict:
    """Reads an answer; ``yes`` stands for A, ``no`` for B where there are letters."""
    if label in ("A", "B"):
        return LETTER_RULES[rule](text, options)
    read = partial(PARSERS[rule], text)
    return read("yes") if label == "yes" else read("no")
