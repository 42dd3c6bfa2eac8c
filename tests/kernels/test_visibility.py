"""Who may read what: tables and predicates against a loop over pairs, and the touched rows against the definition."""

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.kernels import visible_path
from lvlm_attn.kernels.call import AttentionCall, Memo
from lvlm_attn.kernels.reference import attention
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.visibility import ALL, Visibility, allowed_keys
from lvlm_attn.kernels.visible_path import visible_mask, write_visible
from tests.fuzzing import sized
from tests.kernels import loops

DIM = 4
reaches = st.sampled_from([0, 1, 2, 5, ALL, ALL])


@st.composite
def geometries(draw, batch):
    queries = draw(st.sampled_from([1, 2, 6, 13]))
    start = draw(st.sampled_from([0, 0, 4]))
    length = start + queries
    extra = draw(st.sampled_from([0, 0, 3]))
    window = draw(st.sampled_from([None, None, 3]))
    dropped = draw(st.sampled_from([0, 2])) if window and not extra and start else 0
    is_valid = None
    if draw(st.booleans()):
        pads = torch.tensor(draw(st.lists(st.integers(0, length), min_size=batch, max_size=batch)))
        columns = torch.arange(length)[None]
        left = draw(st.booleans())
        is_valid = columns >= pads[:, None] if left else columns < length - pads[:, None]
    return Geometry(start, queries, max(length + extra - dropped, queries), is_valid, window)


@st.composite
def visibilities(draw, batch, length):
    groups = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    table = st.lists(
        st.lists(reaches, min_size=groups, max_size=groups).map(tuple), min_size=groups, max_size=groups
    ).map(tuple)
    known = max(length - draw(st.sampled_from([0, 0, 2])), 1)  # positions past the end are of group 0
    group = torch.randint(0, groups, (batch, known), generator=generator)
    modulus = draw(st.sampled_from([0, 0, 2, 3]))
    predicate = touches = None
    if modulus:

        def predicate(query, key):
            return (query - key) % modulus != 1

        touches = torch.ones(batch, length, dtype=torch.bool)
    return Visibility(
        group,
        earlier=draw(table),
        later=draw(st.sampled_from([None, True])) and draw(table),
        strength=draw(st.sampled_from([1.0, 1.0, 0.25])),
        predicate=predicate,
        touches=touches,
    )


@st.composite
def cases(draw):
    batch = draw(st.integers(1, 2))
    geometry = draw(geometries(batch))
    count = draw(st.integers(1, 2))
    items = [draw(visibilities(batch, geometry.length)) for _ in range(count)]
    return batch, geometry, items, draw(st.integers(0, 10**6))


def pair(items, geometry, sample, row, column):
    """Whether a query may read a key, and the bias on its score: the rule in words, one pair at a time."""
    query, key = geometry.start + row, column + max(geometry.length - geometry.keys, 0)

    def group(item, position):
        return int(item.group[sample, position]) if position < item.group.shape[1] else 0

    if key > query:
        if key >= geometry.length or (geometry.is_valid is not None and not geometry.is_valid[sample, key]):
            return False, 0.0
        for item in items:
            if item.later is not None and key - query <= item.later[group(item, query)][group(item, key)]:
                return True, math.log(item.strength)
        return False, 0.0
    if not loops.may_read(geometry, sample, row, column):
        return False, 0.0
    for item in items:
        if key == query:
            continue
        if query - key > item.earlier[group(item, query)][group(item, key)]:
            return False, 0.0
        if item.predicate is not None and not item.predicate(query, key):
            return False, 0.0
    return True, 0.0


def slow(items, geometry, batch):
    """`pair` for all of them: what may be read `(batch, queries, keys)`, and the biases."""
    found = [
        [[pair(items, geometry, b, r, c) for c in range(geometry.keys)] for r in range(geometry.queries)]
        for b in range(batch)
    ]
    may = torch.tensor([[[entry[0] for entry in row] for row in rows] for rows in found])
    bias = torch.tensor(
        [[[entry[1] for entry in row] for row in rows] for rows in found], dtype=torch.float64
    )
    return may, bias


def plain(geometry, batch):
    return slow([], geometry, batch)[0]


def dense(geometry, batch, kind):
    """The mask a backend would have been given."""
    if kind == "none":
        return None
    readable = plain(geometry, batch)[:, None]
    if kind == "bool":
        return readable
    low = torch.finfo(torch.float64).min
    return torch.zeros(readable.shape, dtype=torch.float64).masked_fill(~readable, low)


def attend(query, key, value, may, bias):
    """Softmax attention over one pair of groups of heads at a time, rows that may read nothing at 0."""
    group = query.shape[1] // key.shape[1]
    out = torch.zeros_like(query)
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head // group].transpose(1, 2) * 0.5 + bias
        weights = scores.masked_fill(~may, -torch.inf).softmax(-1).nan_to_num(0.0)
        out[:, head] = weights @ value[:, head // group]
    return out


def tensors(geometry, batch, seed, heads=4, kv_heads=2):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query = 2 * noise(batch, heads, geometry.queries, DIM)
    return (
        query,
        noise(batch, kv_heads, geometry.keys, DIM),
        noise(batch, kv_heads, geometry.keys, DIM),
    )


@sized(150)
@given(cases())
def test_readable_keys_equal_a_double_loop(case):
    batch, geometry, items, _ = case
    index = torch.arange(geometry.start, geometry.length).expand(batch, -1)
    readable, bias = allowed_keys(items, geometry, index, dtype=torch.float64)
    want, want_bias = slow(items, geometry, batch)
    assert torch.equal(readable, want)
    if bias is None:
        assert not want_bias.any()
    else:
        assert torch.equal(bias.masked_fill(~readable, 0), want_bias)


@sized(150)
@given(cases(), st.sampled_from(["none", "bool", "additive"]), st.booleans(), st.sampled_from([512, 2]))
def test_touched_rows_equal_the_definition(case, kind, with_memo, chunk):
    batch, geometry, items, seed = case
    query, key, value = tensors(geometry, batch, seed)
    may, bias = slow(items, geometry, batch)
    want = attend(query, key, value, may, bias)
    backend = attend(query, key, value, plain(geometry, batch), torch.zeros_like(bias))
    mask = dense(geometry, batch, kind)
    memo = Memo()
    with patch.object(visible_path, "CHUNK", chunk):
        for _ in range(2):  # the second time from the memo
            got = write_visible(
                backend.transpose(1, 2).contiguous(),
                AttentionCall(
                    query, key, value, geometry, 0.5, mask=mask, memo=memo if with_memo else Memo()
                ),
                items,
            ).transpose(1, 2)
            assert torch.isfinite(got).all()
            # A query without any key is padding; what it attends to in the end does not matter.
            blind = ~may.any(-1)[:, None, :, None]
            torch.testing.assert_close(
                got.masked_fill(blind, 0), want.masked_fill(blind, 0), rtol=0, atol=1e-12
            )
    defined, weights = attention(query, key, value, scaling=0.5, geometry=geometry, visibility=items)
    torch.testing.assert_close(defined, want, rtol=0, atol=1e-12)
    assert (weights.sum(-1) < 1 + 1e-12).all()


@sized(100)
@given(cases())
def test_untouched_rows_read_what_causality_lets_them(case):
    batch, geometry, items, _ = case
    want, _ = slow(items, geometry, batch)
    differs = (want != plain(geometry, batch)).any(-1)
    is_touched, is_alone = visible_path.touched_queries(items, geometry, torch.device("cpu"))
    if is_touched is None:
        assert not differs.any()
    else:
        assert not (differs & ~is_touched).any()
    if is_alone is not None:
        own = torch.eye(geometry.queries, geometry.keys, dtype=torch.bool).roll(
            geometry.start - max(geometry.length - geometry.keys, 0), 1
        )
        assert (want[is_alone] <= own.expand(batch, -1, -1)[is_alone]).all()


def test_the_cases_drawn_here_restrict_unlock_and_leave_alone():
    seen = {"less": 0, "more": 0, "alone": 0, "bias": 0, "blind": 0}

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(cases())
    def draw(case):
        batch, geometry, items, _ = case
        want, bias = slow(items, geometry, batch)
        base = plain(geometry, batch)
        _, alone = visible_path.touched_queries(items, geometry, torch.device("cpu"))
        seen["less"] += bool((base & ~want).any())
        seen["more"] += bool((want & ~base).any())
        seen["bias"] += bool(bias.any())
        seen["alone"] += alone is not None and bool(alone.any())
        seen["blind"] += bool((~want.any(-1)).any())

    draw()
    assert min(seen.values()) >= 4, seen


def test_the_own_value_equals_the_masked_row():
    """Rows that attend to themselves alone are copied; a second visibility that might unlock keys makes them attend."""
    geometry = Geometry(0, 7, 7)
    query, key, value = tensors(geometry, 2, 3)
    group = torch.tensor([[0, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 1, 1, 0]])
    alone = Visibility(group, earlier=((ALL, ALL), (0, 0)))
    idle = Visibility(group, earlier=((ALL, ALL), (ALL, ALL)), later=((0, 0), (0, 0)))
    output = torch.randn(2, 7, 4, DIM, dtype=torch.float64)
    call = AttentionCall(query, key, value, geometry, 0.5)
    with patch.object(visible_path, "attend_masked", side_effect=AssertionError("no attention is needed")):
        copied = write_visible(output.clone(), call, [alone])
    attended = write_visible(output.clone(), call, [alone, idle])
    torch.testing.assert_close(copied, attended, rtol=0, atol=1e-12)
    own = value.transpose(1, 2).repeat_interleave(2, 2)
    assert torch.equal(copied[group == 1], own[group == 1])
    assert torch.equal(copied[group == 0], output[group == 0])


def test_masks_are_made_once_for_layers_that_share_them():
    geometry = Geometry(0, 9, 9)
    query, key, value = tensors(geometry, 1, 0)
    reads = Visibility(torch.arange(9)[None] % 2, earlier=((ALL, ALL), (ALL, 0)))
    output = torch.zeros(1, 9, 4, DIM, dtype=torch.float64)
    memo = Memo()

    def layer(mask=None, keys=geometry):
        call = AttentionCall(query, key, value, keys, 0.5, mask=mask, memo=memo)
        return write_visible(output.clone(), call, [reads])

    with patch.object(visible_path, "visible_mask", wraps=visible_mask) as made:
        first = layer()
        assert torch.equal(layer(), first)
        assert made.call_count == 1
        # A layer with another window or mask has a mask of its own.
        windowed = layer(keys=Geometry(0, 9, 9, None, 2))
        assert made.call_count == 2
        assert not torch.equal(windowed, first)
        layer(mask=torch.ones(1, 1, 9, 9, dtype=torch.bool).tril())
        assert made.call_count == 3
    for _ in range(10):  # a mask of its own for every layer
        layer(mask=torch.ones(1, 1, 9, 9, dtype=torch.bool).tril())
    assert len(memo.kept[visible_path.shared_for_mask].kept) == visible_path.KEPT_PLANS
    with patch.object(visible_path, "visible_mask", wraps=visible_mask) as made:
        with patch.object(visible_path, "KEPT_BYTES", 8):
            memo.clear()
            layer()
            layer()
        assert made.call_count == 2  # too large to keep


def test_a_strength_multiplies_the_exponentiated_score():
    geometry = Geometry(0, 3, 3)
    query, key, value = tensors(geometry, 1, 5)
    group = torch.tensor([[1, 0, 0]])
    tables = {"earlier": ((ALL, ALL), (ALL, ALL)), "later": ((0, 0), (ALL, 0))}
    _, weights = attention(
        query,
        key,
        value,
        scaling=0.5,
        geometry=geometry,
        visibility=[Visibility(group, strength=0.3, **tables)],
    )
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key.repeat_interleave(2, 1)) * 0.5
    power = scores[:, :, 0].exp() * torch.tensor([1, 0.3, 0.3], dtype=torch.float64)
    torch.testing.assert_close(weights[:, :, 0], power / power.sum(-1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_masks_stay_finite(dtype):
    """A strength makes the mask additive; its lowest number must not become minus infinity in half precision."""
    geometry = Geometry(0, 6, 6, torch.tensor([[0, 0, 1, 1, 1, 1]]).bool())
    query, key, value = (tensor.to(dtype) for tensor in tensors(geometry, 1, 1))
    group = torch.tensor([[1, 1, 1, 1, 0, 0]])
    item = Visibility(group, earlier=((ALL, ALL), (ALL, ALL)), later=((0, 0), (ALL, 0)), strength=0.5)
    output = torch.zeros(1, 6, 4, DIM, dtype=dtype)
    got = write_visible(output, AttentionCall(query, key, value, geometry, 0.5), [item])
    assert torch.isfinite(got).all()
    may, bias = slow([item], geometry, 1)
    want = attend(query.double(), key.double(), value.double(), may, bias).transpose(1, 2)
    assert (got[:, 2:4].double() - want[:, 2:4]).abs().max() < 0.02


def test_gradients_reach_queries_keys_and_values():
    geometry = Geometry(0, 5, 5)
    query, key, value = (tensor.requires_grad_() for tensor in tensors(geometry, 1, 2))
    item = Visibility(torch.tensor([[0, 1, 1, 2, 0]]), earlier=((ALL,) * 3, (ALL, 0, ALL), (0, 0, 0)))
    may, bias = slow([item], geometry, 1)

    def path():
        backend = attend(query, key, value, plain(geometry, 1), torch.zeros_like(bias))
        call = AttentionCall(query, key, value, geometry, 0.5)
        return write_visible(backend.transpose(1, 2), call, [item]).transpose(1, 2)

    probe = torch.randn(1, 4, 5, DIM, dtype=torch.float64)
    got = torch.autograd.grad((path() * probe).sum(), (query, key, value))
    want = torch.autograd.grad((attend(query, key, value, may, bias) * probe).sum(), (query, key, value))
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_no_mask_is_larger_than_a_chunk_of_rows_by_all_keys():
    length = 900
    geometry = Geometry(0, length, length)
    group = torch.ones(1, length, dtype=torch.long)
    group[:, -5:] = 0
    item = Visibility(group, earlier=((ALL, ALL), (ALL, 0)), later=((0, 0), (ALL, 0)))
    rows = Rows.of(item.touched(geometry))
    query, key, value = (tensor.float() for tensor in tensors(geometry, 1, 1))
    sizes = []

    def note(*args):
        made = visible_mask(*args)
        sizes.append(made.shape[2])
        return made

    with patch.object(visible_path, "visible_mask", note):
        write_visible(torch.zeros(1, length, 4, DIM), AttentionCall(query, key, value, geometry, 0.5), [item])
    assert sum(sizes) == rows.index.shape[1] == length - 5
    assert max(sizes) <= visible_path.CHUNK


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"earlier": ((ALL, ALL), (ALL,))}, r"earlier=\(\(.* one line for each group"),
        ({"earlier": ()}, r"earlier=\(\)"),
        ({"earlier": None}, "earlier=None"),
        ({"earlier": ((-1,),)}, r"earlier=\(\(-1,\),\).* from 0 on"),
        ({"earlier": ((2.5,),)}, r"earlier=\(\(2.5,\),\)"),
        ({"earlier": ((0, -1), (0, 0))}, r"earlier=\(\(0, -1\)"),
        ({"earlier": ((0, "1"), (0, 0))}, r"earlier=\(\(0, '1'\)"),
        ({"earlier": (ALL, (0, 0))}, r"earlier=\("),
        ({"earlier": ({0: 1}, (0,))}, r"earlier=\("),
        ({"earlier": ((0, 0), 3)}, r"earlier=\("),
        ({"earlier": {0: (0,)}}, r"earlier=\{"),
        ({"earlier": ((ALL,),), "later": ()}, r"later=\(\)"),
        ({"earlier": ((ALL,),), "later": 5}, "later=5"),
        ({"earlier": ((ALL,),), "later": ((0, 0), (0, 0))}, "later=.* both tables are of one size"),
        ({"earlier": ((ALL,),), "strength": 0}, "strength=0 must be a number above 0"),
        ({"earlier": ((ALL,),), "strength": math.nan}, "strength=nan"),
        ({"earlier": ((ALL,),), "strength": 1.5}, "strength=1.5"),
        ({"earlier": ((ALL,),), "strength": "1"}, "strength='1'"),
        ({"earlier": ((ALL,),), "predicate": lambda query, key: query > key}, "a predicate needs touches"),
    ],
)
def test_what_is_no_mask_is_refused_when_it_is_made(fields, words):
    with pytest.raises(LvlmAttnError, match=f"^Visibility: {words}"):
        Visibility(torch.zeros(1, 3, dtype=torch.long), **fields)
