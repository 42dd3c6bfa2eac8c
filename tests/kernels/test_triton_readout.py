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
from tests.kernels.test_triton_rows import DEVICE, ordinary

TILE = Tile(16, 16, 4, 1)
pytestmark = pytest.mark.usefixtures("poisoned")


def run(call, asked, **options):
    """The reading, on the CPU."""
    found = read(call.attention(DEVICE), asked, **call.packed(DEVICE), **options)
    return Reading(**{name: None if v is None else v.cpu() for name, v in vars(found).items()})


def every(queries, rows="heads", batch=1):
    return Readout(torch.ones(batch, queries, dtype=torch.bool), rows=rows)


@sized(10)
@given(st.data())
def test_equals_the_definition(data):
    call = data.draw(calls(queries=(1, 3, 17), lengths=(1, 17, 40), dims=(16, 24)))
    asked = data.draw(readouts(call))
    asked = Readout(asked.is_read, rows=asked.rows)
    spec = call.redistribution
    if spec is not None and spec.rho == 0.25:
        spec = call.redistribution = None  # thresholds that rounding could decide are tested with `ordinary`
    check(call, asked, run(call, asked, splits=data.draw(st.sampled_from([1, 3])), tile=TILE), 1e-5)


@pytest.mark.parametrize("length", [1, 17, 63, 111, 300])
@pytest.mark.parametrize(("kv_heads", "group"), [(2, 1), (1, 4), (1, 8)])
def test_lengths_and_groups(length, kv_heads, group):
    call = ordinary(length, kv_heads, group, queries=5)
    asked = every(call.query.shape[2])
    check(call, asked, run(call, asked, splits=2), 1e-5)


@pytest.mark.parametrize("rows", ["heads", "mean"])
def test_prefill_rows(rows):
    """More rows than a tile, chosen here and there."""
    call = ordinary(70, 2, 2, queries=70)
    asked = Readout((torch.arange(70) % 3 != 1)[None], rows=rows)
    check(call, asked, run(call, asked), 1e-5)


def test_equals_the_torch_path():
    """Two paths, one definition: every field, every number."""
    call = ordinary(40, 2, 2, queries=9)
    asked = every(9)
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
        assert (found.rows[..., :32] == 0).all()
        assert (found.rows[..., 40:] == 0).all()


def test_no_rows():
    call = ordinary(20, 1, 2, queries=3)
    asked = Readout(torch.zeros(1, 3, dtype=torch.bool), rows="mean")
    found = run(call, asked)
    assert found.rows.shape == (1, 1, 0, 20)


def test_single_rows_of_weight_that_moves_and_that_stays():
    """With and without the redistribution: the readouts see what it did."""
    call = ordinary(63, 1, 4, queries=3)
    asked = every(3)
    moved = run(call, asked)
    check(call, asked, moved, 1e-5)
    call.redistribution = None
    assert relative(moved.rows, run(call, asked).rows.double()) > 0.01


def test_refuses_what_does_not_fit():
    call = ordinary(20, 1, 4, queries=2)
    with pytest.raises(LvlmAttnError, match="is_read"):
        read(call.attention(), every(3), packed=PackedVisibility())
