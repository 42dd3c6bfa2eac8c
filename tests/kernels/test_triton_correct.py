"""Corrected rows in Triton against the definition in float64."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from lvlm_attn.kernels.packing import pack_edits, pack_visibility
from lvlm_attn.kernels.spec import Redistribution
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.triton.common import is_interpreted
from lvlm_attn.kernels.triton.correct import CorrectPlan
from lvlm_attn.kernels.triton.tiles import Tile
from tests.kernels.drawn import calls, is_close_call, masses_of, relative
from tests.kernels.test_triton_prefill import ordinary, plain_of
from tests.kernels.test_triton_rows import DEVICE

SMALL = Tile(16, 16, 4, 1)
pytestmark = pytest.mark.usefixtures("poisoned")


def run(call, gives_total=True, tile=None, dtype=torch.float32):
    """Corrects the output of plain attention; what was there, what there is now, and the counts."""
    device = torch.device(DEVICE)
    plain, total = plain_of(call)
    before = plain.to(device, dtype).contiguous()
    output = before.clone()
    rows = Rows.of(call.redistribution.is_touched)
    if rows is None:
        return None
    packed = pack_visibility(call.visibility, call.geometry, device)
    edits = pack_edits(None, call.redistribution, device)
    index = None if rows.is_all else rows.index.int().contiguous().to(device)
    attention = call.attention(DEVICE)
    counts = torch.zeros(3, dtype=torch.float64, device=device)
    plan = CorrectPlan.of(attention, packed, edits, index=index, tile=tile)
    known = total.to(device, torch.float32) if gives_total else None
    plan.run(attention, edits, output, log_sum_exp=known, moved=counts)
    return before.cpu(), output.cpu(), counts.cpu()


def changed_rows(call):
    """`(batch, queries, heads)`, True where weight is moved, and where rounding may decide that either way."""
    spec, masses = call.redistribution, masses_of(call)
    image, patch = masses[..., 2] + masses[..., 3], masses[..., 2]
    moves = (image >= spec.mass_floor) & (patch >= spec.rho * image) & (patch > 0)
    touched = spec.is_touched[:, None]
    return (moves & touched).transpose(1, 2), (is_close_call(call, masses) & touched).transpose(1, 2)


def check(call, bound=1e-5, **options):
    """Changed rows are as defined, all others keep their bits; gives how many are changed."""
    found = run(call, **options)
    if found is None:
        return 0
    before, output, counts = found
    want, _ = call.truth()
    changed, undecided = changed_rows(call)
    assert torch.equal(output[~changed & ~undecided], before[~changed & ~undecided])
    keep = (changed & ~undecided)[..., None]
    assert torch.isfinite(output).all()
    assert relative(output * keep, want * keep) < bound
    assert counts[1] == call.redistribution.is_touched.sum() * want.shape[2]
    if not undecided.any():
        spec, masses = call.redistribution, masses_of(call)
        taken = (spec.removed_fraction * (masses[..., 1] + masses[..., 3])).transpose(1, 2)
        assert counts[0] == changed.sum()
        assert relative(counts[2], (taken * changed).sum()) < bound
    return int(changed.sum())


@settings(max_examples=15, deadline=None)
@given(calls(queries=(2, 9, 17), lengths=(1, 17, 40), dims=(16,), amplifies=False), st.booleans(), st.data())
def test_equals_the_definition(call, gives_total, data):
    if call.redistribution is None:
        touched = torch.ones(call.query.shape[0], call.query.shape[2], dtype=torch.bool)
        classes = torch.randint(0, 4, (call.query.shape[0], call.geometry.length))
        call.redistribution = Redistribution(
            classes, touched, data.draw(st.sampled_from([0.4, 1.0])), 0.3, 0.1
        )
    check(call, gives_total=gives_total, tile=SMALL)


@pytest.mark.parametrize("gives_total", [True, False])
@pytest.mark.parametrize(("length", "kv_heads", "group"), [(17, 1, 4), (63, 2, 1), (200, 1, 2)])
def test_lengths_and_groups(length, kv_heads, group, gives_total):
    assert check(ordinary(length, kv_heads, group), gives_total=gives_total) > 0


@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_head_sizes(dim):
    assert check(ordinary(40, dim=dim)) > 0


def test_text_longer_than_the_image_is_left_out():
    """Half of the samples each way."""
    call = ordinary(60)
    call.redistribution.key_class[1] = torch.tensor([2, 0, 0, 1, 0, 0] * 10)
    assert check(call) > 0


@pytest.mark.parametrize("cached", [30, 7])
def test_tokens_after_the_known_ones_are_text(cached):
    call = ordinary(30, cached=cached)
    spec = call.redistribution
    call.redistribution = dataclasses.replace(spec, key_class=spec.key_class[:, : cached + 20].contiguous())
    assert check(call) > 0


def test_patches_of_almost_no_mass_are_computed_anew():
    """Floors of 0 let such rows change; a rest of 1 - 0.999999 would be off by far more than the bound."""
    call = ordinary(40, batch=1)
    spec = call.redistribution
    call.key[:, :, 13] = 8 * torch.nn.functional.normalize(call.query[:, :1, 30], dim=-1)
    classes = torch.zeros_like(spec.key_class)
    classes[:, 13] = 1
    classes[:, 14:18] = 2
    call.redistribution = dataclasses.replace(spec, key_class=classes, rho=0.0, mass_floor=0.0)
    masses = masses_of(call)[..., 2][:, :, -13:]
    assert masses.min() < 1e-3
    assert check(call) > 0


def test_no_patches_and_no_text():
    for kind in (0, 1, 2, 3):
        call = ordinary(33)
        spec = call.redistribution
        classes = torch.full_like(spec.key_class, kind)
        call.redistribution = dataclasses.replace(spec, key_class=classes, rho=0.0, mass_floor=0.0)
        changed = check(call)
        assert (changed > 0) == (kind == 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sink", [0.1, 1.0])
def test_half_precision_is_within_half_again_of_rounding(dtype, sink):
    """Against float64 of the rounded inputs; values of sinks are small, as in models, or as large as others."""
    call = ordinary(63, 2, 2, dim=64)
    is_sink = call.redistribution.key_class % 2 == 1
    call.value = torch.where(is_sink[:, None, :, None], call.value * sink, call.value)
    call.query, call.key, call.value = (t.to(dtype) for t in (call.query, call.key, call.value))
    _, output, counts = run(call, dtype=dtype)
    assert output.dtype == dtype
    assert counts[0] > 20
    want, _ = call.truth()
    changed, _ = changed_rows(call)
    want, output = want[changed], output[changed]
    rounded = want.to(dtype)
    if dtype == torch.bfloat16 and is_interpreted():
        rounded = (want.float().view(torch.int32) & -65536).view(
            torch.float32
        )  # the interpreter cuts bits off
    rounding = relative(rounded, want)
    assert relative(output, want) < 1.5 * rounding
