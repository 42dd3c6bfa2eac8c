"""From images and questions to model inputs, and from tokens back to answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lvlm_attn.errors import LvlmAttnError


def encode_prompts(processor: Any, images: Sequence[Any] | None, prompts: Sequence[str] | str | None) -> Any:
    """Turns questions and their images into a left-padded batch.

    Args:
        processor: the model's processor.
        images: per prompt an image, a list of images, or None; None for no images at all.
        prompts: questions; a single one may be a plain string.

    Returns:
        What the processor returns: tensors by name.

    Raises:
        LvlmAttnError: if there are not as many entries of images as prompts.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts or ())
    groups = image_groups(images, texts)
    full = [format_prompt(processor, text, len(group)) for text, group in zip(texts, groups)]
    tokenizer = getattr(processor, "tokenizer", processor)
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        flat = [image for group in groups for image in group]
        if not flat:
            return processor(text=full, return_tensors="pt", padding=True)
        # A flat list is how LLaVA-like processors take several images per prompt and mixed batches.
        return processor(images=flat, text=full, return_tensors="pt", padding=True)
    finally:
        tokenizer.padding_side = side


def image_groups(images: Sequence[Any] | None, texts: Sequence[str]) -> list[list[Any]]:
    """Brings images into one list per prompt.

    Raises:
        LvlmAttnError: if there are no prompts, or not as many entries of images as prompts.
    """
    if not texts:
        raise LvlmAttnError("generate got images but no prompts; pass prompts=[...].")
    if images is None:
        return [[] for _ in texts]
    entries = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(entries) != len(texts):
        raise LvlmAttnError(
            f"generate got {len(entries)} images and {len(texts)} prompts; pass one entry of images per prompt "
            f"(a list of images, or None, for a prompt with several or none)."
        )
    return [
        [] if entry is None else list(entry) if isinstance(entry, (list, tuple)) else [entry]
        for entry in entries
    ]


def format_prompt(processor: Any, text: str, images: int = 1, *, system: str | None = None) -> str:
    """Puts the processor's chat template around a question, unless it holds the image token already.

    Args:
        processor: the model's processor. Without a chat template, LLaVA-1.5's wording is used.
        text: the question.
        images: number of images, which stand before the question.
        system: a system message, for templates that show one.
    """
    token = getattr(processor, "image_token", "<image>")
    if token in text:
        return text
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        turns = [{"role": "user", "content": content}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        rendered = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return str(rendered)
    begin = "" if system is None else f"{system} "
    return f"{begin}USER: {(token + chr(10)) * images}{text} ASSISTANT:"


def decode_answers(processor: Any, sequences: Any, prompt_length: int) -> list[str]:
    """Turns generated sequences into text, without prompt and special tokens."""
    tokenizer = getattr(processor, "tokenizer", processor)
    texts = tokenizer.batch_decode(sequences[:, prompt_length:], skip_special_tokens=True)
    return [str(text).strip() for text in texts]
