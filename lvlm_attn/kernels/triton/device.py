"""Functions over rows and keys that the Triton kernels share."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lvlm_attn.kernels.triton.common import dot


class Spec(NamedTuple):
    """What is asked of the rows of one sample, inside a kernel.

    Attributes:
        mask: a `Mask`.
        change: a `Change`.
        place: a `Place`, no longer hidden.
        scale: the factor on the scores, in units of log 2.
        sample: number of the sample.
    """

    mask: Any
    change: Any
    place: Any
    scale: Any
    sample: Any


class State(NamedTuple):
    """What is the same for all keys of a row, inside a kernel.

    Attributes:
        position: where in the sequence it stands.
        group: its group.
        earlier: the bits of the groups of which it attends to all earlier keys.
        later: the same of keys ahead.
        amount: how much its scores are amplified.
    """

    position: Any
    group: Any
    earlier: Any
    later: Any
    amount: Any


@triton.jit
def lines_of(tile, index, spec, SLOTS: tl.constexpr, F: tl.constexpr):
    """What a tile holds if the rows of all heads that share keys stand together, each `SLOTS` times.

    Returns:
        The key head, the head of each row, its number among those of the head, which query it is, and whether it is a
        row at all.
    """
    rows, group = spec.place.rows, spec.place.group
    kv_head = (tile % spec.place.kv_heads).to(tl.int64)
    line = (tile // spec.place.kv_heads) * (F.block_m // SLOTS) + tl.arange(0, F.block_m) // SLOTS
    is_row = line < group * rows
    head = kv_head * group + tl.minimum(line // rows, group - 1)
    line = line % rows
    at = line
    if index is not None:
        at = tl.load(index + spec.sample * rows + line)
    return kv_head, head, line, at, is_row


@triton.jit
def loaded_queries(query, strides, head, at, is_row, spec, F: tl.constexpr):
    """`(rows, block_d)`, some queries, each of a head of its own; 0 where there is no row."""
    width = tl.arange(0, F.block_d)
    q_at = query + spec.sample * strides[0] + head * strides[1] + at.to(tl.int64) * strides[2]
    return tl.load(
        q_at[:, None] + width[None, :], mask=is_row[:, None] & (width < F.head_dim)[None, :], other=0.0
    )


@triton.jit
def loaded_keys(key, stride, column, is_column, F: tl.constexpr):
    """`(block_d, keys)`, some keys of one head; 0 where there is none."""
    width = tl.arange(0, F.block_d)
    k_at = key + column.to(tl.int64)[None, :] * stride + width[:, None]
    return tl.load(k_at, mask=(width < F.head_dim)[:, None] & is_column[None, :], other=0.0)


@triton.jit
def loaded_values(value, stride, column, is_column, F: tl.constexpr):
    """`(keys, block_d)`, some values of one head; 0 where there is none."""
    width = tl.arange(0, F.block_d)
    v_at = value + column.to(tl.int64)[:, None] * stride + width[None, :]
    return tl.load(v_at, mask=is_column[:, None] & (width < F.head_dim)[None, :], other=0.0)


@triton.jit
def weighed(scores, top):
    """One step of an online softmax: the new maximum, the weights by it, and the factor on what was summed before.

    A row that has met no key yet keeps minus infinity; its weights are 0, not NaN.
    """
    above = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(above == float("-inf"), 0.0, above)
    return above, tl.math.exp2(scores - base[:, None]), tl.math.exp2(top - base)


@triton.jit
def row_state(at, head, is_row, spec, F: tl.constexpr):
    """The `State` of rows; `at` is the query of the call and `head` the head that each is of."""
    mask, change, place = spec.mask, spec.change, spec.place
    group = tl.zeros(at.shape, tl.int32)
    earlier = tl.full(at.shape, -1, tl.int32)
    later = earlier
    if mask.query_group is not None:
        group = tl.load(mask.query_group + spec.sample * place.queries + at, mask=is_row, other=0)
        lines = mask.tables + 2 * F.shape.groups * F.shape.groups + 1
        earlier = tl.load(lines + group)
        later = tl.load(lines + F.shape.lines * (1 + F.shape.groups) + group)
    amount = tl.zeros(at.shape, tl.float32)
    if change.amplified is not None:
        is_amplified = tl.load(change.amplified + spec.sample * place.queries + at, mask=is_row, other=0)
        amount = is_amplified.to(tl.float32)
        if change.heads is not None:
            heads = place.kv_heads * place.group
            amount *= tl.load(change.heads + spec.sample * heads + head + at * 0, mask=is_row, other=0.0)
    return State(place.start + at, group, earlier, later, amount)


@triton.jit
def attended(position, state, bit, is_key, spec, F: tl.constexpr):
    """`(rows, keys)` booleans: which keys the rows attend to; `bit` is that of the group of each key."""
    distance = state.position[:, None] - position[None, :]
    allowed = distance >= 0
    if spec.place.window is not None:
        allowed = allowed & (distance < spec.place.window)
    if F.shape.lines > 0:
        reached = within(distance, state, state.earlier, bit, 0, spec, F)
        allowed = allowed & (reached | (distance == 0))
        if F.shape.later:
            unlocked = within(-distance, state, state.later, bit, F.shape.lines, spec, F)
            allowed = allowed | ((distance < 0) & unlocked)
    return allowed & is_key[None, :]


@triton.jit
def within(distance, state, everywhere, bit, FIRST: tl.constexpr, spec, F: tl.constexpr):
    """Whether keys are within the reaches of rows, which the lines of the tables from `FIRST` on hold."""
    LINES: tl.constexpr = F.shape.lines
    found = (everywhere[:, None] & bit[None, :]) != 0
    for line in tl.static_range(1, LINES):
        at = spec.mask.tables + 2 * F.shape.groups * F.shape.groups + (FIRST + line) * (1 + F.shape.groups)
        near = tl.load(at + 1 + state.group)
        found = found | (((near[:, None] & bit[None, :]) != 0) & (distance <= tl.load(at)))
    return found


@triton.jit
def edited_scores(q, k, state, column, is_column, spec, F: tl.constexpr):
    """`(rows, keys)` scores in units of log 2, minus infinity where a key is not attended to.

    `q` is `(rows, head_dim)`, `k` is `(head_dim, keys)` at the key columns `column`. All that is read of a key is read
    before the product, to be there in time.
    """
    mask, change, place = spec.mask, spec.change, spec.place
    position = place.first_key + column
    bit = tl.full(column.shape, 1, tl.int32)
    raised = tl.zeros(column.shape, tl.float32)
    added = tl.zeros(column.shape, tl.float32)
    if mask.key_group is not None:
        group = tl.load(mask.key_group + spec.sample * place.keys + column, mask=is_column, other=-1)
        is_column = is_column & (group >= 0)
        bit = bit << tl.maximum(group, 0)
    if change.gain is not None:
        is_known = is_column & (position < place.gains)
        raised = tl.load(change.gain + spec.sample * place.gains + position, mask=is_known, other=0.0)
    if change.bias is not None:
        is_known = is_column & (position < place.biases)
        added = tl.load(change.bias + spec.sample * place.biases + position, mask=is_known, other=0.0)
    scores = dot(q, k, None, F.precision) * spec.scale
    if F.shape.strength:
        at = mask.tables + 2 * F.shape.groups * F.shape.groups + 2 * F.shape.lines * (1 + F.shape.groups)
        is_weaker = (tl.load(at + 1 + state.group)[:, None] & bit[None, :]) != 0
        weaker = tl.load(at).to(tl.float32, bitcast=True)
        scores += tl.where((state.position[:, None] < position[None, :]) & is_weaker, weaker, 0.0)
    if change.amplified is not None:
        size = scores if F.signed else tl.abs(scores)
        # 1.44... is log2(e).
        moved = raised[None, :] * size + added[None, :] * 1.4426950408889634
        # Not 0 * moved, which is NaN where a bias is infinite.
        amount = state.amount[:, None]
        scores = tl.where(amount != 0.0, scores + amount * moved, scores)
    return tl.where(attended(position, state, bit, is_column, spec, F), scores, float("-inf"))


@triton.jit
def class_of(key_class, column, is_column, spec):
    """The class of key columns; text where none is known."""
    position = spec.place.first_key + column
    at = key_class + spec.sample * spec.place.classes + position
    return tl.load(at, mask=is_column & (position < spec.place.classes), other=0).to(tl.int32)


@triton.jit
def factor_of(kind, keep, grow):
    """The factor of the class `kind`: `keep` is that of sinks, `grow` that of plain patches; text keeps its weight."""
    return tl.where(kind == 2, grow, tl.where(kind % 2 == 1, keep, 1.0))


@triton.jit
def redistributed(text_sink, patch, patch_sink, may_move, settings):
    """What becomes of the masses of the classes of a row; see `spec.redistribution_gains`.

    Returns:
        The factors of sinks and of plain patches, whether the row is changed, and the mass moved.
    """
    image = patch + patch_sink
    is_moved = may_move & (image >= settings[2]) & (patch >= settings[1] * image) & (patch > 0)
    taken = tl.where(is_moved, settings[0], 0.0)
    mass = taken * (text_sink + patch_sink)
    return 1.0 - taken, 1.0 + mass / tl.where(is_moved, patch, 1.0), is_moved, mass
