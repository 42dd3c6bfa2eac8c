"""Prefill in Triton, every row and the touched ones, against the definition in float64."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from lvlm_attn.kernels.call import Memo
from lvlm_attn.kernels.packing import (
    pack_visibility,
    unsupported_edits,
    unsupported_visibility,
)
from lvlm_attn.kernels.reference import attention
from lvlm_attn.kernels.spec import Amplification, Geometry, Redistribution
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.triton.blocks import list_blocks
from lvlm_attn.kernels.triton.path import PackedCall
from lvlm_attn.kernels.triton.prefill import attend_all
from lvlm_attn.kernels.triton.tiles import Tile
from lvlm_attn.kernels.visibility import ALL, Visibility, allowed_keys
from tests.fuzzing import sized
from tests.kernels.drawn import Drawn, calls, is_close_call, masses_of, relative
from tests.kernels.test_triton_rows import run

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Tile(16, 16, 4, 1)
WIDE = Tile(64, 128, 4, 1)
PREFILL = calls(queries=(2, 9, 17, 33), lengths=(1, 17, 40), dims=(16, 24))
pytestmark = pytest.mark.usefixtures("poisoned")


def plain_of(call):
    """Output and log-sum-exp with visibility alone, in float64."""
    bare = dataclasses.replace(call, amplification=None, redistribution=None)
    return bare.truth()[0], bare.log_sum_exp()


def run_all(call, **options):
    batch, heads, queries, dim = call.query.shape
    output = torch.full((batch, queries, heads, dim), torch.nan, dtype=call.query.dtype, device=DEVICE)
    total = torch.full((batch, heads, queries), torch.nan, device=DEVICE)
    packed = pack_visibility(call.visibility, call.geometry, torch.device(DEVICE))
    found = attend_all(call.attention(DEVICE), packed=packed, output=output, log_sum_exp=total, **options)
    assert found is output
    return output.cpu(), total.cpu()


def check_all(call, bound=1e-5, **options):
    found, total = run_all(call, **options)
    want, want_total = plain_of(call)
    blind = want_total == -torch.inf
    assert torch.equal(total == -torch.inf, blind)
    assert relative(total.masked_fill(blind, 0), want_total.masked_fill(blind, 0)) < bound
    assert torch.isfinite(found).all()
    assert (found.transpose(1, 2)[blind] == 0).all()
    assert relative(found, want) < bound


def run_rows(call, **options):
    """The touched rows over an output of a constant, and what was seen in them; None if no row is touched."""
    batch, heads, queries, dim = call.query.shape
    rows = Rows.of(call.touched())
    if rows is None:
        return None
    output = torch.full((batch, queries, heads, dim), 7.0, dtype=call.query.dtype, device=DEVICE)
    counts = torch.zeros(3, dtype=torch.float64, device=DEVICE)
    found = run(call, every=False, index=rows.index, output=output, moved=counts, **options)
    return output.cpu(), rows, found, counts.cpu()


def check_rows(call, bound=1e-5, **options):
    """Changed rows are as defined, all others keep what was there; what was seen and counted is right."""
    result = run_rows(call, **options)
    if result is None:
        return 0
    output, rows, found, counts = result
    want, _ = call.truth()
    want = want.transpose(1, 2)
    changed = torch.zeros(want.shape[:3], dtype=torch.bool)
    undecided = changed.clone()
    if call.amplification is not None:
        acts = call.amplification.per_head(want.shape[1]) != 0
        changed |= call.amplification.is_touched[:, None] & acts[..., None]
    spec = call.redistribution
    if spec is not None:
        masses = masses_of(call)
        image, patch = masses[..., 2] + masses[..., 3], masses[..., 2]
        moves = (image >= spec.mass_floor) & (patch >= spec.rho * image) & (patch > 0)
        moves &= spec.is_touched[:, None]
        changed |= moves
        undecided = is_close_call(call, masses) & spec.is_touched[:, None]
        index = rows.index[:, None, :, None].expand(-1, want.shape[1], -1, 4)
        touched = (rows.is_touched[:, None, :, None]).expand_as(index)
        assert relative(found.masses * touched, masses.gather(2, index) * touched) < bound
        assert counts[1] == spec.is_touched.sum() * want.shape[1]
        if not undecided.any():
            taken = spec.removed_fraction * (masses[..., 1] + masses[..., 3])
            assert counts[0] == moves.sum()
            assert relative(counts[2], (taken * moves).sum()) < bound
    got = output.transpose(1, 2)
    decided = ~undecided[..., None]
    assert (got[~changed & ~undecided] == 7).all()
    assert torch.isfinite(got).all()
    assert relative(got * (changed[..., None] & decided), want * (changed[..., None] & decided)) < bound
    index = rows.index[:, None].expand(-1, want.shape[1], -1)
    total = call.log_sum_exp().gather(2, index)
    blind = total == -torch.inf
    assert torch.equal(found.log_sum_exp == -torch.inf, blind)
    assert relative(found.log_sum_exp.masked_fill(blind, 0), total.masked_fill(blind, 0)) < bound
    return int(changed.sum())


def path_spec(call):
    """The arguments of `PackedCall.of` that come from the spec."""
    names = ("visibility", "amplification", "redistribution")
    return {name: getattr(call, name) for name in names}


@sized(8)
@given(PREFILL)
def test_every_row_equals_the_definition(call):
    check_all(call, tile=SMALL)


@sized(8)
@given(PREFILL, st.sampled_from([1, 2, 3]))
def test_touched_rows_equal_the_definition(call, splits):
    check_rows(call, splits=splits, tile=SMALL)


def ordinary(
    length=63, kv_heads=1, group=2, dim=32, batch=2, dtype=torch.float32, scale=2.0, cached=0, **spec
):
    """A prompt of text, patches and text, some of each sinks, whose last third is touched; unequal spans."""
    generator = torch.Generator().manual_seed(length + 10 * group + 1000 * dim)

    def noise(heads, rows):
        return torch.randn(batch, heads, rows, dim, generator=generator).to(dtype).float()

    place = torch.arange(length + cached).expand(batch, -1)
    begin = torch.arange(1, batch + 1)[:, None] * ((length + cached) // 6)
    is_patch = (place >= begin) & (place < begin + (length + cached) // 3)
    is_sink = torch.rand(batch, length + cached, generator=generator) < 0.3
    touched = torch.zeros(batch, length, dtype=torch.bool)
    touched[:, -max(length // 3, 1) :] = True
    moved = Redistribution((2 * is_patch + 1 * is_sink).to(torch.int8), touched, 0.4, 0.3, 0.1)
    geometry = Geometry(cached, length, length + cached)
    call = Drawn(
        scale * noise(kv_heads * group, length),
        noise(kv_heads, length + cached),
        noise(kv_heads, length + cached),
        geometry,
        redistribution=moved,
        scaling=dim**-0.5,
    )
    return dataclasses.replace(call, **spec)


@pytest.mark.parametrize(
    ("length", "kv_heads", "group"),
    [(1, 1, 8), (17, 1, 4), (63, 2, 1), (63, 1, 8), (111, 1, 4), (300, 2, 1), (300, 1, 4)],
)
def test_lengths_and_groups(length, kv_heads, group):
    call = ordinary(length, kv_heads, group, batch=1)
    check_all(call, tile=WIDE)
    assert check_rows(call, tile=WIDE) > 0 or length == 1


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_head_sizes(dim):
    call = ordinary(40, dim=dim)
    check_all(call)
    assert check_rows(call, splits=2) > 0


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_scales_of_the_scores(scale):
    call = ordinary(63, dim=64, scale=scale)
    check_all(call)
    assert check_rows(call) > 0


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)])
def test_half_precision(dtype, bound):
    """Inputs are rounded before the truth is computed, so that the bound is on weights and output alone."""
    call = ordinary(63, dtype=dtype)
    half = dataclasses.replace(
        call, query=call.query.to(dtype), key=call.key.to(dtype), value=call.value.to(dtype)
    )
    found, _ = run_all(half)
    assert found.dtype == dtype
    assert relative(found, plain_of(call)[0]) < bound
    output, rows, seen, _ = run_rows(half, splits=2)
    want, _ = call.truth()
    is_changed = torch.zeros(2, 2, 63, dtype=torch.bool)
    is_changed.scatter_(2, rows.index[:, None].expand(-1, 2, -1), seen.is_changed)
    assert is_changed.any()
    keep = is_changed.transpose(1, 2)[..., None]
    assert relative(output * keep, want * keep) < bound


def test_a_static_cache_longer_than_the_query():
    call = ordinary(20, cached=30)
    pad = torch.full((2, 1, 14, 32), 1e30)  # columns not yet written hold anything
    call.key, call.value = (torch.cat((tensor, pad), 2) for tensor in (call.key, call.value))
    call.geometry = Geometry(30, 20, 64)
    check_all(call)
    assert check_rows(call, splits=2) > 0


def test_inputs_of_any_strides():
    call = ordinary(40, 2, 2)
    for name in ("query", "key", "value"):
        tensor = getattr(call, name)
        setattr(call, name, tensor.transpose(1, 2).contiguous().transpose(1, 2))
    check_all(call)
    assert check_rows(call) > 0


def test_rows_of_pads_are_zero_and_the_others_as_alone():
    """Left and right padding of unequal size; a row of a batch equals the sample by itself."""
    length, pads = 41, (11, 4)
    for side in ("left", "right"):
        call = ordinary(length)
        place = torch.arange(length)[None]
        count = torch.tensor(pads)[:, None]
        call.geometry = Geometry(
            0, length, length, place >= count if side == "left" else place < length - count
        )
        found, _ = run_all(call, tile=SMALL)
        for row, pad in enumerate(pads):
            span = slice(pad, length) if side == "left" else slice(0, length - pad)
            alone = Drawn(
                *(tensor[row : row + 1, :, span] for tensor in (call.query, call.key, call.value)),
                Geometry(0, length - pad, length - pad),
                scaling=call.scaling,
            )
            assert relative(found[row : row + 1, span], alone.truth()[0]) < 1e-5
            if side == "left":
                assert (found[row, :pad] == 0).all()


def test_blocks_nobody_may_read_are_skipped():
    """Values that are NaN where no query attends: any block that is loaded would spread them."""
    length, side = 96, 16
    group = torch.full((1, length), 1)
    group[:, 32:64] = 2  # text attends to no patch, patches to each other alone
    reads = Visibility(
        group, ((ALL, ALL, ALL), (ALL, ALL, 0), (ALL, 0, ALL)), ((0, 0, 0), (0, 0, 0), (0, 0, ALL))
    )
    lists = list_blocks(
        pack_visibility([reads], Geometry(0, length, length), torch.device(DEVICE)),
        Geometry(0, length, length),
        1,
        side,
        side,
        torch.device(DEVICE),
    )
    index = torch.arange(length)[None]
    readable, _ = allowed_keys([reads], Geometry(0, length, length), index)
    blocks = readable[0].view(6, side, 6, side).permute(0, 2, 1, 3).flatten(2)
    for place in range(6):
        fulls, ends = lists.counts[0, place].tolist()
        order = lists.order[0, place].tolist()
        assert set(order[:fulls]) == set(blocks[place].all(-1).nonzero()[:, 0].tolist())
        assert set(order[:ends]) == set(blocks[place].any(-1).nonzero()[:, 0].tolist())


@sized(12)
@given(PREFILL, st.sampled_from([4, 16]), st.sampled_from([8, 16]))
def test_lists_hold_every_block_that_is_read_and_no_mask_is_left_out(call, block_m, block_n):
    geometry, batch = call.geometry, call.query.shape[0]
    packed = pack_visibility(call.visibility, geometry, torch.device(DEVICE))
    lists = list_blocks(packed, geometry, batch, block_m, block_n, torch.device(DEVICE))
    index = torch.arange(geometry.start, geometry.length).expand(batch, -1)
    readable, bias = allowed_keys(call.visibility, geometry, index)
    for sample in range(batch):
        for place in range(lists.order.shape[1]):
            fulls, ends = lists.counts[sample, place].tolist()
            order = lists.order[sample, place].tolist()[:ends]
            assert len(set(order)) == ends
            rows = slice(place * block_m, (place + 1) * block_m)
            for block in range(lists.order.shape[2]):
                columns = slice(block * block_n, (block + 1) * block_n)
                part = readable[sample, rows, columns]
                if part.any():
                    assert block in order
                if block in order[:fulls]:
                    assert part.all()
                    assert part.shape[1] == block_n
                    assert bias is None or (bias[sample, rows, columns] == 0).all()


@sized(5)
@given(calls(queries=(9, 17), lengths=(17, 33), dims=(16,)))
def test_the_path_joins_both_kernels(call):
    """What edits.py does with a long call: every row, then the touched ones."""
    ours = PackedCall.of(call.attention(), **path_spec(call))
    output = ours.every_row()
    rows = Rows.of(call.touched()) if ours.has_edits else None
    found = ours.edited_rows(output, rows)
    want, _ = call.truth()
    spec = call.redistribution
    if spec is not None:
        masses = masses_of(call)
        keep = ~(is_close_call(call, masses) & spec.is_touched[:, None]).transpose(1, 2)[..., None]
        found, want = found * keep, want * keep
    assert relative(found, want) < 1e-5


def test_layers_of_a_call_share_what_positions_decide():
    call = ordinary(20)
    call.visibility = [Visibility(torch.zeros(2, 20, dtype=torch.long), ((ALL,),), ((4,),))]
    memo = Memo()
    for _ in range(2):
        ours = PackedCall.of(dataclasses.replace(call.attention(), memo=memo), **path_spec(call))
        ours.edited_rows(ours.every_row(), Rows.of(call.touched()))
        known = {key: id(value) for key, value in memo.kept.items()}
    assert {key: id(value) for key, value in memo.kept.items()} == known
    kinds = {key[1] for key in memo.kept}
    assert kinds == {"packed", "lists", "correct"}


def test_what_the_kernels_cannot_take_is_said():
    group = torch.zeros(1, 4, dtype=torch.long)
    free = Visibility(
        group, ((ALL,),), predicate=lambda q, k: q != k, touches=torch.ones(1, 4, dtype=torch.bool)
    )
    assert "predicate" in unsupported_visibility([free])
    many = torch.eye(31, dtype=torch.int64) * ALL
    assert "31 groups" in unsupported_visibility([Visibility(group, tuple(map(tuple, many.tolist())))])
    near = Visibility(group, ((ALL,),), ((2,),), strength=0.5)
    far = Visibility(group, ((ALL,),), ((3,),), strength=0.25)
    assert "strengths" in unsupported_visibility([near, far])
    assert unsupported_visibility([far, near]) is None
    touched = torch.ones(1, 4, dtype=torch.bool)
    assert "per head" in unsupported_edits([Amplification(touched, head_cap=2.0)], [])
    assert "scores" in unsupported_edits([Amplification(touched)] * 2, [])
    assert "weight" in unsupported_edits([], [Redistribution(group, touched, 0.4, 0.5, 0.2)] * 2)
    assert (
        unsupported_edits([Amplification(touched)], [Redistribution(group, touched, 0.4, 0.5, 0.2)]) is None
    )


def test_the_first_strength_wins_as_in_the_definition():
    group = torch.zeros(1, 9, dtype=torch.long)
    far = Visibility(group, ((ALL,),), ((3,),), strength=0.25)
    near = Visibility(group, ((ALL,),), ((2,),), strength=0.5)
    call = ordinary(9, batch=1)
    call.visibility, call.redistribution = [far, near], None
    check_all(call, tile=SMALL)
    want, _ = attention(
        call.query.double(),
        call.key.double(),
        call.value.double(),
        scaling=call.scaling,
        geometry=call.geometry,
        visibility=[near],
    )
    assert relative(run_all(call, tile=SMALL)[0], want.transpose(1, 2)) > 1e-3  # so the check above can fail
