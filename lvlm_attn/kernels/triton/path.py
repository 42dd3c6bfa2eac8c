"""The Triton path of one attention call: which kernels run, and what layers of a call share.

- Few queries (decoding): one split pass computes every row with all its edits; the user's backend does not run.
- Many queries and a visibility that acts: `prefill` computes every row, and the backend does not run.
- Many queries otherwise: the backend computes every row, as fast as it can, and nothing is added to it but the
  touched rows, which `rows` computes again. With a visibility they are computed after `prefill` in the same way.

Everything that depends on positions alone (packed groups, lists of blocks, packed rows) is made once per call and
kept in its memo, since all layers of a call ask for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import PackedEdits, PackedVisibility, pack_edits, pack_visibility
from lvlm_attn.kernels.readouts import Reading, Readout
from lvlm_attn.kernels.spec import Amplification, Geometry, Redistribution
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.triton import readout as triton_readout
from lvlm_attn.kernels.triton.blocks import BlockLists, list_blocks
from lvlm_attn.kernels.triton.decode import MAX_QUERIES, decode
from lvlm_attn.kernels.triton.prefill import attend_all
from lvlm_attn.kernels.triton.rows import AMPLIFIED, MOVED, attend_rows
from lvlm_attn.kernels.triton.tiles import chip_of, prefill_tile
from lvlm_attn.kernels.visibility import Visibility

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class PackedCall:
    """An attention call and what is to change about it, as the kernels take them.

    Attributes:
        call: the attention call, its tensors contiguous along the head; what layers share is kept in its memo.
        visibility: what queries may attend to beyond or below causality.
        amplification: change of the scores, or None.
        redistribution: change of the weights, or None.
    """

    call: AttentionCall
    visibility: Sequence[Visibility]
    amplification: Amplification | None
    redistribution: Redistribution | None

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
        acting = tuple(item for item in visibility if not _is_over(item, call.geometry))
        given = call.query, call.key, call.value
        if any(tensor.stride(-1) != 1 for tensor in given):
            query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in given)
            call = replace(call, query=query, key=key, value=value)
        if amplification is not None:
            amplification.per_head(call.query.shape[1])
        return PackedCall(call, acting, amplification, redistribution)

    @property
    def is_short(self) -> bool:
        """Whether the decode kernel takes all of it."""
        return self.call.geometry.queries <= MAX_QUERIES

    @property
    def has_edits(self) -> bool:
        """Whether scores or weights change."""
        return self.amplification is not None or self.redistribution is not None

    def every_row(self, counts: Tensor | None = None) -> Tensor:
        """Computes every row: with all edits in a short call, with the visibilities alone in a long one.

        Args:
            counts: see `edited_rows`; only a short call adds to it.

        Returns:
            `(batch, queries, heads, head_dim)`.
        """
        if not self.is_short:
            return attend_all(self.call, packed=self._packed, lists=self._lists)
        return decode(
            self.call,
            packed=self._packed,
            edits=self._packed_edits,
            flags=self._flags() if self.has_edits else None,
            counts=counts,
        ).output

    def edited_rows(self, output: Tensor, rows: Rows | None, counts: Tensor | None = None) -> Tensor:
        """Computes the touched rows again with their edits.

        Args:
            output: `(batch, queries, heads, head_dim)`, every row without them; written in place.
            rows: the rows that amplification or redistribution touch, None for none.
            counts: `(3,)` float64, added up in place: rows whose weight was moved, rows where it could be, and
                the weight moved.

        Returns:
            The output.
        """
        if rows is None:
            return output
        output = output if output.stride(-1) == 1 else output.contiguous()
        index, flags = self._shared(("rows", *self._touched), lambda: self._pack_rows(rows))
        attend_rows(
            output,
            self.call,
            packed=self._packed,
            edits=self._packed_edits,
            index=index,
            flags=flags,
            counts=counts,
        )
        return output

    def read(self, wanted: Readout) -> Reading:
        """Reads quantities off the weights, as the edits left them, without holding them."""
        return triton_readout.read(
            self.call,
            wanted,
            packed=self._packed,
            edits=self._packed_edits,
            flags=self._flags() if self.has_edits else None,
        )

    @cached_property
    def _packed_edits(self) -> PackedEdits:
        return pack_edits(self.amplification, self.redistribution, self.call.geometry, self.call.query.device)

    @property
    def _packed(self) -> PackedVisibility:
        make = partial(pack_visibility, self.visibility, self.call.geometry, self.call.query.device)
        return self._shared(("packed", *self._place), make)

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
        geometry = self.call.geometry
        return (geometry.keys, geometry.window, self.call.query.device, *self.visibility)

    @property
    def _touched(self) -> tuple[Tensor | None, ...]:
        return tuple(None if item is None else item.is_touched for item in self._edits)

    @property
    def _edits(self) -> tuple[Amplification | None, Redistribution | None]:
        return self.amplification, self.redistribution

    def _flags(self) -> Tensor:
        """`(batch, queries)` int8."""
        device = self.call.query.device

        def made() -> Tensor:
            total: Tensor | None = None
            for item, bit in zip(self._edits, (AMPLIFIED, MOVED)):
                if item is not None:
                    part = item.is_touched.to(device, torch.int8) * bit
                    total = part if total is None else total + part
            assert total is not None
            return total.contiguous()

        return self._shared(("flags", device, *self._touched), made)

    def _pack_rows(self, rows: Rows) -> tuple[Tensor, Tensor]:
        # Padding rows repeat untouched ones, so that their flags are 0.
        index = rows.index.to(self.call.query.device)
        return index.to(torch.int32).contiguous(), self._flags().gather(1, index).contiguous()

    def _shared(self, key: tuple[Hashable, ...], make: Callable[[], Made]) -> Made:
        return self.call.memo.shared((PackedCall, *key), make)


def _is_over(item: Visibility, geometry: Geometry) -> bool:
    """Whether all queries were generated after the positions a visibility speaks of, and attend as they always do."""
    return geometry.start >= item.group.shape[1] and item.is_plain(0)
