"""How sure a yes or no is: the probability mass of both words at the first answer token.

Comparing the two masses scores an answer without reading its text, and shows a shift towards yes directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

_FORMS = {"yes": ("Yes", "yes", "YES", " Yes", " yes"), "no": ("No", "no", "NO", " No", " no")}


def yes_no_ids(tokenizer: Any) -> dict[str, list[int]]:
    """Returns the token ids that spell yes and no as a single token, in any case, with or without a blank."""
    found: dict[str, list[int]] = {}
    for word, forms in _FORMS.items():
        ids = set()
        for form in forms:
            encoded = tokenizer.encode(form, add_special_tokens=False)
            if len(encoded) == 1 and tokenizer.decode(encoded).strip().lower() == word:
                ids.add(int(encoded[0]))
        found[word] = sorted(ids)
    return found


class FirstToken(LogitsProcessor):  # type: ignore[misc]
    """Notes the probabilities of yes and no when the first token is chosen; changes nothing.

    Args:
        ids: token ids of each word.
    """

    def __init__(self, ids: dict[str, list[int]]) -> None:
        self._ids = ids
        self._mass: dict[str, list[float]] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Reads ``(rows, vocabulary)`` scores once and returns them."""
        if self._mass is None:
            probabilities = torch.softmax(scores.float(), dim=-1)
            self._mass = {word: probabilities[:, ids].sum(-1).tolist() for word, ids in self._ids.items()}
        return scores

    def of_row(self, row: int) -> dict[str, float] | None:
        """The probabilities of one row, in six significant digits; None where a word has no token of its own."""
        if self._mass is None or not all(self._ids.values()):
            return None
        return {word: float(f"{mass[row]:.6g}") for word, mass in self._mass.items()}
