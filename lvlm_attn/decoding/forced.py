"""Decoding answers that are given: every token is chosen beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from lvlm_attn.errors import LvlmAttnError


class Forced(LogitsProcessor):  # type: ignore[misc]
    """Leaves only the token that comes next in a given answer; one object serves one `generate`.

    Args:
        answers: `(rows, tokens)`, token ids; -1 after the end of a shorter answer, where anything may come.
    """

    def __init__(self, answers: Tensor):
        self.answers = answers
        self._prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Bans all tokens but one; the logit of that one stays."""
        self._prompt = input_ids.shape[1] if self._prompt is None else self._prompt
        step = input_ids.shape[1] - self._prompt
        if step >= self.answers.shape[1]:
            return scores
        token = self.answers[:, step].to(scores.device)[:, None]
        is_only = torch.zeros_like(scores, dtype=torch.bool).scatter(1, token.clamp(min=0), True)
        lowest = torch.finfo(
            scores.dtype
        ).min  # a token that something else banned has to be chosen all the same
        chosen = scores.clamp(min=lowest).masked_fill(~is_only, -torch.inf)
        return torch.where(token >= 0, chosen, scores)


def answer_ids(answers: Sequence[str] | Tensor, rows: int, processor: Any, ends: Any) -> Tensor:
    """Token ids of given answers.

    Args:
        answers: one text per row, or `(rows, tokens)` token ids.
        rows: number of prompts.
        processor: whose tokenizer reads the texts.
        ends: token ids that end an answer; the first one is put after each text.

    Returns:
        `(rows, tokens)`, -1 after the end of shorter answers.

    Raises:
        LvlmAttnError: if there is not one answer per prompt, or one is empty.
    """
    if isinstance(answers, str):
        answers = [answers]
    if len(answers) != rows:
        raise LvlmAttnError(
            f"There are {len(answers)} answers for {rows} prompts; give one answer per prompt."
        )
    if isinstance(answers, Tensor):
        return answers.long()
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer is None:
        raise LvlmAttnError(
            "Answers as text need the processor; pass wrap(..., processor=processor), or token ids."
        )
    end = _first(ends)
    listed = [
        [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]] for text in answers
    ]
    for text, ids in zip(answers, listed):
        if not ids:
            raise LvlmAttnError(f"The answer {text!r} has no token; give at least one word.")
    rows_of_ids = [ids + ([end] if end is not None else []) for ids in listed]
    longest = max(map(len, rows_of_ids))
    return torch.tensor([ids + [-1] * (longest - len(ids)) for ids in rows_of_ids])


def _first(ends: Any) -> int | None:
    if isinstance(ends, (list, tuple)):
        ends = ends[0] if ends else None
    return None if ends is None else int(ends)
