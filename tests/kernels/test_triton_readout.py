"""Readouts in Triton against whole matrices in float64, and against the torch path."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.kernels import readouts as torch_readouts
from lvlm_attn.kernels.packing import PackedVisibility
from lvlm_attn.kernels.readouts import Reading, Readout
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.triton.readout import read
from lvlm_attn.kernels.triton.tiles import Tile
from tests.fuzzing import sized
from tests.kernels.drawn import calls, readouts, relative
from tests.kernels.test_readouts import check
from tests.kernels.test_triton_decode import DEVICE, ordinary

TILE = Tile(16, 16, 4, 1)
pytestmark = pytest.mark.usefixtures("poisoned")
ALL_QUANTITIES = {"column_sums": True, "entropy": True}


def run(call, asked, **options):
    """The reading, on the CPU."""
    flags = call.flags().to(DEVICE)
    found = read(call.attention(DEVICE), asked, flags=flags, **call.packed(DEVICE), **options)
    return Reading(**{name: None if v is None else v.cpu() for name, v in vars(found).items()})


def every(queries, rows="heads", batch=1, length=None):
    classes = None if length is None else torch.arange(length).expand(batch, -1) % 4
    return Readout(torch.ones(batch, queries, dtype=torch.bool), classes, rows, **ALL_QUANTITIES)


@sized(10)
@given(st.data())
def test_equals_the_definition(data):
    call = data.draw(calls(queries=(1, 3, 17), lengths=(1, 17, 40), dims=(16, 24)))
    asked = data.draw(readouts(call))
    spec = call.redistribution
    if spec is not None and spec.rho == 0.25:
        spec = call.redistribution = None  # thresholds that rounding could decide are tested with `ordinary`
    check(call, asked, run(call, asked, splits=data.draw(st.sampled_from([1, 3])), tile=TILE), 1e-5)


@pytest.mark.parametrize("length", [1, 17, 63, 111, 300])
@pytest.mark.parametrize(("kv_heads", "group"), [(2, 1), (1, 4), (1, 8)])
def test_lengths_and_groups(length, kv_heads, group):
    call = ordinary(length, kv_heads, group, queries=5)
    asked = every(call.query.shape[2], length=length)
    check(call, asked, run(call, asked, splits=2), 1e-5)


@pytest.mark.parametrize("rows", ["heads", "mean"])
def test_prefill_rows(rows):
    """More rows than a tile, chosen here and there."""
    call = ordinary(70, 2, 2, queries=70)
    asked = Readout((torch.arange(70) % 3 != 1)[None], None, rows, **ALL_QUANTITIES)
    check(call, asked, run(call, asked), 1e-5)


def test_equals_the_torch_path():
    """Two paths, one definition: every field, every number."""
    call = ordinary(40, 2, 2, queries=9)
    asked = every(9, length=40)
    found, want = run(call, asked), torch_readouts.read(call.attention(), asked, **call.edits())
    for name, value in vars(want).items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-4, atol=1e-6)


def test_columns_nobody_reads_are_zero():
    """Keys ahead, keys not written, and a window that hides the first ones."""
    call = ordinary(40, 1, 2, queries=4, extra=9)
    call.geometry = Geometry(36, 4, 49, window=5)
    for rows in ("heads", "mean"):
        found = run(call, every(4, rows), tile=TILE)
        check(call, every(4, rows), found, 1e-5)
        assert (found.column_sums[..., 40:] == 0).all()
        assert (found.column_sums[..., :32] == 0).all()
        assert (found.rows[..., 40:] == 0).all()


def test_no_rows():
    call = ordinary(20, 1, 2, queries=3)
    asked = Readout(torch.zeros(1, 3, dtype=torch.bool), torch.zeros(1, 20), "mean", **ALL_QUANTITIES)
    found = run(call, asked)
    assert found.rows.shape == (1, 1, 0, 20)
    assert found.masses.shape == (1, 2, 0, 4)
    assert (found.column_sums == 0).all()


def test_single_rows_of_weight_that_moves_and_that_stays():
    """With and without the redistribution: the readouts see what it did."""
    call = ordinary(63, 1, 4, queries=3)
    asked = every(3, length=63)
    moved = run(call, asked)
    check(call, asked, moved, 1e-5)
    call.redistribution = None
    assert relative(moved.masses, run(call, asked).masses.double()) > 0.01


def test_refuses_what_does_not_fit():
    call = ordinary(20, 1, 4, queries=2)
    packed, given = PackedVisibility(None, None), call.attention()
    with pytest.raises(LvlmAttnError, match="flags"):
        read(given, every(2), edits=call.packed("cpu")["edits"], packed=packed)
    with pytest.raises(LvlmAttnError, match="is_read"):
        read(given, every(3), packed=packed)
