"""What a harness asks, as the images and the prompt that a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lvlm_attn.errors import LvlmAttnError

if TYPE_CHECKING:
    from PIL.Image import Image

Turn = Mapping[str, Any]
"""`{"role": ..., "content": [{"type": "image", "image": picture}, {"type": "text", "text": words}, ...]}`."""


def images_and_prompt(processor: Any, turns: Sequence[Turn], where: str) -> tuple[list[Image], str]:
    """The images of a conversation and its prompt.

    One question with its images in front stays a question in plain words, so that methods which ask about the question
    itself see it; any other conversation is written out by the processor's chat template.

    Args:
        processor: the model's processor.
        turns: the conversation.
        where: how messages name what asks it.

    Raises:
        LvlmAttnError: videos or sounds, or a conversation that the processor cannot write out.
    """
    items = [item for turn in turns for item in turn["content"]]
    other = next((item["type"] for item in items if item["type"] not in ("image", "text")), None)
    if other is not None:
        raise LvlmAttnError(f"{where} holds {other}; only images and text can be asked about.")
    images = [item["image"] for item in items if item["type"] == "image"]
    kinds = [item["type"] for item in items]
    is_question = (
        len(turns) == 1 and turns[0]["role"] == "user" and kinds == ["image"] * len(images) + ["text"]
    )
    if is_question:
        return images, str(items[-1]["text"])
    if not images:
        raise LvlmAttnError(
            f"{where} is a conversation of several turns without an image, which is not asked here."
        )
    if not getattr(processor, "chat_template", None):
        raise LvlmAttnError(
            f"{where} is no single question, and {type(processor).__name__} has no chat template to write it out."
        )
    bare = [
        {
            **turn,
            "content": [{"type": "image"} if item["type"] == "image" else item for item in turn["content"]],
        }
        for turn in turns
    ]
    return images, str(processor.apply_chat_template(bare, add_generation_prompt=True, tokenize=False))


def with_placeholders(text: str, images: Sequence[Image], where: str, token: str = "<image>") -> list[Turn]:
    """A question as one turn; images go where the text says so, else in front.

    Raises:
        LvlmAttnError: the text has places for another number of images.
    """
    pieces = text.split(token)
    places = len(pieces) - 1
    if places == 0:
        content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": text}]
        return [{"role": "user", "content": content}]
    if places != len(images):
        raise LvlmAttnError(f"{where} has {len(images)} images and {places} places for them ({token}).")
    content = []
    for piece, image in zip(pieces, [*images, None]):
        if piece.strip():
            content.append({"type": "text", "text": piece})
        if image is not None:
            content.append({"type": "image", "image": image})
    return [{"role": "user", "content": content}]
