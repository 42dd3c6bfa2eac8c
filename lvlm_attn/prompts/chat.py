"""From prompts to model inputs, and from tokens back to answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lvlm_attn.prompts.messages import read_prompts
from lvlm_attn.prompts.template import asked, render

if TYPE_CHECKING:
    from PIL.Image import Image


def encode_prompts(processor: Any, images: Any, prompts: Any) -> Any:
    """Turns prompts and their images into a left-padded batch.

    Args:
        processor: the model's processor.
        images: see `lvlm_attn.prompts.messages.read_prompts`.
        prompts: see there.

    Returns:
        What the processor returns: tensors by name.

    Raises:
        LvlmAttnError: if there are not as many entries of images as prompts, or one is of another kind.
    """
    chats = read_prompts(processor, images, prompts)
    texts = [chat.text(processor) for chat in chats]
    return encode_texts(processor, [chat.images for chat in chats], texts)


def encode_texts(processor: Any, images: Sequence[Sequence[Image]], texts: Sequence[str]) -> Any:
    """Turns whole prompts, template and image tokens included, into a left-padded batch; nothing is put around them.

    Args:
        processor: the model's processor.
        images: the images of each prompt.
        texts: the prompts.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    full = _without_own_beginning(tokenizer, texts)
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        flat = [image for group in images for image in group]
        if not flat:
            return processor(text=full, return_tensors="pt", padding=True)
        # A flat list is how LLaVA-like processors take several images per prompt and mixed batches.
        return processor(images=flat, text=full, return_tensors="pt", padding=True)
    finally:
        tokenizer.padding_side = side


def _without_own_beginning(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Texts without the beginning of sequence that their template wrote, where the tokenizer puts one in front."""
    begin = getattr(tokenizer, "bos_token", None)
    if not begin or not any(text.startswith(begin) for text in texts):
        return list(texts)
    puts_one = list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    return [text.removeprefix(begin) if puts_one else text for text in texts]


def format_prompt(processor: Any, text: str, images: int = 1) -> str:
    """Puts the processor's chat template around a question with images before it, whatever the question holds.

    Args:
        processor: the model's processor. Without a chat template, LLaVA-1.5's wording is used.
        text: the question.
        images: number of images, which stand before the question.
    """
    return render(processor, [asked(text, images)])


def decode_answers(processor: Any, sequences: Any, prompt_length: int) -> list[str]:
    """Turns generated sequences into text, without prompt and special tokens."""
    tokenizer = getattr(processor, "tokenizer", processor)
    texts = tokenizer.batch_decode(sequences[:, prompt_length:], skip_special_tokens=True)
    return [str(text).strip() for text in texts]
