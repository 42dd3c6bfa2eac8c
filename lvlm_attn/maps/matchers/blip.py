"""An image-text matcher explains what it looked at: Grad-CAM on BLIP's cross-attention.

Source: An et al., AGLA (arXiv 2406.12718), after Tiong et al., "Plug-and-Play VQA" (arXiv 2210.08773); the matcher
is BLIP (arXiv 2201.12086) in its retrieval form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.maps import Map

if TYPE_CHECKING:
    from PIL.Image import Image

WEIGHTS = "Salesforce/blip-itm-large-coco"
_MOST_TOKENS, _MOST_WORDS = 35, 50


class BlipMatcher:
    """Finds the patches that make BLIP say that an image and a prompt match.

    Args:
        model: a `BlipForImageTextRetrieval`.
        processor: its `BlipProcessor`.

    Example:
        >>> matcher = BlipMatcher.load()  # doctest: +SKIP
        >>> relevance, similarity = matcher(image, "Is there a dog in the image?")  # doctest: +SKIP
        >>> relevance.shape  # doctest: +SKIP
        (24, 24)
    """

    def __init__(self, model: Any, processor: Any):
        self.model = model.eval()
        self.processor = processor

    @staticmethod
    def load(name: str = WEIGHTS, device: torch.device | str = "cpu") -> BlipMatcher:
        """Loads a matcher by its hub id or from a folder.

        Raises:
            LvlmAttnError: if it cannot be loaded.
        """
        from transformers import AutoProcessor, BlipForImageTextRetrieval

        try:
            processor = AutoProcessor.from_pretrained(name)
            model = BlipForImageTextRetrieval.from_pretrained(name)
        except (OSError, ValueError, ImportError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
            raise LvlmAttnError(
                f"The matcher {name!r} could not be loaded ({first}); download it once, give the folder of a "
                f"BlipForImageTextRetrieval, or use matcher='self', which needs no second model."
            ) from error
        return BlipMatcher(model.to(device), processor)

    def __call__(self, image: Image, prompt: str) -> tuple[Map, float]:
        """Relevance `(rows, cols)` of the patches, and the similarity of image and prompt."""
        return self.match([image], [prompt])[0]

    def match(self, images: Sequence[Image], prompts: Sequence[str]) -> list[tuple[Map, float]]:
        """The same for several pairs at once; each comes out as it would alone."""
        device = next(self.model.parameters()).device
        pixels = self.processor.image_processor(
            [image.convert("RGB") for image in images], return_tensors="pt"
        )
        tokens = self.processor.tokenizer(
            [caption_text(prompt) for prompt in prompts],
            padding=True,
            truncation=True,
            max_length=_MOST_TOKENS,
            return_tensors="pt",
        ).to(device)
        # Gradients are needed here, also where the caller has switched them off for good.
        with torch.inference_mode(False):
            relevance, similarity = grad_cam(
                self.model,
                pixels["pixel_values"].clone().to(device, self.model.dtype),
                tokens["input_ids"].clone(),
                tokens["attention_mask"].clone(),
            )
        return [(one.numpy(), float(same)) for one, same in zip(relevance.double().cpu(), similarity)]


def caption_text(prompt: str) -> str:
    """A prompt as BLIP was trained to read text: lower case, little punctuation, at most 50 words.

    Example:
        >>> caption_text('Is there a "Dog" (in the image)?')
        'is there a dog in the image ?'
    """
    spaced = re.sub(r"[.!\"()*#:;~]", " ", prompt.lower())
    return " ".join(spaced.split()[:_MOST_WORDS])


def grad_cam(model: Any, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of the words on the patches, weighted by what it does for the match.

    The middle cross-attention layer is read: `mean over heads and words of max(0, d match / d attention) *
    attention`. Words are the tokens between the first and the last.

    Args:
        model: a `BlipForImageTextRetrieval`.
        pixels: `(batch, 3, height, width)`.
        input_ids: `(batch, length)` as the tokenizer gives them, padded on the right.
        attention_mask: `(batch, length)`.

    Returns:
        Relevance `(batch, rows, cols)`, at least 0, and the cosine similarity `(batch,)` of image and text.
    """
    layers = model.text_encoder.encoder.layer
    kept: list[Tensor] = []
    with torch.no_grad():
        image = model.vision_model(pixel_values=pixels).last_hidden_state
        similarity = _similarity(model, image, input_ids, attention_mask)
    # The matching head reads from a token of its own; transformers leaves the plain first token in its place.
    matching = input_ids.clone()
    matching[:, 0] = model.text_encoder.config.vocab_size - 1

    def keep(module: Any, args: Any, output: tuple[Tensor, ...]) -> None:
        kept.append(output[1])

    handle = layers[len(layers) // 2].crossattention.self.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            leaf = image.detach().clone().requires_grad_()
            hidden = model.text_encoder(
                input_ids=matching,
                attention_mask=attention_mask,
                encoder_hidden_states=leaf,
                encoder_attention_mask=torch.ones(leaf.shape[:-1], dtype=torch.long, device=leaf.device),
            ).last_hidden_state
            match = model.itm_head(hidden[:, 0])[:, 1].sum()
            attention = kept[0]
            (gradient,) = torch.autograd.grad(match, attention)
    finally:
        handle.remove()
    relevance = (attention.detach() * gradient.clamp(min=0)).float().mean(1)[:, :, 1:]
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    lengths = attention_mask.sum(1, keepdim=True)
    is_word = ((place >= 1) & (place < lengths - 1)).to(relevance)
    pooled = (relevance * is_word[..., None]).sum(1) / is_word.sum(1, keepdim=True).clamp(min=1)
    vision = model.config.vision_config
    cols = vision.image_size // vision.patch_size
    return pooled.view(len(pooled), -1, cols), similarity


def _similarity(model: Any, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    text = model.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    pictured, written = model.vision_proj(image[:, 0]), model.text_proj(text[:, 0])
    return torch.nn.functional.cosine_similarity(pictured.float(), written.float(), dim=-1)
