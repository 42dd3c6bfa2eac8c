"""What can be read off the softmax weights without ever holding all of them: the path for every device.

Rows go in chunks. A chunk of weights is made, read, and dropped; what stays is as long as the rows or the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.kernels.call import AttentionCall, Memo
from lvlm_attn.kernels.host import reading_is_free
from lvlm_attn.kernels.spec import Amplification, Geometry, Redistribution, amplified, class_indicator
from lvlm_attn.kernels.torch_path import CHUNK_BYTES, Rows, redistribute
from lvlm_attn.kernels.visibility import Visibility
from lvlm_attn.kernels.visible_path import masked_scores


@dataclass(frozen=True)
class Readout:
    """Which rows to read and what to read off them; `Reading` says what each quantity is.

    Attributes:
        is_read: `(batch, queries)`, True at the rows to read.
        key_class: `(batch, positions)`, the class of each position for `Reading.masses`, or None for no masses;
            later positions are of class 0.
        rows: `"heads"` for the weights of every head, `"mean"` for their mean over heads, None for neither.
        column_sums: whether to sum the weights over the rows.
        entropy: whether to take the entropy of every row.

    Example:
        >>> wanted = Readout(torch.ones(1, 3, dtype=torch.bool), entropy=True)
    """

    is_read: Tensor
    key_class: Tensor | None = None
    rows: Literal["heads", "mean"] | None = None
    column_sums: bool = False
    entropy: bool = False

    def check(self, batch: int, queries: int) -> None:
        """Refuses rows of another shape and an unknown choice of `rows`.

        Raises:
            LvlmAttnError: if `is_read` is not `(batch, queries)`, or `rows` is no choice there is.
        """
        if tuple(self.is_read.shape) != (batch, queries):
            raise LvlmAttnError(
                f"Readout.is_read has shape {tuple(self.is_read.shape)}, but the call has {batch} samples of "
                f"{queries} queries; give one boolean per sample and query."
            )
        if self.rows not in (None, "heads", "mean"):
            raise LvlmAttnError(f"Readout.rows is {self.rows!r}; give 'heads', 'mean' or None.")


@dataclass(frozen=True)
class Reading:
    """What was read, for the rows asked for, packed so that every sample has as many.

    A row without any key, and a padding row, has log-sum-exp minus infinity and all else 0.
    The weights are those that the redistribution left; the log-sum-exp is of the scores before it.

    Attributes:
        index: `(batch, rows)`, which query of the call each row is.
        is_read: `(batch, rows)`, False at padding rows.
        log_sum_exp: `(batch, heads, rows)`, the natural logarithm of the sum of the exponentiated scores.
        masses: `(batch, heads, rows, 4)`, the weight on each key class, or None.
        entropy: `(batch, heads, rows)`, minus the sum of w log w, in nats, or None.
        rows: `(batch, heads, rows, keys)` weights, or `(batch, 1, rows, keys)` their mean over heads, or None.
        column_sums: `(batch, heads, keys)`, the weight each key column receives from all rows read, or None.
    """

    index: Tensor
    is_read: Tensor
    log_sum_exp: Tensor
    masses: Tensor | None = None
    entropy: Tensor | None = None
    rows: Tensor | None = None
    column_sums: Tensor | None = None


def read(
    call: AttentionCall,
    wanted: Readout,
    *,
    visibility: Sequence[Visibility] = (),
    amplification: Sequence[Amplification] = (),
    redistribution: Redistribution | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Reading:
    """Reads quantities off the weights of an attention call, chunk by chunk of rows.

    Args:
        call: the attention call; its values are not needed.
        wanted: which rows and quantities.
        visibility: what queries may attend to beyond or below causality.
        amplification: changes of the scores, in order.
        redistribution: what is moved between keys.
        chunk_bytes: most bytes of weights to hold at a time.

    Returns:
        What was read, in fp32 (fp64 for fp64 inputs).

    Raises:
        LvlmAttnError: if `wanted` does not fit the call.

    Example:
        >>> q = torch.randn(1, 2, 3, 8)
        >>> wanted = Readout(torch.ones(1, 3, dtype=torch.bool), column_sums=True)
        >>> call = AttentionCall(q, q, q, Geometry(0, 3, 3), scaling=8**-0.5)
        >>> read(call, wanted).column_sums.shape
        torch.Size([1, 2, 3])
    """
    batch, heads, queries, _ = call.query.shape
    geometry, device, dtype = call.geometry, call.query.device, call.score_dtype
    wanted.check(batch, queries)
    rows = _read_rows(wanted, device, call.memo)
    if rows is None:
        return empty_reading(wanted, heads, geometry.keys, device, dtype)
    gathered = _Gathered(wanted, geometry)
    for part in rows.fitting(call, geometry.keys, chunk_bytes):
        scores = masked_scores(call, part, visibility)
        for change in amplification:
            scores = amplified(scores, change, geometry, change.is_touched.gather(1, part.index))
        if not (reading_is_free(device) and bool(part.is_touched.all())):
            scores = scores.masked_fill(~part.is_touched[:, None, :, None], -torch.inf)
        weights, total = _softmax(scores)
        if redistribution is not None:
            new, is_changed, _ = redistribute(weights, redistribution, geometry)
            is_changed &= redistribution.is_touched.gather(1, part.index)[:, None]
            weights = torch.where(is_changed[..., None], new, weights)
        gathered.add(weights, total)
    return gathered.reading(rows)


def _read_rows(wanted: Readout, device: torch.device, memo: Memo) -> Rows | None:
    """The rows that are read, packed once for all layers that read the same ones."""
    return memo.shared((Rows, wanted.is_read, device), lambda: Rows.of(wanted.is_read.to(device)))


def read_weights(
    weights: Tensor, rows: Rows, log_sum_exp: Tensor, wanted: Readout, geometry: Geometry, memo: Memo
) -> Reading:
    """Reads quantities off weights that are there already.

    Args:
        weights: `(batch, heads, rows, keys)`, as edits left them.
        rows: which queries they are of, all that are read among them.
        log_sum_exp: `(batch, heads, read rows)` of the scores before the edits, from `read`.
        wanted: which rows and quantities.
        geometry: where the queries and keys stand.
        memo: what the layers of the forward call share.

    Returns:
        What was read, in the dtype of the weights.

    Example:
        >>> weights, wanted = torch.ones(1, 2, 3, 3) / 3, Readout(torch.ones(1, 3, dtype=torch.bool), entropy=True)
        >>> rows = Rows.of(wanted.is_read)
        >>> total = torch.zeros(1, 2, 3)
        >>> read_weights(weights, rows, total, wanted, Geometry(0, 3, 3), Memo()).entropy[0, 0, 0]
        tensor(1.0986)
    """
    found = _read_rows(wanted, weights.device, memo)
    if found is None:
        return empty_reading(wanted, weights.shape[1], geometry.keys, weights.device, weights.dtype)
    places = torch.zeros_like(wanted.is_read, dtype=torch.long, device=weights.device)
    order = torch.arange(rows.index.shape[1], device=weights.device).expand_as(rows.index)
    place = places.scatter_(1, rows.index, order).gather(1, found.index)
    mine = weights.gather(2, place[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[3]))
    gathered = _Gathered(wanted, geometry)
    gathered.add(mine * found.is_touched[:, None, :, None], log_sum_exp)
    return gathered.reading(found)


class _Gathered:
    """What was read off the chunks so far."""

    def __init__(self, wanted: Readout, geometry: Geometry):
        self.wanted, self.geometry = wanted, geometry
        self.indicator: Tensor | None = None
        self.sums: Tensor | None = None
        self.parts: dict[str, list[Tensor]] = {"log_sum_exp": [], "masses": [], "entropy": [], "rows": []}

    def add(self, weights: Tensor, total: Tensor) -> None:
        """Reads `(batch, heads, rows, keys)` weights with `(batch, heads, rows)` log-sum-exp."""
        wanted, parts = self.wanted, self.parts
        parts["log_sum_exp"].append(total)
        if wanted.key_class is not None:
            if self.indicator is None:
                columns = self.geometry.to_columns(wanted.key_class.to(weights.device))
                self.indicator = class_indicator(columns, weights.dtype)[:, None].transpose(-1, -2)
            parts["masses"].append(weights @ self.indicator)
        if wanted.entropy:
            parts["entropy"].append(-torch.special.xlogy(weights, weights).sum(-1))
        if wanted.rows is not None:
            parts["rows"].append(weights if wanted.rows == "heads" else weights.mean(1, keepdim=True))
        if wanted.column_sums:
            sums = weights.sum(2)
            self.sums = sums if self.sums is None else self.sums + sums

    def reading(self, rows: Rows) -> Reading:
        """All of it."""
        joined = {
            name: torch.cat(parts, 2) if len(parts) > 1 else parts[0]
            for name, parts in self.parts.items()
            if parts
        }
        return Reading(rows.index, rows.is_touched, column_sums=self.sums, **joined)


def empty_reading(
    wanted: Readout, heads: int, keys: int, device: torch.device, dtype: torch.dtype
) -> Reading:
    """What is read off no rows at all."""
    batch = wanted.is_read.shape[0]

    def none(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device, dtype=dtype)

    return Reading(
        index=torch.zeros(batch, 0, dtype=torch.long, device=device),
        is_read=torch.zeros(batch, 0, dtype=torch.bool, device=device),
        log_sum_exp=none(batch, heads, 0),
        masses=none(batch, heads, 0, 4) if wanted.key_class is not None else None,
        entropy=none(batch, heads, 0) if wanted.entropy else None,
        rows=none(batch, heads if wanted.rows == "heads" else 1, 0, keys) if wanted.rows else None,
        column_sums=none(batch, heads, keys) if wanted.column_sums else None,
    )


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The weights, 0 in rows without any key, and the log-sum-exp of every row."""
    least = torch.finfo(scores.dtype).min  # so that the peak is finite without any key, too
    peak = scores.amax(-1, keepdim=True).clamp(min=least)
    parts = (scores - peak).exp()
    total = parts.sum(-1, keepdim=True)
    return parts / total.clamp(min=1), (peak + total.log()).squeeze(-1)
