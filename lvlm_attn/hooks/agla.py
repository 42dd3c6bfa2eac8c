"""AGLA: adds the logits of a view of the image in which only what the prompt is about is left.

Source: An et al., "AGLA: Mitigating Object Hallucinations in Large Vision-Language Models with Assembly of Global
and Local Attention", arXiv 2406.12718, and its released code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from torch import Tensor

from lvlm_attn.decoding.contrast import cut
from lvlm_attn.errors import LvlmAttnError, closest, shown
from lvlm_attn.families.devices import execution_device
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.checks import MOST_WORDS, need_choice, need_flag, need_layers, need_number
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.interventions.presets import HasPresets, Preset, preset_field
from lvlm_attn.maps.crops import blacken, kept_share, relevance_mask, smoothed
from lvlm_attn.maps.maps import Map, Mask
from lvlm_attn.maps.reading import scaled_layers

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_attn.prompts.request import Request

Matcher = Callable[["Image", str], tuple[Any, float]]
_KINDS = ("blip", "self")
_SQUARE = (384, 384)


@dataclass(frozen=True, eq=False)
class LocalView:
    """What AGLA made of one image.

    Attributes:
        relevance: `(height, width)`, high where the prompt is about the image; NaN where nothing is known.
        similarity: how well image and prompt match, at most 1.
        kept_share: the share of the image that was to be kept.
        mask: `(height, width)`, True at the pixels that are kept.
        image: the masked view.
    """

    relevance: Map
    similarity: float
    kept_share: float
    mask: Mask
    image: Image


PRESETS = {
    "paper": Preset(
        {"alpha": 2.0, "beta": 0.5, "local_steps": "all", "squash_384": False},
        "released script for POPE with LLaVA-1.5 (alpha, beta), decoding as the paper describes it",
        {"do_sample": True},
    ),
    "code": Preset(
        {"alpha": 2.0, "beta": 0.5, "local_steps": "first", "squash_384": True},
        "released code: both views share one cache from the second token on, and the local one is a square",
        {"do_sample": True},
    ),
}
"""Settings by name. Nothing is published by model."""


@dataclass(frozen=True)
class AGLA(HasPresets):
    """Assembly of global and local attention.

    A matcher says which part of the image the question is about and how well the two match. The rest of the
    image is made black, at most half of it, and the logits of that view, times `alpha`, are added to those of
    the image; only tokens count whose probability on the image itself is at least `beta` times the highest.
    Both views are decoded in one batch. It runs in `lvlm.generate(images=..., prompts=...)`;
    `lvlm.details["AGLA"][row][image]` holds relevance, similarity, mask and view. The matcher sees the question
    alone, without template and image tokens. Rows without an image keep their logits, sharpened like the others.

    Adding logits also sharpens the distribution, by up to `1 + alpha`, and under sampling a large part of the
    effect is that; `control=True` shows how much. In the released code the local view acts on the first token only,
    because the two views share one cache from then on (VCD's loop, which it is made of, was corrected in July 2024;
    this one was not); `local_steps="first"` does the same.

    Args:
        alpha: weight of the masked view.
        beta: least probability relative to the most likely token, in [0, 1]; 0 leaves out none.
        local_steps: `"all"` uses the masked view at every token, `"first"` at the first one only; later ones then
            count the image's logits `1 + alpha` times.
        matcher: `"blip"`, the paper's (`Salesforce/blip-itm-large-coco`); `"self"`, the model itself by CARVE's
            contrast map, which is ours and needs no second model; the hub id or folder of another
            `BlipForImageTextRetrieval`; or a function `(image, prompt) -> (relevance, similarity)`. A
            relevance of the image's own shape is taken as it is; a coarser grid over the whole image is
            enlarged and blurred. NaN marks pixels that are to be kept and not counted.
        control: leave the view unmasked.
        squash_384: make the view a square of 384 pixels without keeping the aspect ratio, as the released code
            does. It then shows another field of view than the image itself.
        layers: for `matcher="self"`, which layers; None is 20 to 25 of 32, scaled to the model.
        preset: `"auto"`, which is `"paper"` here, or a name of `PRESETS`, for parameters that are left out.

    Raises:
        LvlmAttnError: if a parameter is out of its range; on entering a wrap, if the matcher cannot be loaded.

    Example:
        >>> str(AGLA(alpha=1, matcher="self"))
        'agla:alpha=1.0,matcher=self'
    """

    name: ClassVar[str] = "agla"
    needs_image: ClassVar[bool] = True
    _loaded: ClassVar[Any] = None

    alpha: float = 2.0
    beta: float = 0.5
    local_steps: Literal["all", "first"] = "all"
    matcher: str | Matcher = "blip"
    control: bool = False
    squash_384: bool = False
    layers: Layers = None
    preset: str = preset_field()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __post_init__(self) -> None:
        self.apply_preset()
        need_number(self, "alpha", least=0)
        need_number(self, "beta", least=0, most=1)
        need_choice(self, "local_steps", ("all", "first"))
        need_flag(self, "control")
        need_flag(self, "squash_384")
        need_layers(self)
        if callable(self.matcher):
            return
        is_text = isinstance(self.matcher, str) and len(self.matcher) <= MOST_WORDS
        if not is_text or not (self.matcher in _KINDS or "/" in self.matcher):
            near = closest(self.matcher, _KINDS) if is_text else ""
            raise LvlmAttnError(
                f"AGLA: matcher={shown(self.matcher)} must be blip, self, a hub id or folder with a slash in it, or a "
                f"function (image, prompt) -> (relevance, similarity).{near}"
            )

    def is_neutral(self) -> bool:
        """Whether no logit ever changes."""
        return self.alpha == 0 and self.beta == 0

    def default_layers(self, target: Target) -> Layers:
        """Layers 20 to 25 of 32, scaled to the model."""
        return scaled_layers(20, 25, target.layers)

    def fit(self, target: Target) -> Self:
        """Chooses the layers and loads the matcher."""
        fitted = super().fit(target)
        if (
            isinstance(self.matcher, str)
            and self.matcher != "self"
            and not (self.control or self.is_neutral())
        ):
            from lvlm_attn.maps.matchers.blip import WEIGHTS, BlipMatcher

            device = execution_device(target.model)
            found = BlipMatcher.load(WEIGHTS if self.matcher == "blip" else self.matcher, device)
            object.__setattr__(fitted, "_loaded", found)
        return fitted

    def views(self, request: Request) -> Sequence[Request]:
        """The same questions about the masked images."""
        groups = request.need_images(self.title)
        if self.control:
            return [request.with_images(groups)]
        seen = [
            [self._local(image, *match) for image, match in zip(images, matches)]
            for images, matches in zip(groups, self._matches(request))
        ]
        request.details[self.title] = seen
        return [request.with_images([[item.image for item in row] for row in seen])]

    def fuse(self, main: Tensor, views: Sequence[Tensor], step: int) -> Tensor:
        """Adds the logits of the view, and leaves out tokens that are not plausible on the image."""
        local = main if step > 0 and self.local_steps == "first" else views[0]
        return assemble_logits(main, local, self.alpha, self.beta)

    def _matches(self, request: Request) -> list[list[tuple[Any, float]]]:
        if self.matcher == "self":
            from lvlm_attn.maps.matchers.self_matcher import self_match

            return list(self_match(request, self.layers))  # type: ignore[arg-type]
        matcher = self._loaded if isinstance(self.matcher, str) else self.matcher
        if matcher is None:
            raise LvlmAttnError(
                "AGLA loads its matcher when a wrap is entered; use it inside `with la.wrap(...)`."
            )
        groups = request.need_images(self.title)
        return [
            [matcher(image, question) for image in images]
            for images, question in zip(groups, bare_questions(request))
        ]

    def _local(self, image: Image, relevance: Any, similarity: Any) -> LocalView:
        values = np.asarray(relevance, dtype=np.float64)
        same = float(similarity)
        if values.ndim != 2 or 0 in values.shape or not same <= 1:
            raise LvlmAttnError(
                f"AGLA: the matcher gave a relevance of shape {values.shape} and a similarity of {same:g}; it must "
                f"give (height, width) and a number of at most 1."
            )
        if self.squash_384:
            image = image.convert("RGB").resize(_SQUARE)
        shape = (image.height, image.width)
        values = values if values.shape == shape else smoothed(values, image.size)
        share = kept_share(same)
        mask = relevance_mask(values, share)
        return LocalView(values, same, share, mask, blacken(image, mask))


def assemble_logits(main: Tensor, local: Tensor, alpha: float, beta: float) -> Tensor:
    """`main + alpha * local` where `main` is within `ln(beta)` of its maximum, minus infinity elsewhere.

    Raw logits do what log-probabilities would: they differ by a constant per row.

    Args:
        main: `(batch, vocabulary)`.
        local: `(batch, vocabulary)`.
        alpha: weight of `local`.
        beta: least probability relative to the highest, in [0, 1].

    Example:
        >>> import torch
        >>> assemble_logits(torch.tensor([[2.0, 1.9, 0.0]]), torch.tensor([[0.0, 1.0, 9.0]]), 2.0, 0.5)[0].tolist()
        [2.0, 3.9000000953674316, -inf]
    """
    return cut(main + alpha * local if alpha else main, main, beta)


def bare_questions(request: Request) -> list[str]:
    """What was asked in each row, without image tokens."""
    token = getattr(request.target.processor, "image_token", "<image>")
    return [question.replace(token, " ").strip() for question in request.questions or request.texts or ()]
