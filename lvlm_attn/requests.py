"""What one `lvlm.generate` asks of the model, so that methods can look at the image and ask again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.prompting import encode_prompts, format_prompt, image_groups

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_attn.intervention import Target
    from lvlm_attn.layout import PromptLayout


@dataclass(frozen=True, eq=False)
class Request:
    """Some prompts with their images, as words and pictures where they were given so, and as tensors.

    Attributes:
        target: the model.
        inputs: what `model.generate` takes, padded on the left: `input_ids`, `attention_mask`, pixels, sizes.
        images: the images of each row, or None if only tensors were given.
        texts: the full prompt of each row, chat template and image tokens included, or None.
        questions: what the user asked in each row, without the template, or None.
        details: what methods found out on the way (maps, masks, boxes), by the name of the method; shown as
            `lvlm.details`.

    Example:
        >>> request = Request.of_prompts(target, [image], ["Is there a dog?"])  # doctest: +SKIP
        >>> request.with_images([[darker]]).inputs["pixel_values"].shape == request.inputs["pixel_values"].shape
        True
    """

    target: Target
    inputs: dict[str, Tensor]
    images: list[list[Image]] | None = None
    texts: list[str] | None = None
    questions: list[str] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of_prompts(
        target: Target, images: Sequence[Any] | None, prompts: Sequence[str] | str | None
    ) -> Request:
        """A request made of images and prompts; see `Wrapped.generate`.

        Raises:
            LvlmAttnError: without a processor, or if images and prompts do not go together.
        """
        if target.processor is None:
            raise LvlmAttnError(
                "lvlm.generate(images=..., prompts=...) needs the processor; pass wrap(..., processor=processor)."
            )
        questions = [prompts] if isinstance(prompts, str) else list(prompts or ())
        groups = image_groups(images, questions)
        texts = [format_prompt(target.processor, text, len(row)) for text, row in zip(questions, groups)]
        return Request(target, encoded(target, groups, texts), groups, texts, questions)

    @staticmethod
    def of_tensors(target: Target, inputs: Mapping[str, Any]) -> Request:
        """A request made of what `model.generate` takes; the images themselves are not known."""
        if "input_ids" not in inputs:
            raise LvlmAttnError("lvlm.generate needs input_ids, or images= and prompts=.")
        return Request(target, dict(inputs))

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.inputs["input_ids"].shape[0]

    @cached_property
    def layout(self) -> PromptLayout:
        """What every position of the prompts is."""
        from lvlm_attn.models import Evidence, prompt_layout

        parts = self.target.parts
        evidence = Evidence(
            config=cast("Any", parts.base).config,
            input_ids=self.inputs["input_ids"],
            call=self.inputs,
            newline=parts.newline,
        )
        return prompt_layout(self.target.family, evidence, self.inputs.get("attention_mask"))

    def need_images(self, title: str) -> list[list[Image]]:
        """The images of each row.

        Raises:
            LvlmAttnError: naming the method `title`, if only tensors are known.
        """
        if self.images is None:
            raise LvlmAttnError(
                f"{title} has to see the image itself, which tensors do not hold; call "
                f"lvlm.generate(images=[...], prompts=[...])."
            )
        return self.images

    def with_images(
        self, images: Sequence[Sequence[Image]], *, texts: Sequence[str] | None = None
    ) -> Request:
        """The same prompts about other images; `texts` replaces the full prompts where their number changes."""
        if self.texts is None and texts is None:
            raise LvlmAttnError("This request holds tensors only; its images cannot be exchanged.")
        groups = [list(row) for row in images]
        full = list(texts if texts is not None else cast("list[str]", self.texts))
        return dataclasses.replace(self, inputs=encoded(self.target, groups, full), images=groups, texts=full)

    def with_texts(self, texts: Sequence[str]) -> Request:
        """Other full prompts (template and image tokens included) about the same images."""
        return self.with_images(self.need_images("A method"), texts=texts)


def encoded(target: Target, groups: Sequence[Sequence[Image]], texts: Sequence[str]) -> dict[str, Tensor]:
    """Processor outputs on the model's device, pixels in its dtype."""
    model = cast("Any", target.model)
    inputs = dict(
        encode_prompts(target.processor, [list(row) for row in groups], list(texts)).to(model.device)
    )
    for key, value in inputs.items():
        if torch.is_tensor(value) and value.is_floating_point():
            inputs[key] = value.to(model.dtype)
    return inputs
