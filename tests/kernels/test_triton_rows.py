"""Decoding in Triton against the definition in float64."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.kernels.packing import PackedEdits, PackedVisibility
from lvlm_attn.kernels.spec import Geometry, Redistribution
from lvlm_attn.kernels.triton.rows import RowsPlan, attend_rows
from lvlm_attn.kernels.triton.tiles import Tile, choose_splits, split_tile
from tests.fuzzing import sized
from tests.kernels.drawn import Drawn, calls, is_close_call, masses_of, relative

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = Tile(16, 16, 4, 1)
pytestmark = pytest.mark.usefixtures("poisoned")


@dataclass
class Found:
    """What the kernel gives, on the CPU."""

    output: torch.Tensor
    log_sum_exp: torch.Tensor
    masses: torch.Tensor
    is_changed: torch.Tensor
    moved: torch.Tensor


def run(call, every=True, index=None, output=None, **options):
    """Computes rows into a poisoned output, or into what is given."""
    batch, heads, queries, dim = call.query.shape
    if output is None:
        output = torch.full((batch, queries, heads, dim), torch.nan, dtype=call.query.dtype, device=DEVICE)
    if index is not None:
        index = index.int().contiguous().to(DEVICE)
    packed = call.packed(DEVICE)
    seen = attend_rows(call.attention(DEVICE), output, is_every=every, index=index, **packed, **options).cpu()
    return Found(output.cpu(), seen[..., 0], seen[..., 1:5], seen[..., 9] > 0, seen[..., 10])


def check(call, found, bound=1e-5):
    """Every number against float64."""
    want, _ = call.truth()
    total = call.log_sum_exp()
    blind = total == -torch.inf
    assert torch.equal(found.log_sum_exp == -torch.inf, blind)
    assert relative(found.log_sum_exp.masked_fill(blind, 0), total.masked_fill(blind, 0)) < bound
    assert torch.isfinite(found.output).all()
    assert (found.output.transpose(1, 2)[blind] == 0).all()
    spec = call.redistribution
    if spec is None:
        assert not found.is_changed.any()
        assert relative(found.output, want) < bound
        return
    masses = masses_of(call)
    assert relative(found.masses, masses) < bound
    # Where rounding may decide a row either way, the kernel's decision is taken and the rest is checked.
    undecided = is_close_call(call, masses) & spec.is_touched[:, None]
    kept = ~undecided.transpose(1, 2)[..., None]
    assert relative(found.output * kept, want * kept) < bound
    image, plain = masses[..., 2] + masses[..., 3], masses[..., 2]
    passes = (image >= spec.mass_floor) & (plain >= spec.rho * image) & (plain > 0)
    changed = passes & spec.is_touched[:, None]
    assert torch.equal(found.is_changed & ~undecided, changed & ~undecided)
    taken = spec.removed_fraction * (masses[..., 1] + masses[..., 3]) * found.is_changed
    assert relative(found.moved, taken) < bound


@sized(10)
@given(calls(lengths=(1, 17, 40), dims=(16, 24)), st.sampled_from([1, 2, 3, 8]))
def test_equals_the_definition(call, splits):
    check(call, run(call, splits=splits, tile=TILE))


@pytest.mark.parametrize("length", [1, 17, 63, 111, 300])
@pytest.mark.parametrize(("kv_heads", "group"), [(2, 1), (1, 4), (1, 8)])
def test_lengths_and_groups(length, kv_heads, group):
    check(ordinary(length, kv_heads, group), run(ordinary(length, kv_heads, group)))


@pytest.mark.parametrize("queries", [2, 3, 4, 5, 8])
def test_queries(queries):
    call = ordinary(63, 2, 4, queries=queries)
    check(call, run(call, splits=3))


@pytest.mark.parametrize("dim", [32, 64, 80, 96, 128, 256])
def test_head_sizes(dim):
    call = ordinary(40, 1, 2, dim=dim)
    check(call, run(call, splits=2))


@pytest.mark.parametrize("splits", [1, 2, 3, 5, 8])
def test_splits_do_not_matter(splits):
    """With 17 keys in tiles of 16, all splits but the first two are empty."""
    call = ordinary(17, 1, 4)
    found = run(call, splits=splits, tile=TILE)
    check(call, found)
    torch.testing.assert_close(found.output, run(call, splits=1, tile=TILE).output, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Against float64 of the rounded inputs: what is left is the rounding of weights and of the output."""
    call = ordinary(111, 1, 4)
    call.query, call.key, call.value = (t.to(dtype) for t in (call.query, call.key, call.value))
    found = run(call, splits=3)
    assert found.output.dtype == dtype
    want, _ = call.truth()
    assert relative(found.output, want) < 2 * torch.finfo(dtype).eps
    assert relative(found.log_sum_exp, call.log_sum_exp()) < 1e-5


def test_large_scores_stay_finite():
    call = ordinary(63, 1, 4, scale=1000.0)
    found = run(call, splits=2)
    check(call, found)


def test_a_redistribution_that_touches_no_row_changes_no_bit():
    call = ordinary(63, 1, 4)
    spec = call.redistribution
    call.redistribution = dataclasses.replace(spec, is_touched=torch.zeros_like(spec.is_touched))
    still = run(call, splits=2)
    call.redistribution = dataclasses.replace(spec, removed_fraction=0.0)
    assert torch.equal(still.output, run(call, splits=2).output)
    assert not still.is_changed.any()
    assert (still.moved == 0).all()


def test_classes_without_weight_are_harmless():
    call = ordinary(40, 1, 4)
    call.redistribution = dataclasses.replace(
        call.redistribution, key_class=torch.zeros(1, 40, dtype=torch.long), rho=0.0, mass_floor=0.0
    )
    found = run(call, splits=2)
    check(call, found)
    assert not found.is_changed.any()


def test_rows_of_padding_are_zero():
    call = ordinary(20, 2, 1, queries=4)
    is_valid = torch.arange(20)[None] < 17
    call.geometry = dataclasses.replace(call.geometry, is_valid=is_valid, window=2)
    found = run(call, splits=3, tile=TILE)
    check(call, found)
    assert (found.output[:, -1] == 0).all()


def test_poisoned_keys_beyond_what_was_written_are_not_read():
    call = ordinary(20, 1, 4, extra=12)
    check(call, before := run(call, splits=2))
    for tensor in (call.key, call.value):
        tensor[:, :, 20:] = torch.nan
    assert torch.equal(run(call, splits=2).output, before.output)


def test_strides_of_a_view():
    """Heads and positions as a model lays them out before its transpose, and a cache with room."""
    call = ordinary(30, 2, 2, queries=3)
    want = run(call, splits=2).output
    call.query = call.query.transpose(1, 2).contiguous().transpose(1, 2)
    call.key = torch.nn.functional.pad(call.key, (0, 0, 0, 7))[:, :, :-7]
    call.value = call.value.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(run(call, splits=2).output, want)


def test_refuses_what_does_not_fit():
    call = ordinary(20, 1, 4)
    packed, edits, given = PackedVisibility(), PackedEdits(), call.attention()
    other = {"query": call.query[:, :3], "key": call.key.expand(-1, 2, -1, -1)}
    with pytest.raises(LvlmAttnError, match="divide"):
        RowsPlan.of(dataclasses.replace(given, **other), packed, edits)
    with pytest.raises(LvlmAttnError, match="geometry"):
        RowsPlan.of(dataclasses.replace(given, key=call.key[:, :, 1:]), packed, edits)


def test_splits_fill_the_device():
    assert choose_splits(32, 2900, 132, 64) == 8
    assert choose_splits(256, 2900, 132, 64) == 1
    assert choose_splits(8, 2900, 132, 64) == 16  # heads that share keys: shorter parts
    assert choose_splits(1, 100, 132, 64) == 1  # too short to split
    assert 1 <= choose_splits(1, 10**6, 132, 64) <= 64


def test_tiles_hold_all_copies_of_a_row():
    for dim in (32, 64, 80, 128, 256):
        for rows in (1, 4, 32, 256):
            tile = split_tile("sm_90", dim, 2, rows)
            assert tile.block_m >= 16
            assert tile.block_m % 4 == 0


def ordinary(length, kv_heads, group, queries=1, dim=32, scale=2.0, extra=0):
    """A call with all classes, most of whose rows are changed."""
    generator = torch.Generator().manual_seed(length)
    queries = min(queries, length)
    query = scale * torch.randn(1, kv_heads * group, queries, dim, generator=generator)
    key, value = (torch.randn(1, kv_heads, length + extra, dim, generator=generator) for _ in range(2))
    spec = Redistribution(
        torch.randint(0, 4, (1, length), generator=generator),
        torch.ones(1, queries, dtype=torch.bool),
        removed_fraction=0.4,
        rho=0.1,
        mass_floor=0.05,
    )
    geometry = Geometry(length - queries, queries, length + extra)
    return Drawn(query, key, value, geometry, redistribution=spec, scaling=dim**-0.5)


def test_most_ordinary_rows_are_changed():
    """So that the equalities above are about redistribution."""
    found = run(ordinary(111, 2, 4, queries=4))
    assert found.is_changed.float().mean() > 0.5


def test_counts_add_up():
    """Rows moved, rows that could be, and the weight moved, over two calls."""
    call = ordinary(63, 1, 4, queries=3)
    call.redistribution = dataclasses.replace(
        call.redistribution, is_touched=torch.tensor([[True, False, True]])
    )
    counts = torch.zeros(3, dtype=torch.float64, device=DEVICE)
    found = [run(call, moved=counts, splits=splits) for splits in (1, 2)]
    want = [
        sum(float(part.sum()) for part in parts) for parts in zip(*((f.is_changed, f.moved) for f in found))
    ]
    assert counts.tolist() == pytest.approx([want[0], 16, want[1]])
