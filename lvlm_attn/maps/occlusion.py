"""The causal check of a map: what becomes of a word when the model cannot see a region of the image.

Attention says where the model reads from. Whether it needs what it reads there is another question, which is answered
by taking regions away, one by one, and looking at the logit of the word.

Source: occlusion of regions, Zeiler and Fergus (arXiv 1311.2901), section 4.1; taking keys away instead of pixels is
attention knockout, Geva et al. (arXiv 2304.14767).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import Layer
from lvlm_attn.kernels.visibility import ALL, Visibility
from lvlm_attn.maps.maps import Map
from lvlm_attn.maps.onto_image import MapImage, choose_image, map_image, patch_positions
from lvlm_attn.maps.recording import PAUSED
from lvlm_attn.maps.statistics import rank_correlation
from lvlm_attn.prompts.pixels import join_pictures
from lvlm_attn.prompts.repeating import repeated
from lvlm_attn.prompts.request import Request, encoded

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps, Word

_MOST = 12  # regions along a side, where nothing else is asked for


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What each region of an image does for a word.

    Attributes:
        word: the word.
        drop: `(rows, cols)` of regions: the logit of the word (the mean over its tokens) minus what it is without the
            region. Positive where the region speaks for the word.
        logit: the logit with the whole image.
        attention: `(rows, cols)`, what the maps put on each region, as a share of 1.
        correlation: Spearman's rank correlation of the two.
        by: `"keys"` or `"pixels"`.
        image: the picture, as far as it is known.
        view: which view of the maps was compared.
    """

    word: str
    drop: Map
    logit: float
    attention: Map
    correlation: float
    by: str
    image: MapImage
    view: str

    def overlay(self) -> Any:
        """The drop of the logit beside the attention, as a matplotlib figure."""
        from lvlm_attn.maps.draw.occlusion import draw_occlusion

        return draw_occlusion(self)


@dataclass(frozen=True)
class _Hide(Intervention):
    """In every row of the batch, some keys that no other position may attend to."""

    group: Any = None

    def visibility(self, layer: Layer) -> Visibility:
        """Hidden keys are of group 1."""
        return Visibility(self.group.to(layer.layout.device), ((ALL, 0), (ALL, ALL)))


def occlude(
    maps: AttentionMaps,
    word: Word,
    *,
    image: int | None = None,
    by: Literal["keys", "pixels"] = "keys",
    cells: int | None = None,
    batch: int = 16,
) -> Occlusion:
    """Takes regions of an image away, one at a time, and looks at the logit of a word.

    The prompt and the answer up to the word are processed again, with everything that acted when the maps were
    recorded, so the words before stay as they are.

    Args:
        maps: of a single sample, as a recorder made them.
        word: the word, as in `maps[word]`.
        image: which image, where there are several.
        by: `"keys"` hides the keys of a region's patches from all other positions; `"pixels"` paints the region in the
            picture's mean colour, which needs the picture.
        cells: side of a region in patches of the finest level; None makes at most 12 x 12 regions.
        batch: regions per forward pass.

    Returns:
        The drop of the logit by region, beside the attention.

    Raises:
        LvlmAttnError: if the word has no row, or the model, the inputs or the picture are not at hand.

    Example:
        >>> check = lvlm.maps.occlude("dog")  # doctest: +SKIP
        >>> check.correlation  # does attention point where the evidence is?  # doctest: +SKIP
        0.61
    """
    maps._lone("occlude")
    if maps.live is None:
        raise LvlmAttnError(
            "Occlusion runs the model again, and these maps were read from a file or made by hand; record them anew."
        )
    if by not in ("keys", "pixels"):
        raise LvlmAttnError(f"by={by!r} must be 'keys' or 'pixels'.")
    if batch < 1 or (cells is not None and cells < 1):
        raise LvlmAttnError(f"batch={batch} and cells={cells} must be at least 1.")
    model = maps.live.need_model("Occlusion")
    chosen = maps[word]
    number = choose_image(maps, image)
    regions = _Regions.of(maps, number, cells)
    runner = _Runner(maps, chosen.targets[0].tolist(), model, number)
    hidden: list[Sequence[int]] = [[], *regions.positions]
    logits: list[float] = []
    for start in range(0, len(hidden), batch):
        part = hidden[start : start + batch]
        if by == "keys":
            logits += runner.without_keys(part)
        else:
            boxes = [None, *regions.boxes][start : start + batch]
            logits += runner.without_pixels(map_image(maps, number), boxes)
    drop = np.array([logits[0] - value for value in logits[1:]]).reshape(regions.shape)
    mean = chosen.mean()
    attention = np.array([mean[list(places)].sum() for places in regions.positions]).reshape(regions.shape)
    text = word if isinstance(word, str) else word[0]
    known = maps.images[0][number] if maps.images else MapImage()
    return Occlusion(
        text, drop, logits[0], attention, rank_correlation(attention, drop), by, known, maps.view_name
    )


@dataclass(frozen=True)
class _Regions:
    """Regions of an image, row by row.

    Attributes:
        shape: rows and columns of regions.
        positions: the key positions of the patches in each.
        boxes: left, top, right and bottom of each in pixels.
    """

    shape: tuple[int, int]
    positions: list[list[int]]
    boxes: list[tuple[float, float, float, float]]

    @staticmethod
    def of(maps: AttentionMaps, number: int, cells: int | None) -> _Regions:
        """Cuts the finest level into squares of cells; patches of other levels belong where their middle lies."""
        blocks = patch_positions(maps, number)
        known = maps.images[0][number] if maps.images else MapImage()
        if known.levels is None:
            rows, cols = blocks[0].shape
            side = cells or math.ceil(max(rows, cols) / _MOST)
            found = _Regions._empty(rows, cols, side, (0.0, 0.0, float(cols), float(rows)))
            for (row, col), position in np.ndenumerate(blocks[0]):
                found.positions[row // side * found.shape[1] + col // side].append(int(position))
            return found
        fine = known.levels[-1]
        side = cells or math.ceil(max(fine.rows, fine.cols) / _MOST)
        frame = fine.frame
        found = _Regions._empty(
            fine.rows, fine.cols, side, (frame.left, frame.top, frame.right, frame.bottom)
        )
        for level in known.levels:
            high = (level.frame.bottom - level.frame.top) / level.rows
            wide = (level.frame.right - level.frame.left) / level.cols
            for block, top, left in level.blocks:
                for (row, col), position in np.ndenumerate(blocks[block]):
                    x, y = (
                        level.frame.left + (left + col + 0.5) * wide,
                        level.frame.top + (top + row + 0.5) * high,
                    )
                    across = int((x - frame.left) / (frame.right - frame.left) * fine.cols) // side
                    down = int((y - frame.top) / (frame.bottom - frame.top) * fine.rows) // side
                    across = min(max(across, 0), found.shape[1] - 1)
                    down = min(max(down, 0), found.shape[0] - 1)
                    found.positions[down * found.shape[1] + across].append(int(position))
        return found

    @staticmethod
    def _empty(rows: int, cols: int, side: int, frame: tuple[float, float, float, float]) -> _Regions:
        left, top, right, bottom = frame
        shape = (math.ceil(rows / side), math.ceil(cols / side))
        wide, high = (right - left) / cols * side, (bottom - top) / rows * side
        boxes = [
            (
                left + col * wide,
                top + row * high,
                min(left + (col + 1) * wide, right),
                min(top + (row + 1) * high, bottom),
            )
            for row in range(shape[0])
            for col in range(shape[1])
        ]
        return _Regions(shape, [[] for _ in boxes], boxes)


class _Runner:
    """Processes a prompt and its answer once more, in several versions side by side."""

    def __init__(self, maps: AttentionMaps, targets: Sequence[int], model: Any, number: int):
        from lvlm_attn.wrapping import target_of

        live = maps.live
        assert live is not None
        self.maps, self.model, self.number, self.targets = maps, model, number, list(targets)
        self.target = target_of(model, live.processor)
        whole = Request.of_tensors(self.target, live.inputs)
        row = live.row or 0
        self.pictures = whole.pictures[row]
        last = max(self.targets)
        ids = maps.ids[:1, :last].to(model.device)
        valid = maps.layout.is_valid[:1, :last].to(model.device)
        prompt = live.inputs["input_ids"].shape[1]
        tokens: dict[str, Tensor] = {"input_ids": ids, "attention_mask": valid.long()}
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in live.inputs:
                kept = live.inputs[key][row : row + 1, :last]
                tokens[key] = torch.nn.functional.pad(kept, (0, max(last - prompt, 0)))
        pixels = join_pictures([self.pictures], counts="batch_num_images" in live.inputs)
        self.request = Request.of_tensors(self.target, tokens | pixels)

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
            row[self.number] = one
            rows.append(row)
        inputs = repeated(self.request, len(images))
        inputs |= join_pictures(rows, counts="batch_num_images" in self.request.inputs)
        return self._run(inputs)

    def _run(self, inputs: dict[str, Any], *more: Intervention) -> list[float]:
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
                logits = self.model(**inputs, use_cache=False).logits
        finally:
            PAUSED.reset(paused)
            if hasattr(self.target.parts.base, "rope_deltas"):
                cast("Any", self.target.parts.base).rope_deltas = deltas
        rows = torch.tensor(self._queries(), device=logits.device)
        tokens = self.maps.ids[0, self.targets].to(logits.device)
        found = logits[:, rows].float().gather(2, tokens[None, :, None].expand(len(logits), -1, 1))
        return [float(value) for value in found[..., 0].mean(1)]

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
