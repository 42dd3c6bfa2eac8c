"""A prompt and its answer processed once more, several times side by side, with regions of an image taken away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.devices import execution_device
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.kernels.visibility import ALL, Visibility
from lvlm_attn.maps.onto_image import MapImage
from lvlm_attn.maps.recording import PAUSED
from lvlm_attn.measures.diagnostics import Divergence, vhd
from lvlm_attn.prompts.pixels import join_pictures
from lvlm_attn.prompts.repeating import repeated
from lvlm_attn.prompts.request import Request, encoded
from lvlm_attn.prompts.videos import join_videos

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps


@dataclass(frozen=True)
class _Hide(Intervention):
    """In every row of the batch, some keys that no other position may attend to."""

    group: Any = None

    def visibility(self, layer: Layer) -> Visibility:
        """Hidden keys are of group 1."""
        return Visibility(self.group.to(layer.layout.device), ((ALL, 0), (ALL, ALL)))


class Runner:
    """Processes a prompt and its answer once more, in several versions side by side."""

    def __init__(self, maps: AttentionMaps, targets: Sequence[int], model: Any, number: int):
        from lvlm_attn.wrapping import target_of

        live = maps.live
        assert live is not None
        self.maps, self.model, self.targets = maps, model, list(targets)
        self.target = target_of(model, live.processor)
        whole = Request.of_tensors(self.target, live.inputs)
        row = live.row or 0
        self.pictures = whole.pictures[row]
        # Pictures are numbered without the videos among them.
        self.place = sum(not grid.is_video for grid in maps.layout.grids[0][:number])
        last = max(self.targets)
        ids = maps.ids[:1, :last].to(execution_device(model))
        valid = maps.layout.is_valid[:1, :last].to(execution_device(model))
        prompt = live.inputs["input_ids"].shape[1]
        tokens: dict[str, Tensor] = {"input_ids": ids, "attention_mask": valid.long()}
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in live.inputs:
                kept = live.inputs[key][row : row + 1, :last]
                tokens[key] = torch.nn.functional.pad(kept, (0, max(last - prompt, 0)))
        pixels = join_pictures([self.pictures], counts="batch_num_images" in live.inputs)
        videos = join_videos([whole.videos[row]])
        self.request = Request.of_tensors(self.target, tokens | pixels | videos)

    def without_keys(self, hidden: Sequence[Sequence[int]]) -> list[float]:
        """Logits of the word, with some key positions hidden in each version."""
        group = torch.zeros(len(hidden), self.request.inputs["input_ids"].shape[1], dtype=torch.long)
        for row, places in enumerate(hidden):
            group[row, list(places)] = 1
        return self._run(repeated(self.request, len(hidden)), _Hide(group=group))

    def without_pixels(self, known: MapImage, boxes: Sequence[Any]) -> list[float]:
        """Logits of the word, with a box of the picture painted over in each version."""
        if known.picture is None:
            raise LvlmAttnError(
                "Painting regions over needs the picture itself; use by='keys', which does not."
            )
        images = [_painted(known.picture, box) for box in boxes]
        processor = self.target.processor
        token = getattr(processor, "image_token", "<image>")
        made = Request.of_tensors(
            self.target, encoded(self.target, [[one] for one in images], [token] * len(images))
        )
        fresh = [row[0] for row in made.pictures]
        rows = []
        for one in fresh:
            row = list(self.pictures)
            row[self.place] = one
            rows.append(row)
        inputs = repeated(self.request, len(images))
        inputs |= join_pictures(rows, counts="batch_num_images" in self.request.inputs)
        return self._run(inputs)

    def divergence(self, layers: Layers, power: int) -> Divergence:
        """Vision-aware head divergence of the query before the token."""
        with self._acting():
            return vhd(self.model, dict(self.request.inputs), layers=layers, power=power)

    def _run(self, inputs: dict[str, Any], *more: Intervention) -> list[float]:
        with self._acting(*more):
            logits = self.model(**inputs, use_cache=False).logits
        rows = torch.tensor(self._queries(), device=logits.device)
        tokens = self.maps.ids[0, self.targets].to(logits.device)
        found = logits[:, rows].float().gather(2, tokens[None, :, None].expand(len(logits), -1, 1))
        return [float(value) for value in found[..., 0].mean(1)]

    @contextmanager
    def _acting(self, *more: Intervention) -> Iterator[None]:
        """What acted when the maps were recorded acts, and more; recorders leave this out."""
        from lvlm_attn.wrapping import acting_on, wrap

        live = self.maps.live
        assert live is not None
        present = acting_on(self.target)
        missing = [item for item in live.interventions if not any(item is other for other in present)]
        paused = PAUSED.set(True)
        deltas = getattr(self.target.parts.base, "rope_deltas", None)
        try:
            with (
                wrap(self.model, *missing, *more, processor=live.processor, no_image="pass"),
                torch.no_grad(),
            ):
                yield
        finally:
            PAUSED.reset(paused)
            if hasattr(self.target.parts.base, "rope_deltas"):
                cast("Any", self.target.parts.base).rope_deltas = deltas

    def _queries(self) -> list[int]:
        """The position before each token of the word, padding passed over."""
        valid = self.maps.layout.is_valid[0]
        return [max(place for place in range(target) if bool(valid[place])) for target in self.targets]


def _painted(picture: Any, box: tuple[float, float, float, float] | None) -> Any:
    """The picture with a box in its mean colour."""
    copy = picture.convert("RGB")
    if box is not None:
        copy = copy.copy()
        colour = tuple(int(value) for value in np.asarray(copy).reshape(-1, 3).mean(0))
        left, top, right, bottom = (round(value) for value in box)
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, copy.width), min(bottom, copy.height)
        if right > left and bottom > top:
            copy.paste(colour, (left, top, right, bottom))
    return copy
