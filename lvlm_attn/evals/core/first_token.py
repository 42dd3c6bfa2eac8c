"""How sure an answer is: the probability mass of both possible words, or letters, at the first answer token.

Comparing the two masses scores an answer without reading its text, and shows a shift towards one of them directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

PAIRS = (("yes", "no"), ("A", "B"))
"""What closed questions are answered with."""
_FORMS = {
    "yes": ("Yes", "yes", "YES", " Yes", " yes"), "no": ("No", "no", "NO", " No", " no"),
    **{letter: tuple(f"{before}{form}" for form in (letter, letter.lower()) for before in ("", " ", "(", " ("))
       for letter in ("A", "B")},
}  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """The tokens that tell answers apart.

    Attributes:
        ids: token ids of each word or letter.
        brackets: token ids of a bracket before a letter, after which the letter is a token of its own.
    """

    ids: Mapping[str, Sequence[int]]
    brackets: frozenset[int] = frozenset()


def choices_of(tokenizer: Any, words: Sequence[str]) -> Choices:
    """The token ids that spell words as a single token, in any case, with or without a blank.

    Args:
        tokenizer: the tokenizer.
        words: of `PAIRS`. Letters may stand in brackets, within their token or after a token of the bracket.
    """
    found: dict[str, list[int]] = {}
    brackets: set[int] = set()
    for word in words:
        ids = set()
        for form in _FORMS[word]:
            encoded = tokenizer.encode(form, add_special_tokens=False)
            told = [tokenizer.decode([token]).strip() for token in encoded]
            if told[:-1] == ["("]:
                brackets.add(int(encoded[0]))
            elif len(told) != 1:
                continue
            if told[-1].removeprefix("(").lower() == word.lower():
                ids.add(int(encoded[-1]))
        found[word] = sorted(ids)
    return Choices(found, frozenset(brackets))


class FirstToken(LogitsProcessor):  # type: ignore[misc]
    """Notes the probabilities of words when the first token is chosen; changes nothing.

    Where the first token is a bracket before a letter, the letter's probabilities are those of the second.

    Args:
        choices: the tokens of each word.
    """

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._mass: dict[str, list[float]] | None = None
        self._length = 0
        self._reads_second = bool(choices.brackets)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Reads ``(rows, vocabulary)`` scores and returns them; the first, and after a bracket the second."""
        if self._mass is None:
            self._mass, self._length = self._masses(scores), input_ids.shape[1]
        elif self._reads_second and input_ids.shape[1] == self._length + 1:
            self._reads_second = False
            again = self._masses(scores)
            for row, token in enumerate(input_ids[:, -1].tolist()):
                if token in self._choices.brackets:
                    for word in {"A", "B"} & set(again):
                        self._mass[word][row] = again[word][row]
        return scores

    def _masses(self, scores: Tensor) -> dict[str, list[float]]:
        probabilities = torch.softmax(scores.float(), dim=-1)
        return {word: probabilities[:, list(ids)].sum(-1).tolist() for word, ids in self._choices.ids.items()}

    def of_row(self, row: int) -> dict[str, float] | None:
        """The probabilities of one row, in six significant digits; None where no two words have tokens of their own."""
        mass, ids = self._mass or {}, self._choices.ids
        told = [word for pair in PAIRS if all(ids.get(word) for word in pair) for word in pair]
        return {word: float(f"{mass[word][row]:.6g}") for word in told if word in mass} or None
