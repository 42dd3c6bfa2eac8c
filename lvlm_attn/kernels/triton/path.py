"""What the kernels offer the runtime: packs the edits of one attention call, and picks the kernel.

- `rows`, split over the keys, takes all of a short call, which is decoding: everything in one pass. Of a long call it
  takes the rows whose scores change, each key by its own amount.
- `correct` takes the rows of a long call whose weight is only moved between classes of keys: it reads few keys again.
- `prefill` computes every row of a long call with a visibility. Without one the user's own backend is as fast.

Everything that depends on positions alone (packed groups, lists of blocks, packed rows, plans of launches) is made
once per call and kept in its memo, since all layers of a call ask for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import PackedEdits, PackedVisibility, pack_edits, pack_visibility
from lvlm_attn.kernels.readouts import Reading, Readout
from lvlm_attn.kernels.spec import Amplification, Geometry, Redistribution
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.triton.blocks import BlockLists, list_blocks
from lvlm_attn.kernels.triton.correct import CorrectPlan
from lvlm_attn.kernels.triton.prefill import attend_all
from lvlm_attn.kernels.triton.readout import read
from lvlm_attn.kernels.triton.rows import RowsPlan
from lvlm_attn.kernels.triton.steps import Steps
from lvlm_attn.kernels.triton.tiles import chip_of, prefill_tile
from lvlm_attn.kernels.visibility import Visibility

Made = TypeVar("Made")
MAX_QUERIES = 8
"""Queries of a short call."""


@dataclass(eq=False)
class PackedCall:
    """An attention call and what is to change about it, as the kernels take them.

    Attributes:
        call: the attention call, its tensors contiguous along the head; what layers share is kept in its memo.
        visibility: what queries may attend to beyond or below causality.
        amplification: change of the scores, or None.
        redistribution: change of the weights, or None.
        edits: both, packed.
    """

    call: AttentionCall
    visibility: Sequence[Visibility]
    amplification: Amplification | None
    redistribution: Redistribution | None
    edits: PackedEdits

    @staticmethod
    def of(
        call: AttentionCall,
        *,
        visibility: Sequence[Visibility] = (),
        amplification: Amplification | None = None,
        redistribution: Redistribution | None = None,
    ) -> PackedCall:
        """The call, with tensors laid out as the kernels take them and visibilities that act on no query dropped.

        Raises:
            LvlmAttnError: if an amplification has factors for another number of heads.
        """
        query, key, value = call.query, call.key, call.value
        if not query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
            query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
            call = replace(call, query=query, key=key, value=value)
        if amplification is not None:
            amplification.per_head(query.shape[1])
        acting = tuple(item for item in visibility if not _is_over(item, call.geometry)) if visibility else ()
        edits = pack_edits(amplification, redistribution, query.device)
        return PackedCall(call, acting, amplification, redistribution, edits)

    @property
    def is_short(self) -> bool:
        """Whether one pass over the keys takes all of it, every row with its edits."""
        return self.call.geometry.queries <= MAX_QUERIES

    @property
    def steps(self) -> Steps:
        """What serves later calls of one token like this one."""
        return Steps((*self._form, self.call.query.device, self.call.geometry.window))

    @property
    def has_edits(self) -> bool:
        """Whether scores or weights change."""
        return self.amplification is not None or self.redistribution is not None

    @property
    def is_corrected(self) -> bool:
        """Whether the output of plain attention is corrected, for which the log-sum-exp of its rows is of use."""
        return self.redistribution is not None and self.amplification is None and not self.is_short

    def every_row(
        self,
        *,
        log_sum_exp: Tensor | None = None,
        moved: Tensor | None = None,
        amplified: Tensor | None = None,
    ) -> Tensor:
        """Computes every row: with all edits in a short call, with the visibilities alone in a long one.

        Args:
            log_sum_exp: `(batch, heads, queries)` fp32, contiguous, written in a long call: the natural logarithm of
                the softmax's denominator.
            moved: see `edited_rows`; only a short call adds to it.
            amplified: see `edited_rows`; only a short call adds to it.

        Returns:
            `(batch, queries, heads, head_dim)`.
        """
        if not self.is_short:
            return attend_all(self.call, packed=self._packed, lists=self._lists, log_sum_exp=log_sum_exp)
        batch, heads, queries, dim = self.call.query.shape
        output = self.call.query.new_empty(batch, queries, heads, dim)
        self._plan(None).run(self.call, self.edits, output, moved=moved, amplified=amplified)
        return output

    def edited_rows(
        self,
        output: Tensor,
        rows: Rows | None,
        *,
        log_sum_exp: Tensor | None = None,
        moved: Tensor | None = None,
        amplified: Tensor | None = None,
    ) -> Tensor:
        """Computes the touched rows again with their edits.

        Args:
            output: `(batch, queries, heads, head_dim)`, every row without them; written in place.
            rows: the rows that amplification or redistribution touch, None for none.
            log_sum_exp: `(batch, heads, queries)` fp32, the natural logarithm of the softmax's denominator, if the
                output came with it; taken where `is_corrected`.
            moved: `(3,)` float64, added up in place: rows whose weight was moved, rows where it could be, and
                the weight moved.
            amplified: the same of rows whose scores are changed.

        Returns:
            The output.
        """
        if rows is None:
            return output
        output = output if output.stride(-1) == 1 else output.contiguous()
        call, edits = self.call, self.edits
        if self.is_corrected:
            self._correction(rows).run(call, edits, output, log_sum_exp=log_sum_exp, moved=moved)
        else:
            self._plan(rows).run(call, edits, output, moved=moved, amplified=amplified)
        return output

    def read(self, wanted: Readout) -> Reading:
        """Reads rows of the weights, as the edits left them; `readout.is_readable` must hold."""
        return read(self.call, wanted, packed=self._packed, edits=self.edits)

    @property
    def _packed(self) -> PackedVisibility:
        """The attention mask over groups, which layers of a call share."""
        geometry, device = self.call.geometry, self.call.query.device
        return self._shared(
            ("packed", *self._place), lambda: pack_visibility(self.visibility, geometry, device)
        )

    @property
    def _lists(self) -> BlockLists:
        query = self.call.query
        batch, _, _, head_dim = query.shape
        tile = prefill_tile(chip_of(query), head_dim, query.element_size())
        m, n = tile.block_m, tile.block_n

        def made() -> BlockLists:
            return list_blocks(self._packed, self.call.geometry, batch, m, n, query.device)

        return self._shared(("lists", m, n, *self._place), made)

    @property
    def _place(self) -> tuple[Hashable, ...]:
        """Tells calls apart whose positions stand elsewhere, or attend otherwise."""
        geometry = self.call.geometry
        return geometry.keys, geometry.window, self.call.query.device, *self.visibility

    def _plan(self, rows: Rows | None) -> RowsPlan:
        """The launches for some rows, or for all of a short call."""

        def made() -> RowsPlan:
            if rows is None:
                return RowsPlan.of(self.call, self._packed, self.edits)
            return RowsPlan.of(self.call, self._packed, self.edits, index=self._index(rows), is_every=False)

        return self._shared(("rows", rows, *self._form, *self._place), made)

    def _correction(self, rows: Rows) -> CorrectPlan:
        def made() -> CorrectPlan:
            return CorrectPlan.of(self.call, self._packed, self.edits, index=self._index(rows))

        return self._shared(("correct", rows, *self._form, *self._place), made)

    def _index(self, rows: Rows) -> Tensor | None:
        # Rows that stand in for missing ones are untouched.
        if rows.is_all:
            return None
        return rows.index.to(self.call.query.device, torch.int32).contiguous()

    @property
    def _form(self) -> tuple[Hashable, ...]:
        """What plans are made for, beside where positions stand."""
        edits, query = self.edits, self.call.query
        known = None if edits.key_class is None else edits.key_class.shape[1]
        form = query.shape, query.dtype, self.call.key.shape[1], known
        if edits.amplified is None:
            return form
        given = edits.gain, edits.bias, edits.heads
        return *form, edits.signed, *(None if item is None else item.shape[1] for item in given)

    def _shared(self, key: tuple[Hashable, ...], make: Callable[[], Made]) -> Made:
        return self.call.memo.shared((PackedCall, *key), make)


def _is_over(item: Visibility, geometry: Geometry) -> bool:
    """Whether all queries were generated after the positions a visibility speaks of, and attend as they always do."""
    return geometry.start >= item.group.shape[1] and item.is_plain(0)
