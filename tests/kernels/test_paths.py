"""The definition of attention against loops, and the torch path against the definition, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.reference import attention
from lvlm_attn.kernels.spec import Geometry, Redistribution
from lvlm_attn.kernels.torch_path import Rows, mask_rows, redistribute, row_outputs, row_weights, write_rows
from tests.fuzzing import sized
from tests.kernels import loops

FAST = sized(40)
DIM = 4


@st.composite
def calls(draw, decode_only=False):
    """Queries, keys, values, where they stand, and what to move."""
    seed = draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    batch = draw(st.integers(1, 3))
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (1, 4), (2, 4), (1, 8)]))
    queries = 1 if decode_only else draw(st.sampled_from([1, 2, 5, 13]))
    start = draw(st.sampled_from([0, 3, 11]))
    length = start + queries
    extra = draw(st.sampled_from([0, 0, 6]))  # a static cache longer than what was written
    window = draw(st.sampled_from([None, None, 3]))
    dropped = draw(st.sampled_from([0, 0, 2])) if window and not extra else 0  # a sliding cache
    keys = max(length + extra - dropped, queries)
    is_valid = None
    if draw(st.booleans()):
        pads = torch.randint(0, length + 1, (batch,), generator=generator)  # whole rows of padding too
        is_valid = torch.arange(length)[None] >= pads[:, None]
    prompt = length - draw(st.integers(0, length - 1))  # later positions are generated

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query = 2 * noise(batch, kv_heads * group, queries, DIM)
    key, value = noise(batch, kv_heads, keys, DIM), noise(batch, kv_heads, keys, DIM)
    spec = Redistribution(
        key_class=torch.randint(0, 4, (batch, prompt), generator=generator),
        is_touched=torch.rand(batch, queries, generator=generator)
        < draw(st.sampled_from([1.0, 0.5, 1.0, 0.0])),
        removed_fraction=draw(st.sampled_from([0.375, 1.0, 0.375, 0.0])),
        rho=draw(st.sampled_from([0.25, 0.5, 0.0, 0.8])),
        mass_floor=draw(st.sampled_from([0.125, 0.0, 0.5])),
    )
    return query, key, value, Geometry(start, queries, keys, is_valid, window), spec


def path(query, key, value, geometry, spec, mask=None):
    """The torch path as the pieces are meant to be put together; the backend is the plain definition."""
    plain, _ = attention(query, key, value, scaling=0.5, geometry=geometry)
    output = plain.transpose(1, 2).contiguous()
    rows = Rows.of(spec.is_touched)
    if rows is None:
        return output.transpose(1, 2)
    chosen = mask_rows(AttentionCall(query, key, value, geometry, 0.5, mask=mask), rows)
    weights = row_weights(rows.take(query), key, scaling=0.5, mask=chosen)
    new, is_changed, _ = redistribute(weights, spec, geometry)
    return write_rows(output, row_outputs(new, value), rows, is_changed).transpose(1, 2)


@FAST
@given(calls())
def test_definition_equals_loops(call):
    query, key, value, geometry, spec = call
    for redistribution in (None, spec):
        out, weights = attention(
            query, key, value, scaling=0.5, geometry=geometry, redistribution=redistribution
        )
        want = loops.weights(query, key, 0.5, geometry, redistribution)
        torch.testing.assert_close(weights, want, rtol=0, atol=1e-12)
        torch.testing.assert_close(out, loops.outputs(want, value), rtol=0, atol=1e-12)


@sized(150)
@given(calls(), st.sampled_from(["none", "bool", "additive"]))
def test_torch_path_equals_definition(call, kind):
    query, key, value, geometry, spec = call
    mask = dense(geometry, query.shape[0], kind)
    want, _ = attention(query, key, value, scaling=0.5, geometry=geometry, redistribution=spec)
    got = path(query, key, value, geometry, spec, mask)
    if kind == "additive":
        # With finite minus infinity a query that may read nothing reads everything, in every backend.
        blind = (mask < 0).all(-1)[:, 0]
        assert torch.isfinite(got).all()
        got, want = (t.masked_fill(blind[:, None, :, None], 0) for t in (got, want))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def dense(geometry, batch, kind):
    """The mask a backend would be given, or None."""
    if kind == "none":
        return None
    readable = torch.tensor(
        [
            [
                [loops.may_read(geometry, b, row, column) for column in range(geometry.keys)]
                for row in range(geometry.queries)
            ]
            for b in range(batch)
        ]
    )[:, None]
    if kind == "bool":
        return readable
    low = torch.finfo(torch.float64).min
    return torch.zeros(readable.shape, dtype=torch.float64).masked_fill(~readable, low)


def test_the_calls_drawn_here_do_change_rows():
    """A share of them, so that the equalities above are about redistribution."""
    changed = []

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(calls())
    def draw(call):
        query, key, value, geometry, spec = call
        plain, _ = attention(query, key, value, scaling=0.5, geometry=geometry)
        changed.append(not torch.equal(path(query, key, value, geometry, spec), plain))

    draw()
    assert sum(changed) > len(changed) // 8


def test_fractions_keep_float64():
    """0.4 has no exact float32; a float64 call must not see its rounding."""
    weights = torch.tensor([[[[0.5, 0.25, 0.25]]]], dtype=torch.float64)
    classes = torch.tensor([[loops.TEXT_SINK, loops.PATCH, loops.TEXT]])
    spec = Redistribution(classes, torch.ones(1, 1, dtype=torch.bool), 0.4, 0.1, 0.1)
    new, _, _ = redistribute(weights, spec, Geometry(2, 1, 3))
    want = torch.tensor([0.3, 0.45, 0.25], dtype=torch.float64)
    torch.testing.assert_close(new[0, 0, 0], want, rtol=0, atol=1e-15)


@FAST
@given(calls())
def test_untouched_rows_keep_their_bits(call):
    query, key, value, geometry, spec = call
    plain, _ = attention(query, key, value, scaling=0.5, geometry=geometry)
    got = path(query, key, value, geometry, spec)
    still = ~spec.is_touched[:, None, :, None].expand_as(got)
    assert torch.equal(got[still], plain[still])


@FAST
@given(calls())
def test_rows_keep_their_sum_and_support(call):
    query, key, value, geometry, spec = call
    _, before = attention(query, key, value, scaling=0.5, geometry=geometry)
    _, after = attention(query, key, value, scaling=0.5, geometry=geometry, redistribution=spec)
    torch.testing.assert_close(after.sum(-1), before.sum(-1), rtol=0, atol=1e-12)
    assert (after >= 0).all()
    assert (after[before == 0] == 0).all()


def test_a_row_that_may_read_nothing_is_zero():
    query = torch.randn(1, 2, 3, DIM)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    mask[:, :, 0] = False
    weights = row_weights(query, query, scaling=0.5, mask=mask)
    assert (weights[:, :, 0] == 0).all()
    torch.testing.assert_close(weights[:, :, 1:].sum(-1), torch.ones(1, 2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    query, key = torch.randn(1, 4, 3, DIM).to(dtype), torch.randn(1, 2, 9, DIM).to(dtype)
    weights = row_weights(query, key, scaling=0.5, mask=None)
    assert weights.dtype == torch.float32
    exact = row_weights(query.double(), key.double(), scaling=0.5, mask=None)
    torch.testing.assert_close(weights.double(), exact, rtol=0, atol=1e-6)


class Largest(TorchDispatchMode):
    """Remembers the most elements any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, torch.Tensor) and item.untyped_storage().size():
                stored = item.untyped_storage().size() // item.element_size()
                self.elements = max(self.elements, stored)
        return result


def test_no_queries_by_keys_matrix_is_made():
    """600 queries, 20 of them touched: nothing grows beyond 20 rows of weights."""
    length, heads, touched = 600, 2, 20
    query, value = torch.randn(1, heads, length, DIM), torch.randn(1, heads, length, DIM)
    is_touched = torch.zeros(1, length, dtype=torch.bool)
    is_touched[:, -touched:] = True
    spec = Redistribution(torch.randint(0, 4, (1, length)), is_touched, 0.4, 0.1, 0.1)
    geometry = Geometry(0, length, length, torch.ones(1, length, dtype=torch.bool))
    output = torch.randn(1, length, heads, DIM)
    with Largest() as largest:
        rows = Rows.of(is_touched)
        chosen = mask_rows(AttentionCall(query, query, value, geometry, 0.5), rows)
        weights = row_weights(rows.take(query), query, scaling=0.5, mask=chosen)
        new, is_changed, _ = redistribute(weights, spec, geometry)
        write_rows(output, row_outputs(new, value), rows, is_changed)
    assert is_changed.any()
    assert largest.elements <= heads * touched * length
    with Largest() as whole:
        attention(query, query, value, scaling=0.5, geometry=geometry)
    assert whole.elements >= length * length  # so the count above can fail


def test_rows_that_stand_together_are_picked_as_views():
    values = torch.arange(2 * 3 * 7 * 4).view(2, 3, 7, 4)
    whole = Rows.of(torch.ones(2, 7, dtype=torch.bool))
    parts = list(whole.parts(3))
    assert [(part.start, part.is_all) for part in parts] == [(0, False), (3, False), (6, False)]
    assert torch.equal(torch.cat([part.take(values) for part in parts], 2), values)
    assert whole.take(values) is values
    span = torch.tensor([False, False, True, True, True, False, False])
    some = Rows.of(span.expand(2, -1)).together()
    assert some.start == 2
    for dim in (1, 2):
        moved = values.transpose(1, 2) if dim == 1 else values
        picked = some.take(moved, dim)
        assert torch.equal(picked, moved.gather(dim, some.index_along(moved, dim)))
        assert picked.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
    apart = Rows.of(torch.stack((span, span.roll(1)))).together()
    assert apart.start is None
    assert torch.equal(apart.take(values)[1], values[1, :, 3:6])
