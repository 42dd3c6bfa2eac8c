"""Where everything stands in a prompt: text, image patches, fillers, padding and generated tokens.

A vision-language model is given one sequence per sample. `PromptLayout` says what each position of that sequence
is and, for image patches, which image, block, row and column it shows. It is built once per prompt from the
token ids and the grids of the images, and grows as tokens are generated. No span is ever assumed: a position
belongs to an image because its id is the image token, and to a place in the image because of its order among
the tokens of that image. A video is laid out as an image whose blocks are its frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.layout.fields import Piece, fields_of
from lvlm_attn.layout.grids import Block, ImageGrid, Kind

__all__ = ["Block", "ImageGrid", "Kind", "PromptLayout"]

_REMEDY = "build the ids and the images with the same processor call, and pass both unchanged"


@dataclass(frozen=True, eq=False)
class PromptLayout:
    """What every position of a batch of sequences is.

    Attributes:
        kind: `(batch, length)`, the `Kind` of each position.
        image: `(batch, length)`, index of the image or video within its sample, for patches and fillers; -1 elsewhere.
        block: `(batch, length)`, index of the block within its image, for patches; -1 elsewhere.
        row: `(batch, length)`, row within the block, for patches; -1 elsewhere.
        col: `(batch, length)`, column within the block, for patches; -1 elsewhere.
        grids: the image grids of each sample, in prompt order; `grids[sample][image].blocks[block]`.
        unfinished: per sample, how many tokens of its last image have been seen, where the sequence ends
            inside that image (chunked prefill); 0 where no image is cut.

    Example:
        >>> grid = ImageGrid((Block(2, 2, "base"),))
        >>> ids = torch.tensor([[5, 9, 9, 9, 9, 6], [0, 0, 0, 5, 6, 7]])
        >>> mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
        >>> layout = PromptLayout.build(ids, 9, [grid], mask)
        >>> layout.row[0].tolist()
        [-1, 0, 0, 1, 1, -1]
        >>> layout.after_image.tolist()[0]
        [False, False, False, False, False, True]
        >>> layout.has_image.tolist()
        [True, False]
    """

    kind: Tensor
    image: Tensor
    block: Tensor
    row: Tensor
    col: Tensor
    grids: tuple[tuple[ImageGrid, ...], ...]
    unfinished: tuple[int, ...] = ()
    _host: PromptLayout | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.unfinished:
            object.__setattr__(self, "unfinished", (0,) * len(self.grids))

    @staticmethod
    def build(
        input_ids: Tensor,
        image_token_id: int,
        grids: Sequence[ImageGrid],
        attention_mask: Tensor | None = None,
        *,
        after: PromptLayout | None = None,
        may_end_inside_image: bool = False,
        marks_between: bool = False,
        edge_ids: Sequence[int] = (),
        video_token_id: int | None = None,
    ) -> PromptLayout:
        """Lays out a prompt from its token ids and the grids of its images.

        Args:
            input_ids: `(batch, length)` token ids, padded on either side.
            image_token_id: the id that stands at every image position.
            grids: one grid per image or video that begins in `input_ids`, in flat order: those of the first row,
                then those of the second, and so on. Rows may hold different numbers of them.
            attention_mask: `(batch, length)` with 0 at padding, or None if nothing is padded. A longer mask,
                as given together with a cache, counts from its end.
            after: the layout of what came before `input_ids` (an earlier turn or chunk). The result then
                covers both, and image indices go on.
            may_end_inside_image: whether the last image of a row may lack its last tokens, as in a prefill
                that is cut into chunks. A later `build(..., after=...)` goes on inside that image.
            marks_between: whether tokens that stand between the image tokens of one image are its fillers: the
                break after a row, the marker before a tile.
            edge_ids: ids of tokens that are fillers of the image they stand right before or after, up to two of them.
            video_token_id: the id that stands at every video position, if there is one.

        Returns:
            The layout of `input_ids`, preceded by `after` if given.

        Raises:
            LvlmAttnError: if the image tokens of a row are not what the grids take.
        """
        _check_ids(input_ids, after)
        is_valid = _valid(attention_mask, input_ids)
        is_image = input_ids == image_token_id
        if video_token_id is not None:
            is_image = is_image | (input_ids == video_token_id)
        counts = cast("list[int]", is_image.sum(1).tolist())
        shared = _share_out(counts, grids, after, may_end_inside_image)
        flat = [piece for pieces, _ in shared for piece in pieces]
        edges = None
        if edge_ids:
            edges = torch.isin(input_ids, torch.tensor(list(edge_ids), device=input_ids.device))
        fields = fields_of(is_image, is_valid, flat, marks_between=marks_between, is_edge=edges).unbind(0)
        own = tuple(tuple(piece.grid for piece in pieces if piece.start == 0) for pieces, _ in shared)
        unfinished = tuple(rest for _, rest in shared)
        if any(unfinished):
            cut = [pieces[-1].grid if pieces else None for pieces, _ in shared]
            _check_not_broken_off(is_image, is_valid, cut, unfinished)
        if after is None:
            return _layout(fields, own, unfinished)
        joined = [torch.cat(pair, 1) for pair in zip(after.tensors, fields)]
        return _layout(joined, tuple(a + b for a, b in zip(after.grids, own)), unfinished)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Kind, image, block, row and column."""
        return self.kind, self.image, self.block, self.row, self.col

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.kind.shape[0]

    @property
    def length(self) -> int:
        """Number of positions in each row, padding included."""
        return self.kind.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.kind.device

    @cached_property
    def is_pad(self) -> Tensor:
        """`(batch, length)`: padding, which no query may attend to."""
        return self.kind == Kind.PAD

    @cached_property
    def is_valid(self) -> Tensor:
        """`(batch, length)`: anything but padding."""
        return self.kind != Kind.PAD

    @cached_property
    def is_patch(self) -> Tensor:
        """`(batch, length)`: a place in an image."""
        return self.kind == Kind.PATCH

    @cached_property
    def is_filler(self) -> Tensor:
        """`(batch, length)`: a token of an image that shows no place of it (newline, class token, marker)."""
        return self.kind == Kind.FILLER

    @cached_property
    def is_generated(self) -> Tensor:
        """`(batch, length)`: a token appended while decoding."""
        return self.kind == Kind.GENERATED

    @cached_property
    def is_text(self) -> Tensor:
        """`(batch, length)`: a text token, of the prompt or generated."""
        return (self.kind == Kind.TEXT) | self.is_generated

    @cached_property
    def is_prompt(self) -> Tensor:
        """`(batch, length)`: valid and not generated."""
        return self.is_valid & ~self.is_generated

    @cached_property
    def after_image(self) -> Tensor:
        """`(batch, length)`: a text token with at least one patch of its own sample before it."""
        return self.is_text & (self.is_patch.cumsum(1) > 0)

    @cached_property
    def has_image(self) -> Tensor:
        """`(batch,)`: whether the sample holds at least one patch."""
        return self.is_patch.any(1)

    @cached_property
    def last(self) -> Tensor:
        """`(batch,)`: index of the last valid prompt position on either padding side; -1 if there is none."""
        positions = torch.arange(self.length, device=self.device)
        return torch.where(self.is_prompt, positions, -1).amax(1)

    def append(
        self, count: int, *, kind: Kind = Kind.GENERATED, is_valid: Tensor | None = None
    ) -> PromptLayout:
        """Adds `count` positions of text at the end of every row.

        Args:
            count: how many positions.
            kind: what they are: `Kind.GENERATED` while decoding, `Kind.TEXT` for a further piece of prompt.
            is_valid: `(batch, count)`, False where a position is padding; None if none is.

        Raises:
            LvlmAttnError: if `kind` is an image kind, if `is_valid` has another shape, or if a row still ends
                inside an image.
        """
        if kind in (Kind.PATCH, Kind.FILLER):
            raise LvlmAttnError(
                f"append adds text only, not {kind.name}; use build(..., after=layout) for images."
            )
        self._refuse_if_cut("append to")
        added = torch.full((self.batch, count), int(kind), dtype=torch.long, device=self.device)
        if is_valid is not None:
            if is_valid.shape != added.shape:
                raise LvlmAttnError(
                    f"is_valid has shape {tuple(is_valid.shape)}; appending {count} positions to "
                    f"{self.batch} rows "
                    f"needs {tuple(added.shape)}."
                )
            added.masked_fill_(~is_valid.to(self.device, torch.bool), int(Kind.PAD))
        none = torch.full_like(added, -1)
        kind_tensor, *others = self.tensors
        fields = [torch.cat((kind_tensor, added), 1)]
        fields += [torch.cat((tensor, none), 1) for tensor in others]
        return _layout(fields, self.grids, self.unfinished)

    def join(self, other: PromptLayout) -> PromptLayout:
        """Puts `other`, a later piece of the same samples, after this one; image indices go on.

        Raises:
            LvlmAttnError: if the two hold different numbers of rows, or a row of this one ends inside an
                image.
        """
        if other.batch != self.batch:
            raise LvlmAttnError(f"Cannot join a layout of {other.batch} rows to one of {self.batch} rows.")
        self._refuse_if_cut("join to")
        before = torch.tensor([len(row) for row in self.grids], device=self.device)[:, None]
        later = other.to(self.device)
        later = replace(later, image=torch.where(later.image >= 0, later.image + before, -1))
        fields = [torch.cat(pair, 1) for pair in zip(self.tensors, later.tensors)]
        return _layout(fields, tuple(a + b for a, b in zip(self.grids, other.grids)), other.unfinished)

    def repeat(self, n: int) -> PromptLayout:
        """Repeats every row `n` times in place, as beams and returned sequences are laid out: a, a, b, b."""
        rows = torch.arange(self.batch, device=self.device).repeat_interleave(n)
        return self.select(rows)

    def select(self, rows: Tensor | Sequence[int]) -> PromptLayout:
        """Keeps the given rows, in the given order; a row may occur more than once.

        Args:
            rows: `(kept,)` row indices, or `(batch,)` booleans that are True for rows to keep.
        """
        index = torch.as_tensor(rows, device=self.device)
        index = index.nonzero().flatten() if index.dtype == torch.bool else index.long()
        picked = cast("list[int]", index.tolist())
        return _layout(
            [tensor.index_select(0, index) for tensor in self.tensors],
            tuple(self.grids[i] for i in picked),
            tuple(self.unfinished[i] for i in picked),
        )

    def to(self, device: torch.device | str) -> PromptLayout:
        """Moves the tensors, in one copy; returns the layout itself if it is there already.

        A copy to a device is not waited for, and what was laid out on the host stays known there (`on_host`).
        """
        target = torch.device(device)
        if target == self.device:
            return self
        fields = torch.stack(self.tensors).to(target, non_blocking=target.type != "cpu").unbind(0)
        moved = _layout(fields, self.grids, self.unfinished)
        object.__setattr__(moved, "_host", self if self.device.type == "cpu" else None)
        return moved

    @cached_property
    def on_host(self) -> PromptLayout:
        """The same layout in the host's memory, where reading waits for no device."""
        return self._host or self.to("cpu")

    def crop(self, length: int) -> PromptLayout:
        """Keeps the first `length` positions; a negative `length` drops that many from the end.

        Images that lie wholly after the cut leave `grids`; a row that is cut inside an image becomes
        unfinished.
        """
        kept = min(length, self.length) if length >= 0 else max(self.length + length, 0)
        if kept == self.length:
            return self
        fields = [tensor[:, :kept] for tensor in self.tensors]
        images = [0] * self.batch if kept == 0 else cast("list[int]", (fields[1].amax(1) + 1).tolist())
        grids = tuple(row[:count] for row, count in zip(self.grids, images))
        index = torch.tensor(images, device=self.device)[:, None] - 1
        seen = cast("list[int]", ((fields[1] == index) & (index >= 0)).sum(1).tolist())
        cut = tuple(
            count if row and count < row[-1].tokens else 0 for row, count in zip(grids, seen)
        )  # counts patches and fillers of the last image that is left
        return _layout(fields, grids, cut)

    def _refuse_if_cut(self, doing: str) -> None:
        for row, seen in enumerate(self.unfinished):
            if seen:
                raise LvlmAttnError(
                    f"Cannot {doing} a layout that ends inside an image: row {row} has {seen} of the "
                    f"{self.grids[row][-1].tokens} tokens of its last image; lay out the rest first with "
                    "build(..., after=layout)."
                )


def _check_ids(input_ids: Tensor, after: PromptLayout | None) -> None:
    if input_ids.dim() != 2:
        raise LvlmAttnError(
            f"input_ids has shape {tuple(input_ids.shape)}; a prompt layout needs token ids of shape (batch, length)."
        )
    batch = input_ids.shape[0]
    if after is not None and after.batch != batch:
        raise LvlmAttnError(
            f"The earlier layout holds {after.batch} rows and input_ids {batch}; repeat or select its rows first."
        )


def _layout(
    fields: Sequence[Tensor], grids: tuple[tuple[ImageGrid, ...], ...], unfinished: tuple[int, ...]
) -> PromptLayout:
    kind, image, block, row, col = fields
    return PromptLayout(kind, image, block, row, col, grids, unfinished)


def _share_out(
    counts: list[int], grids: Sequence[ImageGrid], after: PromptLayout | None, may_end_inside_image: bool
) -> list[tuple[list[Piece], int]]:
    """For each row, the pieces of images it shows, and how much of a cut last image has been seen."""
    result: list[tuple[list[Piece], int]] = []
    taken = 0
    for row, count in enumerate(counts):
        pieces: list[Piece] = []
        image, left, cut = 0, count, 0
        if after is not None:
            image, seen = len(after.grids[row]), after.unfinished[row]
            if seen:
                grid = after.grids[row][-1]
                stop = min(grid.tokens, seen + left)
                pieces.append(Piece(grid, image - 1, seen, stop))
                left -= stop - seen
                cut = stop if stop < grid.tokens else 0
        while left > 0:
            if taken == len(grids):
                raise LvlmAttnError(
                    f"Row {row} of the prompt has {count} image tokens, {left} more than its {len(pieces)} "
                    f"image(s) "
                    f"take, and no image is left ({len(grids)} given for the batch); {_REMEDY}."
                )
            grid = grids[taken]
            taken += 1
            stop = min(grid.tokens, left)
            if stop < grid.tokens and not may_end_inside_image:
                raise LvlmAttnError(
                    f"Row {row} of the prompt has {count} image tokens, but image {image} of that row takes "
                    f"{grid.tokens} ({grid}) and only {left} are left for it; {_REMEDY}."
                )
            pieces.append(Piece(grid, image, 0, stop))
            left -= stop
            image += 1
            cut = stop if stop < grid.tokens else 0
        if cut and not may_end_inside_image:
            grid = pieces[-1].grid
            raise LvlmAttnError(
                f"Row {row} of the prompt ends inside an image: {cut} of its {grid.tokens} tokens ({grid}); "
                f"{_REMEDY}."
            )
        result.append((pieces, cut))
    if taken < len(grids):
        raise LvlmAttnError(
            f"{len(grids)} images were given, but the image tokens of the {len(counts)} rows ({counts}) "
            f"take only "
            f"{taken} of them; the next one would take {grids[taken].tokens} ({grids[taken]}); {_REMEDY}."
        )
    return result


def _check_not_broken_off(
    is_image: Tensor, is_valid: Tensor, grids: Sequence[ImageGrid | None], unfinished: Sequence[int]
) -> None:
    """Refuses a piece of a prompt in which text follows an image that is not complete."""
    positions = torch.arange(is_image.shape[1], device=is_image.device)
    last = torch.where(is_valid, positions, -1).amax(1)
    goes_on = (is_image.gather(1, last.clamp(min=0)[:, None])[:, 0] | (last < 0)).tolist()
    for row, (grid, seen) in enumerate(zip(grids, unfinished)):
        if grid is not None and seen and not goes_on[row]:
            raise LvlmAttnError(
                f"Row {row} of the prompt goes on with text after {seen} of the {grid.tokens} tokens "
                f"({grid}) of its "
                f"last image; {_REMEDY}."
            )


def _valid(attention_mask: Tensor | None, input_ids: Tensor) -> Tensor:
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.dim() != 2 or attention_mask.shape[0] != input_ids.shape[0]:
        raise LvlmAttnError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; a prompt layout needs the padding "
            f"mask of shape "
            f"{tuple(input_ids.shape)}, as the processor returns it."
        )
    if attention_mask.shape[1] < input_ids.shape[1]:
        raise LvlmAttnError(
            f"attention_mask covers {attention_mask.shape[1]} positions and input_ids {input_ids.shape[1]}; "
            "pass the mask that belongs to these ids."
        )
    start = attention_mask.shape[1] - input_ids.shape[1]
    return attention_mask[:, start:].to(input_ids.device) != 0
