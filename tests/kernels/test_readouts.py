"""What is read off the weights in chunks, against whole matrices in float64 and against loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.readouts import Readout, read
from lvlm_attn.kernels.spec import Geometry, class_indicator
from tests.fuzzing import sized
from tests.kernels import loops
from tests.kernels.drawn import calls, readouts, relative
from tests.kernels.test_paths import Largest


def check(call, asked, found, bound):
    """Every quantity from the whole matrix of weights."""
    _, weights = call.truth()
    total = call.log_sum_exp()
    for sample in range(weights.shape[0]):
        rows = asked.is_read[sample].nonzero()[:, 0]
        assert torch.equal(found.index[sample][found.is_read[sample]], rows)
        fillers = ~found.is_read[sample]
        given_rows, mine = weights[sample][:, rows], found.is_read[sample]
        blind = total[sample][:, rows] == -torch.inf
        lse = found.log_sum_exp[sample][:, mine]
        assert torch.equal(lse == -torch.inf, blind)
        assert (found.log_sum_exp[sample][:, fillers] == -torch.inf).all()
        near = relative(lse.masked_fill(blind, 0), total[sample][:, rows].masked_fill(blind, 0))
        assert near < bound
        if asked.rows is not None:
            want = given_rows if asked.rows == "heads" else given_rows.mean(0, keepdim=True)
            assert relative(found.rows[sample][:, mine], want) < bound
            assert (found.rows[sample][:, fillers] == 0).all()
        if asked.column_sums:
            assert relative(found.column_sums[sample], given_rows.sum(1)) < bound
        if asked.entropy:
            safe = given_rows.clamp(min=1e-300)
            want = -(given_rows * safe.log()).sum(-1)
            # In nats below one nat, relative above.
            assert relative(found.entropy[sample][:, mine], want) * min(float(want.norm()), 1.0) < bound
            assert (found.entropy[sample][:, fillers] == 0).all()
        if asked.key_class is not None:
            indicator = class_indicator(call.geometry.to_columns(asked.key_class), torch.float64)[sample]
            assert relative(found.masses[sample][:, mine], given_rows @ indicator.T) < bound
    for name, is_asked in (
        ("rows", asked.rows is not None),
        ("column_sums", asked.column_sums),
        ("entropy", asked.entropy),
        ("masses", asked.key_class is not None),
    ):
        assert (getattr(found, name) is not None) == is_asked


@sized(80)
@given(st.data())
def test_equals_the_whole_matrix_in_float64(data):
    call = data.draw(calls(queries=(1, 3, 8, 17), lengths=(1, 17, 40), dims=(4, 16)))
    asked = data.draw(readouts(call))
    call.query, call.key, call.value = call.query.double(), call.key.double(), call.value.double()
    size = data.draw(st.sampled_from([1, 2000, 10**6]))  # one row at a time, a few, all
    found = read(call.attention(), asked, chunk_bytes=size, **call.edits())
    assert found.log_sum_exp.dtype == torch.float64
    check(call, asked, found, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_precision(dtype):
    """Half precision is computed in fp32: the bound is that of fp32, against float64 of the rounded inputs."""
    generator = torch.Generator().manual_seed(0)
    query = (2 * torch.randn(2, 4, 12, 16, generator=generator)).to(dtype)
    key = torch.randn(2, 2, 30, 16, generator=generator).to(dtype)
    asked = Readout(torch.ones(2, 12, dtype=torch.bool), rows="heads", column_sums=True, entropy=True)
    geometry = Geometry(18, 12, 30)
    found = read(AttentionCall(query, key, key, geometry, 0.25), asked)
    want = read(AttentionCall(query.double(), key.double(), key.double(), geometry, 0.25), asked)
    assert found.rows.dtype == torch.float32
    for name in ("rows", "column_sums", "entropy", "log_sum_exp"):
        assert relative(getattr(found, name), getattr(want, name)) < 1e-6


def test_equals_loops():
    """The quantities in words, one row at a time."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 2, 5, 4, generator=generator, dtype=torch.float64)
    key = torch.randn(1, 1, 9, 4, generator=generator, dtype=torch.float64)
    geometry = Geometry(4, 5, 9, torch.arange(9)[None] >= 2)
    asked = Readout(
        torch.tensor([[True, False, True, True, False]]), rows="heads", column_sums=True, entropy=True
    )
    found = read(AttentionCall(query, key, key, geometry, 0.5), asked)
    weights = loops.weights(query, key, 0.5, geometry)
    sums = [0.0] * 9
    for place, row in enumerate([0, 2, 3]):
        line = weights[0, 1, row].tolist()
        sums = [a + b for a, b in zip(sums, line)]
        entropy = -sum(w * math.log(w) for w in line if w > 0)
        assert found.entropy[0, 1, place].item() == pytest.approx(entropy, rel=1e-12)
        assert found.rows[0, 1, place].tolist() == pytest.approx(line, abs=1e-14)
    assert found.column_sums[0, 1].tolist() == pytest.approx(sums, abs=1e-13)


def test_softcap_and_a_dense_mask():
    """A model's own mask and bound of the scores."""
    generator = torch.Generator().manual_seed(2)
    query, key = (torch.randn(1, 2, 6, 4, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    mask = torch.rand(1, 1, 6, 6, generator=generator) < 0.6
    mask[..., 0] = True
    asked = Readout(torch.ones(1, 6, dtype=torch.bool), rows="heads")
    scores = torch.tanh(query @ key.transpose(-1, -2) * 0.5 / 2.0) * 2.0
    want = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    low = torch.finfo(torch.float64).min
    for given_mask in (mask, torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, low)):
        call = AttentionCall(query, key, key, Geometry(0, 6, 6), 0.5, mask=given_mask, softcap=2.0)
        found = read(call, asked)
        torch.testing.assert_close(found.rows, want, rtol=0, atol=1e-14)


def test_no_more_than_a_chunk_is_held():
    """700 rows of 700 keys, a chunk of 50 rows."""
    query = torch.randn(1, 2, 700, 4)
    asked = Readout(torch.ones(1, 700, dtype=torch.bool), rows="mean", column_sums=True, entropy=True)
    small = Readout(asked.is_read, column_sums=True, entropy=True)
    size = 50 * 2 * 700 * 4
    call = AttentionCall(query, query, query, Geometry(0, 700, 700), 0.5)
    with Largest() as largest:
        read(call, small, chunk_bytes=size)
    assert largest.elements <= 50 * 2 * 700
    with Largest() as whole:
        read(call, asked, chunk_bytes=size)
    assert whole.elements >= 700 * 700  # rows that are asked for are held, so the count above can fail


def test_refuses_what_does_not_fit():
    query = torch.randn(2, 2, 3, 4)
    for asked, words in (
        (Readout(torch.ones(2, 4, dtype=torch.bool)), r"\(2, 4\)"),
        (Readout(torch.ones(2, 3, dtype=torch.bool), rows="head"), "'head'"),
    ):
        with pytest.raises(LvlmAttnError, match=words):
            read(AttentionCall(query, query, query, Geometry(0, 3, 3), 0.5), asked)
