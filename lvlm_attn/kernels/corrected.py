"""Rows of an attention call corrected in the backend's output: the torch path where few keys suffice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall, Inputs
from lvlm_attn.kernels.correction import (
    LIMITS,
    ByClass,
    Judged,
    amplified_few,
    few_of,
    few_weights,
    redistributed,
)
from lvlm_attn.kernels.few_keys import Chosen, Step, bias_of, choose, written_and_valid
from lvlm_attn.kernels.log_sum_exp import row_log_sum_exp
from lvlm_attn.kernels.spec import Amplification, Redistribution, at_columns
from lvlm_attn.kernels.torch_path import Rows, write_rows
from lvlm_attn.kernels.visibility import Visibility


class Corrected(NamedTuple):
    """What became of a call.

    Attributes:
        output: `(batch, queries, heads, width)`.
        judged: what was decided of the rows by the redistribution, chunk by chunk; empty without one.
    """

    output: Tensor
    judged: list[Judged]


def suits(amplifications: Sequence[Amplification], redistributions: Sequence[Redistribution]) -> bool:
    """Whether edits change weights by factors of few keys, whatever the scores are."""
    constant = all(item.gain is None and item.head_cap is None for item in amplifications)
    return constant and len(redistributions) <= 1 and bool(amplifications or redistributions)


def corrected_query(
    output: Tensor,
    log_sum_exp: Tensor,
    inputs: Inputs,
    step: Step,
    bias: Tensor | None = None,
    is_touched: Tensor | None = None,
) -> Judged | None:
    """A redistribution in the only row of a decoding step, where `LIMITS` has the dtype of its output.

    Args:
        output: `(batch, 1, heads, width)`, contiguous, changed in place.
        log_sum_exp: `(batch, heads, 1)`, of all keys that the row attends to.
        inputs: of the attention call, the query contiguous; without a window, and with all columns from the first
            position on.
        step: what the step needs.
        bias: what is added to the scores of its keys, see `few_keys.mask_of`.
        is_touched: `(batch, 1)`, which samples may change; None for all.

    Returns:
        What was decided; None, with nothing changed, if the row is to be computed from all keys.
    """
    query, key, value, scaling = inputs
    (batch, heads), kv_heads = query.shape[:2], key.shape[1]
    dtype = log_sum_exp.dtype
    shape = batch * kv_heads, heads // kv_heads, -1
    few = few_of(key, step.columns, dtype)
    weights = few_weights(query.view(shape), few, bias, log_sum_exp.view(shape), scaling)
    touched = None if is_touched is None else is_touched.expand(-1, heads).flatten().tolist()
    few = few_of(value, step.columns, dtype)
    return redistributed(output.view(shape), weights, few, step.by, LIMITS[output.dtype], touched)


def corrected_rows(
    output: Tensor,
    log_sum_exp: Tensor | None,
    call: AttentionCall,
    rows: Rows,
    *,
    visibility: Sequence[Visibility] = (),
    amplification: Sequence[Amplification] = (),
    redistribution: Redistribution | None = None,
) -> Corrected | None:
    """Edits of some rows by what their factors are on few keys; see `suits`.

    Args:
        output: `(batch, queries, heads, width)`, what the backend made, the visibilities included; rows and heads that
            stay keep their bits.
        log_sum_exp: `(batch, heads, queries)`, the visibilities included, or None to compute that of the rows, which
            needs all keys but no value.
        call: the attention call.
        rows: which rows.
        visibility: what queries may attend to beyond causality.
        amplification: changes of the scores, in order; without gains.
        redistribution: what to move.

    Returns:
        What became of them; None, with nothing changed, if the rows are to be computed from all keys.
    """
    limit = LIMITS.get(output.dtype)
    edit = None if limit is None else _Edit.of(call, limit, visibility, amplification, redistribution)
    if edit is None:
        return None
    total = row_log_sum_exp(call, rows, visibility) if log_sum_exp is None else rows.take(log_sum_exp)
    done, first = [], 0
    for part in rows.fitting(call, max(edit.chosen.columns.shape[-1], 1)):
        count = part.index.shape[1]
        new = edit.rows(output, total.narrow(2, first, count), part)
        if new is None:
            return None
        done.append((part, *new))
        first += count
    for part, new_rows, is_changed, _ in done:
        output = write_rows(output, new_rows, part, is_changed)
    return Corrected(output, [judged for *_, judged in done if judged is not None])


class _Edit(NamedTuple):
    """What is done to every chunk of rows; see `corrected_rows`."""

    call: AttentionCall
    chosen: Chosen
    key: Tensor
    value: Tensor
    visibility: Sequence[Visibility]
    amplification: Sequence[tuple[Amplification, Tensor]]
    by: ByClass | None
    redistribution: Redistribution | None
    limit: float

    @staticmethod
    def of(
        call: AttentionCall,
        limit: float,
        visibility: Sequence[Visibility],
        amplification: Sequence[Amplification],
        redistribution: Redistribution | None,
    ) -> _Edit | None:
        """Chooses the keys and looks up what is done to them; None if they are too many."""
        geometry, dtype, device = call.geometry, call.score_dtype, call.query.device
        if redistribution is None:
            kinds = torch.zeros(call.key.shape[0], geometry.keys, dtype=torch.int8, device=device)
        else:
            kinds = geometry.to_columns(redistribution.key_class.to(device))
        biases = [(item, item.bias.to(device, dtype)) for item in amplification if item.bias is not None]
        given = [(item, geometry.to_columns(bias)) for item, bias in biases]
        chosen = choose(kinds, written_and_valid(geometry, device), [bias for _, bias in given])
        if chosen is None or not all(bool(bias.isfinite().all()) for _, bias in given):
            return None
        by = None
        if redistribution is not None:
            of_few = at_columns(kinds, chosen.columns)
            by = ByClass.of(redistribution, of_few, chosen.base, dtype)
        added = [
            (item, at_columns(bias, chosen.columns) - level)
            for (item, bias), level in zip(given, chosen.levels)
        ]
        key, value = (few_of(item, chosen.columns, dtype) for item in (call.key, call.value))
        return _Edit(call, chosen, key, value, visibility, added, by, redistribution, limit)

    def rows(self, output: Tensor, total: Tensor, part: Rows) -> tuple[Tensor, Tensor, Judged | None] | None:
        """New rows `(batch, heads, rows, width)`, where they changed, and what was decided."""
        call, dtype = self.call, self.call.score_dtype
        batch, heads, count = total.shape
        kv_heads = call.key.shape[1]

        def grouped(values: Tensor) -> Tensor:
            return values.reshape(batch * kv_heads, heads // kv_heads * count, values.shape[3])

        bias = bias_of(call, self.visibility, part, self.chosen.columns)
        new = grouped(part.take(output, 1).to(dtype, copy=True).transpose(1, 2))
        query = grouped(part.take(call.query).to(dtype))
        weights = few_weights(query, self.key, bias, grouped(total.to(dtype)[..., None]), call.scaling)
        is_changed = torch.zeros(batch, heads, count, dtype=torch.bool, device=output.device)
        for item, by in self.amplification:
            is_row = item.changes(part.index, heads)
            factor = torch.where(is_row[..., None], self._log_factor(item, by)[:, :, None], 0)
            amplified = amplified_few(new, weights, self.value, grouped(factor), self.limit)
            if amplified is None:
                return None
            (new, weights), is_changed = amplified, is_changed | is_row
        judged = None
        if self.by is not None and self.redistribution is not None:
            touched = self.redistribution.is_touched.to(output.device).gather(1, part.index) & part.is_touched
            of_heads = touched[:, None].expand_as(is_changed).flatten().tolist()
            judged = redistributed(new, weights, self.value, self.by, self.limit, of_heads)
            if judged is None:
                return None
            is_changed = is_changed | torch.tensor(judged.changes).view_as(is_changed)
        return new.view(batch, heads, count, -1), is_changed, judged

    def _log_factor(self, item: Amplification, bias: Tensor) -> Tensor:
        """`(batch, 1 or heads, n)`, what an amplification adds to scores of the few beyond what it adds to others."""
        if item.heads is None:
            return bias[:, None]
        return bias[:, None] * item.per_head(self.call.query.shape[1]).to(bias)[..., None]
