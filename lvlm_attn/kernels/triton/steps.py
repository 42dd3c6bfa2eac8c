"""One generated token after another through the same launches: what stays is decided once, the keys alone grow."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall, Inputs, Memo
from lvlm_attn.kernels.packing import LOG2E, PackedEdits, pack_visibility
from lvlm_attn.kernels.triton.common import Change, Launch, change_of, on_device
from lvlm_attn.kernels.triton.rows import RowsPlan


class Steps:
    """Calls of one generated token with edits of one form, which no visibility acts on; layers share it.

    Args:
        form: tells calls and edits apart that need steps of their own, beside where their positions stand.

    Attributes:
        form: as given.
    """

    def __init__(self, form: Hashable):
        self.form = form
        self._rows: RowsPlan | None = None
        self._memo: Memo | None = None
        self._keys = -1
        self._known: dict[PackedEdits, tuple[Launch, Launch, Change]] = {}

    def is_at(self, memo: Memo, keys: int) -> bool:
        """Whether these are the steps of a forward call, by its memo, and of as many keys."""
        return self._memo is memo and self._keys == keys

    def move(self, call: AttentionCall, edits: PackedEdits) -> None:
        """Goes on to another token, by the call of one of its layers."""
        packed = pack_visibility((), call.geometry, call.query.device)
        rows = None if self._rows is None else self._rows.for_later(call, packed, edits)
        if rows is None:
            self._known.clear()
            rows = RowsPlan.of(call, packed, edits)
        self._rows, self._memo, self._keys = rows, call.memo, call.geometry.keys

    def run(
        self, inputs: Inputs, edits: PackedEdits, moved: Tensor | None, amplified: Tensor | None
    ) -> Tensor:
        """Computes the call of a layer; `move` has gone on to its token.

        Args:
            inputs: the call.
            edits: what is done to scores and weights at this layer: the same object at every token.
            moved: see `RowsPlan.run`; given wherever weight is moved.
            amplified: see there; given wherever scores change.

        Returns:
            `(batch, queries, heads, head_dim)`.
        """
        rows = self._rows
        assert rows is not None
        query, key, value, scaling = inputs
        batch, heads, queries, dim = query.shape
        output = query.new_empty(batch, queries, heads, dim)
        known = self._known.get(edits)
        if known is None:
            split, join = rows.run(inputs, edits, output, moved=moved, amplified=amplified)
            if split is not None and join is not None:
                self._known[edits] = split, join, change_of(edits)
            return output
        split, join, change = known
        strides = (*query.stride()[:3], *key.stride()[:3], *value.stride()[:3])
        there = output.stride()[:3]
        bits = query.data_ptr() | key.data_ptr() | value.data_ptr() | output.data_ptr()
        for stride in strides + there:
            bits |= stride
        if bits & 15 or max(strides) >= 2**31:
            rows.run(inputs, edits, output, moved=moved, amplified=amplified)
            return output
        mask, place, cut = rows.shared
        parts, tops = rows.parts, rows.tops
        with on_device(query):
            split(
                query, key, value, None, parts, tops, edits.key_class, change, strides, mask, place, cut,
                scaling * LOG2E, *rows.splits.constants,
            )  # fmt: skip
            join(
                output, None, parts, tops, edits.moved, moved, amplified, None, change, there, place, cut,
                edits.settings, *rows.join.constants,
            )  # fmt: skip
        return output
