"""MMA: image tokens attend to the question that follows them.

Source: the modality-mutual attention of AKI (arXiv 2503.02597, ICML 2026) and its released code, which open keys
to image rows in the supervised fine-tuning stage. Where paper and code differ, the modes of `MMA` say which is
which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families.target import Target
from lvlm_attn.hooks.mma.groups import MODES, Spans, groups_of
from lvlm_attn.interventions.base import Situation
from lvlm_attn.interventions.checks import need_choice, need_flag, need_layers, need_number, need_wholes
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.interventions.modality import Made, counted, is_image, once_per_call
from lvlm_attn.interventions.presets import HasPresets, Preset, preset_field
from lvlm_attn.kernels.visibility import ALL, Visibility
from lvlm_attn.prompts.markers import assistant_marker, find_marker

_NEED_MARKER = ("reference", "same_turn")


PRESETS = {
    "paper": Preset({"mode": "paper_general", "strength": 1.0}, "paper, the general formula read literally"),
    "code": Preset(
        {"mode": "reference", "strength": 1.0, "include_marker": True},
        "released code: one image and one turn, up to the first answer marker",
    ),
}
"""Settings by name."""


@dataclass(frozen=True)
class MMA(HasPresets):
    """Modality-mutual attention (experimental on models not trained with it): image tokens attend to the question.

    A causal model encodes the image before it knows what is asked. Here the rows of an image may also attend to text
    that stands after it, in the prompt only; all else stays causal, answers included, so decoding is plain and the
    cache holds image states that know the question. Image tokens do not attend to later images. Newline and class
    tokens count as image. The text an image attends to:

    - `"to_prompt_end"`: all text after it, up to the end of the prompt.
    - `"same_turn"`: text after it up to the end of the user's turn it stands in; replies of earlier turns stay
      hidden from it.
    - `"reference"`: as the released code, one image and one turn: text after it up to the first answer marker.
      A sample without a marker stays causal.
    - `"paper_general"`: the paper's general formula, read literally: text and image attend to each other both ways, so
      text before an image attends to the image that comes later.

    No published number exists for a model that was not trained with it: expect it to do worse until measured.
    `layers` and `strength` soften it.

    **Answers never leak.** What is opened ahead ends where the answer begins, or else a scored answer could be read
    off the image tokens. In `generate` the prompt ends where it is known to. In a plain forward, `labels` say it
    (the first one that is not -100), and so does the answer marker: the last one, unless another image follows it.
    The marker comes from the processor given to `wrap`, or from `marker`. A plain forward with neither is taken as
    a prompt without an answer. With `labels` on the whole prompt, nothing is opened.

    A later turn that reuses the cache cannot reach image tokens that are in it: they keep what they attended to in
    their own turn. A chunked prefill is refused. Sliding windows do not bound what is opened ahead. Image rows depend
    on the question, so cached prefixes must not be shared between questions.

    Args:
        mode: which text an image attends to.
        layers: which layers; None for all, as trained.
        strength: factor in [0, 1] on the exponentiated scores of the keys ahead; 0 changes nothing, 1 is MMA.
        include_marker: whether the answer marker itself is attended to; the released code does.
        marker: token ids of the answer marker; None takes them from the processor's chat template.
        preset: `"auto"`, or a name of `PRESETS`, for parameters that are left out.

    Raises:
        LvlmAttnError: for an unknown mode, a strength outside [0, 1], a mode that needs a marker without one, or,
            in mode `"reference"`, several images or no marker in any prompt.

    Example:
        >>> str(MMA(mode="same_turn", layers="16:", strength=0.5))
        'mma:mode=same_turn,layers=16:,strength=0.5'
    """

    name: ClassVar[str] = "mma"
    needs_image: ClassVar[bool] = True

    mode: str = "to_prompt_end"
    layers: Layers = None
    strength: float = 1.0
    include_marker: bool = True
    marker: Sequence[int] | None = None
    preset: str = preset_field()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __post_init__(self) -> None:
        self.apply_preset()
        need_choice(self, "mode", MODES)
        need_number(self, "strength", least=0, most=1, remark="0 changes nothing")
        need_flag(self, "include_marker")
        if self.marker is not None:
            need_wholes(
                self,
                "marker",
                example="(32001,)",
                remark="token ids; leave it out to read them off the chat template",
            )
        need_layers(self)

    def is_neutral(self) -> bool:
        """Whether no key is ever opened."""
        return self.strength == 0

    def fit(self, target: Target) -> Self:
        """Chooses the layers, and finds the answer marker of the processor.

        Raises:
            UnsupportedError: if images attend to the question in the model as it is.
        """
        config = cast("Any", target.parts.base).config
        if not self.is_neutral() and target.family.mask_of(config) == "bidirectional_prompt":
            raise UnsupportedError(
                f"MMA opens the question to image tokens, and in {target.family.title} the whole prompt attends to "
                f"itself already; there is nothing to open."
            )
        marker = self.marker
        needs_marker = self.mode in _NEED_MARKER or not self.include_marker
        if marker is None and target.processor is not None:
            try:
                marker = assistant_marker(target.processor)
            except LvlmAttnError:
                if needs_marker:
                    raise
        if marker is None and needs_marker and not self.is_neutral():
            what = f"mode {self.mode!r}" if self.mode in _NEED_MARKER else "include_marker=False"
            raise LvlmAttnError(
                f"MMA: {what} has to know where answers begin; pass wrap(..., processor=processor), or the token "
                f"ids of the answer marker as MMA(marker=(...))."
            )
        return dataclasses.replace(super().fit(target), marker=marker)

    def refuse(self, situation: Situation) -> str | None:
        """Image rows cannot attend to a question that comes in a later chunk."""
        if situation == Situation.CHUNKED_PREFILL:
            return (
                "MMA lets image tokens attend to the question after them, so it needs the prompt in one pass; pass "
                "prefill_chunk_size=None."
            )
        return None

    def visibility(self, layer: Layer) -> Visibility | None:
        """Image tokens of the prompt attend to text after them."""
        return once_per_call(layer, lambda: self._make(layer)) if layer.is_prompt else None

    def _make(self, layer: Layer) -> Made:
        call, layout, here = layer.call, layer.layout, layer.queries
        is_text = (layout.is_text & layout.is_prompt)[:, here]
        image = is_image(layout)[:, here]
        is_end = torch.zeros_like(is_text)
        if self.marker is not None and call.ids is not None:
            is_end = find_marker(call.ids.to(is_text.device), tuple(self.marker), is_text)
        if self.mode == "reference":
            self._check_reference(layer, image, is_end)
        is_answer = torch.zeros_like(is_text)
        if call.labels is not None:
            is_answer = (call.labels.to(is_text.device) != -100) & (is_text | image)
        spans = Spans(is_text, image, is_end, is_answer, len(self.marker or ()), self.include_marker)
        group, later, opened = groups_of(self.mode, spans)
        # Keys that are in the cache are all earlier, so their group is of no consequence.
        group = torch.nn.functional.pad(group, (call.start, 0))
        every = ((ALL,) * len(later),) * len(later)
        visibility = Visibility(group, earlier=every, later=later, strength=self.strength)
        return Made(visibility, ((opened > 0).sum(), opened.sum()))

    def _check_reference(self, layer: Layer, image: torch.Tensor, is_end: torch.Tensor) -> None:
        several = [row for row, grids in enumerate(layer.layout.grids) if len(grids) > 1]
        if several:
            raise LvlmAttnError(
                f"MMA: mode 'reference' is for one image per prompt, and row {several[0]} has "
                f"{len(layer.layout.grids[several[0]])}; use mode='to_prompt_end' or 'same_turn'."
            )
        has_image = image.any(1)
        if bool(has_image.any()) and not bool((is_end.any(1) & has_image).any()):
            raise LvlmAttnError(
                f"MMA: the answer marker {tuple(self.marker or ())} stands in no prompt of the batch, so mode "
                f"'reference' would open nothing; pass the ids of the marker your prompts have as marker=(...)."
            )

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Per layer: how many rows attend ahead, and how many (query, key) pairs that opened."""
        return counted(stats, ("rows", "opened"))
