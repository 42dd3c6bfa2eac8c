"""AMBER's word lists, read from the user's copy, and the nouns of a description that they know.

The released code tags and lemmatises with NLTK and then takes the nouns in its list, in the case they are written in.
Here a word counts if it, in lower case, is in the list or is the plural of a word there. Without a tagger two of its
words need a rule: `can` counts where a noun may stand, `hot` before `dog` alone, which then is no dog.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.vocab import tokenise
from lvlm_attn.evals.chair.words import plurals
from lvlm_attn.evals.core.jsonio import read_bytes
from lvlm_attn.evals.core.parsers import without_reasoning
from lvlm_attn.evals.core.records import decode

_AFTER_A_NOUN = frozenset({
    ".", ",", ";", ":", "!", "?", ")", "and", "or", "is", "are", "was", "were", "in", "on", "of", "with", "to", "at",
    "by", "near", "next", "beside", "behind", "under", "that", "which", "sits", "sitting", "placed", "standing",
    "lying", "filled", "containing",
})  # fmt: skip


@dataclass(frozen=True)
class WordLists:
    """AMBER's lists.

    Attributes:
        associations: for each object the words that count for it, in the order of the file.
        safe: words that are never hallucinated.
    """

    associations: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    @cached_property
    def forms(self) -> dict[str, str]:
        """Every form of every word in the list, with that word."""
        words = [*self.associations, *(word for listed in self.associations.values() for word in listed)]
        found = {word: word for word in words}
        for word in words:
            for form in plurals(word) if word.isalpha() and len(word) > 1 else ():
                found.setdefault(form, word)
        return found

    def nouns(self, text: str) -> list[str]:
        """The words of the list that a description mentions, once per mention, reasoning skipped.

        Example:
            >>> lists = WordLists({"ship": ["boat"], "can": []}, frozenset())
            >>> lists.nouns("Two Boats can be seen near a ship.")
            ['boat', 'ship']
        """
        tokens = tokenise(without_reasoning(text)[0])
        found = []
        for at, token in enumerate(tokens):
            word = self.forms.get(token)
            after = tokens[at + 1] if at + 1 < len(tokens) else "."
            before = tokens[at - 1] if at else ""
            is_verb = token == "can" and after not in _AFTER_A_NOUN
            is_adjective = token == "hot" and after not in ("dog", "dogs")
            is_taken = token in ("dog", "dogs") and before == "hot" and "hot" in self.forms
            if word is not None and not (is_verb or is_adjective or is_taken):
                found.append(word)
        return found

    def to_dict(self) -> dict[str, object]:
        """JSON-ready, for a run's settings."""
        return {
            "associations": {word: list(listed) for word, listed in self.associations.items()},
            "safe_words": sorted(self.safe),
        }


def lists_of(associations: Mapping[str, Iterable[str]], safe: Iterable[str]) -> WordLists:
    """Word lists in lower case."""
    return WordLists(
        {word.lower(): tuple(other.lower() for other in listed) for word, listed in associations.items()},
        frozenset(word.lower() for word in safe),
    )


def read_lists(relations: Path, safe_words: Path) -> WordLists:
    """Reads `relation.json` and `safe_words.txt`.

    Raises:
        LvlmAttnError: a file cannot be read or has another form.
    """
    what = "AMBER word list"
    try:
        value = json.loads(decode(read_bytes(relations, what), relations, what))
    except (ValueError, RecursionError) as error:
        if isinstance(error, LvlmAttnError):
            raise
        raise LvlmAttnError(f"{what} {relations} is not valid JSON; fetch it again.") from error
    if not isinstance(value, dict) or not all(
        isinstance(listed, list) and all(isinstance(word, str) for word in listed)
        for listed in value.values()
    ):
        raise LvlmAttnError(f"{what} {relations}: expected lists of words by word; fetch it again.")
    text = decode(read_bytes(safe_words, what), safe_words, what)
    return lists_of(value, filter(None, map(str.strip, text.splitlines())))
