"""Where an answer begins: the tokens a chat template puts between a question and its answer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.prompts.template import render

_QUESTIONS = ("Is there a dog?", "Where is it")
_ANSWERS = ("Yes", "There is none.")


def assistant_marker(processor: Any) -> tuple[int, ...]:
    """Token ids that stand right before every answer, read off the chat template of a processor.

    The template is rendered with and without its generation prompt; what it adds is the marker. A template that
    adds nothing (Mistral's) has what stands between a question and an answer as its marker. Without a template,
    `USER: ... ASSISTANT:` is taken, as in `lvlm.generate`.

    Args:
        processor: a processor or tokenizer.

    Returns:
        The ids, in order.

    Raises:
        LvlmAttnError: if no marker can be found that stands before answers in other conversations as well.

    Example:
        >>> _, processor = lvlm_attn.load("toy")  # doctest: +SKIP
        >>> processor.tokenizer.decode(assistant_marker(processor))  # doctest: +SKIP
        'ASSISTANT :'
    """
    question, answer = _QUESTIONS[0], _ANSWERS[0]
    try:
        short = _render(processor, [question], False)
        long = _render(processor, [question], True)
        if long == short:
            whole = _render(processor, [question, answer], False)
            short, long = (
                whole[: whole.index(question) + len(question)],
                whole[: whole.rindex(answer)].rstrip(),
            )
        before, after = _ids(processor, short), _ids(processor, long)
        shared = 0
        while shared < min(len(before), len(after)) and before[shared] == after[shared]:
            shared += 1
        marker = after[shared:]
        # Tokens at the seam may belong to the question; they are not found before other answers.
        checks = [
            _ids(processor, _render(processor, [_QUESTIONS[1], _ANSWERS[1], question], True)),
            _ids(processor, _render(processor, [_QUESTIONS[1], _ANSWERS[0]], False)),
        ]
    except Exception as error:  # templates are programs of their own and fail in ways of their own
        raise LvlmAttnError(
            f"No answer marker could be read off the chat template of {type(processor).__name__} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); pass its "
            f"token ids as marker=(...)."
        ) from error
    while marker and not all(_holds(ids, marker) for ids in checks):
        marker = marker[1:]
    if not marker:
        raise LvlmAttnError(
            f"The chat template of {type(processor).__name__} puts nothing between a question and its answer; "
            f"pass the token ids of an answer marker as marker=(...)."
        )
    return tuple(marker)


def find_marker(ids: Tensor, marker: tuple[int, ...], is_allowed: Tensor) -> Tensor:
    """`(batch, length)`, True at the last token of every occurrence of a marker.

    Args:
        ids: `(batch, length)`.
        marker: the token ids, at least one.
        is_allowed: `(batch, length)`, False where a marker may not lie (padding, generated tokens).
    """
    size = len(marker)
    found = torch.zeros_like(is_allowed)
    if ids.shape[1] < size:
        return found
    wanted = torch.tensor(marker, device=ids.device)
    matches = (ids.unfold(1, size, 1) == wanted).all(-1) & is_allowed.unfold(1, size, 1).all(-1)
    found[:, size - 1 :] = matches
    return found


def _render(processor: Any, said: list[str], wants_answer: bool) -> str:
    """A conversation that begins with a question and takes turns."""
    roles = ("user", "assistant")
    turns = [
        {"role": roles[place % 2], "content": [{"type": "text", "text": text}]}
        for place, text in enumerate(said)
    ]
    text = render(processor, turns, wants_answer=wants_answer)
    if not all(one in text for one in said):
        raise LvlmAttnError("The chat template leaves out some of what was said.")
    return text


def _ids(processor: Any, text: str) -> list[int]:
    tokenizer = getattr(processor, "tokenizer", processor)
    return cast("list[int]", list(tokenizer(text, add_special_tokens=False)["input_ids"]))


def _holds(ids: list[int], marker: list[int]) -> bool:
    size = len(marker)
    return any(ids[place : place + size] == marker for place in range(len(ids) - size + 1))
