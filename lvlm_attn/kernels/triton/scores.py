"""Scores of one tile, edited and masked: the device function that decode and readouts are built from."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import LOG2E, PackedEdits, PackedVisibility
from lvlm_attn.kernels.triton.common import ahead_bias, amplify, dot, may_attend


def shared_arguments(call: AttentionCall, packed: PackedVisibility, edits: PackedEdits) -> dict[str, Any]:
    """The arguments and switches, by name, that every kernel hands on to `edited_scores`."""
    geometry = call.geometry
    return {
        "query_group": packed.query_group,
        "key_group": packed.key_group,
        "earlier_bits": packed.earlier_bits,
        "later_bits": packed.later_bits,
        "earlier": packed.earlier,
        "later": packed.later,
        "strength": packed.bias,
        "gain": edits.gain,
        "bias": edits.bias,
        "head_gain": edits.head_gain,
        "scale": call.scaling * LOG2E,
        "start": geometry.start,
        "first_key": geometry.first_key,
        "queries": geometry.queries,
        "keys": geometry.keys,
        "written": min(geometry.keys, geometry.length - geometry.first_key),
        "window": geometry.window or 0,
        "GROUPS": packed.groups,
        "HAS_KEYS": packed.key_group is not None,
        "HAS_TABLE": packed.has_table,
        "HAS_LATER": packed.has_later,
        "REACHES": packed.reaches,
        "HAS_STRENGTH": packed.has_strength,
        "HAS_WINDOW": geometry.window is not None,
        "HAS_GAIN": edits.gain is not None,
        "HAS_BIAS": edits.bias is not None,
        "HAS_HEADS": edits.head_gain is not None,
    }


def check_call(call: AttentionCall) -> None:
    """Refuses shapes that do not belong together, before anything is launched.

    Raises:
        LvlmAttnError: if heads do not divide by key heads, head sizes differ or exceed 256, the geometry is of
            another call, or the last dimension is not contiguous.
    """
    query, key, geometry = call.query, call.key, call.geometry
    heads, queries, dim = query.shape[1:]
    kv_heads, keys, key_dim = key.shape[1:]
    if heads % kv_heads:
        raise LvlmAttnError(f"{heads} query heads do not divide into {kv_heads} key heads; pass a multiple.")
    if dim != key_dim or dim > 256:
        raise LvlmAttnError(f"Head sizes are {dim} and {key_dim}; the kernels take equal ones up to 256.")
    if (queries, keys) != (geometry.queries, geometry.keys):
        raise LvlmAttnError(
            f"The call has {queries} queries and {keys} keys, its geometry says {geometry.queries} and "
            f"{geometry.keys}; pass the geometry of this call."
        )
    if query.stride(3) != 1 or key.stride(3) != 1:
        raise LvlmAttnError("Queries or keys are not contiguous along the head; call .contiguous() on them.")


# Long because it takes 28 arguments, and Triton has no structures.
@triton.jit
def edited_scores(
    q,
    k,
    row,
    row_group,
    row_earlier,
    row_later,
    amount,
    column,
    is_column,
    key_group,
    earlier,
    later,
    strength,
    gain,
    bias,
    scale,
    first_key,
    window,
    GROUPS: tl.constexpr,
    HAS_KEYS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_LATER: tl.constexpr,
    REACHES: tl.constexpr,
    HAS_STRENGTH: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_GAIN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`(rows, keys)` scores in units of log 2, minus infinity where a key is masked.

    `q` is `(rows, head_dim)`, `k` is `(head_dim, keys)`; `row` are positions in the sequence, `column` are key
    columns; `amount` is how much of the amplification each row gets. `key_group`, `gain` and `bias` point at the
    sample's own line.
    """
    scores = dot(q, k, None, PRECISION) * scale
    position = first_key + column
    group = column * 0
    if HAS_KEYS:
        group = tl.load(key_group + column, mask=is_column, other=-1)
    if HAS_STRENGTH:
        scores += ahead_bias(row, position, row_group, group, strength)
    if HAS_GAIN or HAS_BIAS:
        raised = tl.zeros(column.shape, tl.float32)
        added = tl.zeros(column.shape, tl.float32)
        if HAS_GAIN:
            raised = tl.load(gain + column, mask=is_column, other=0.0)
        if HAS_BIAS:
            added = tl.load(bias + column, mask=is_column, other=0.0)
        scores = amplify(scores, amount, raised, added, HAS_GAIN, HAS_BIAS)
    allowed = may_attend(
        row,
        position,
        row_group,
        row_earlier,
        row_later,
        group,
        earlier,
        later,
        window,
        GROUPS,
        HAS_KEYS,
        HAS_TABLE,
        HAS_LATER,
        REACHES,
        HAS_WINDOW,
    )
    return tl.where(allowed & is_column[None, :], scores, float("-inf"))
