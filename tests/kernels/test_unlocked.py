"""Keys ahead joined with causal attention, against the definition."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lvlm_attn.kernels import unlocked, visible_path
from lvlm_attn.kernels.call import AttentionCall, Memo
from lvlm_attn.kernels.reference import attention
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.unlocked import attend_unlocked
from lvlm_attn.kernels.visibility import ALL, Visibility
from tests.kernels.drawn import Drawn, calls, relative
from tests.kernels.test_corrected import made


@st.composite
def opened(draw, **more):
    """Visibilities that hide nothing."""
    call = draw(calls(edits=False, queries=(8, 21), lengths=(21, 40), **more))
    assume(call.visibility)
    call.visibility = [
        replace(item, earlier=tuple((ALL,) * len(row) for row in item.earlier)) for item in call.visibility
    ]
    return call


def joined(call, dtype, memo=None):
    """Causal attention by definition, then the keys ahead; None if that does not pay."""
    causal = replace(call, visibility=[])
    ours, output, total = made(causal, dtype)
    ours = replace(ours, memo=memo or Memo())
    found = attend_unlocked(output.clone(), total, ours, call.visibility)
    return output, found


def is_query(call):
    """`(batch, queries, 1, 1)`, False at padding, whose rows nobody uses."""
    if call.geometry.is_valid is None:
        return torch.ones(call.query.shape[0], call.query.shape[2], 1, 1, dtype=torch.bool)
    return call.geometry.is_valid[:, call.geometry.start :][..., None, None]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@settings(max_examples=80, deadline=None)
@given(call=opened())
def test_keys_ahead_equal_the_definition(dtype, tolerance, call):
    before, found = joined(call, dtype)
    if found is None:
        return
    output, total = found
    want, _ = call.truth()
    sure = is_query(call)
    assert relative(output * sure, want * sure) < tolerance
    lse = call.log_sum_exp().transpose(1, 2)[..., None].masked_fill(~sure, 0)
    torch.testing.assert_close(
        total.double().transpose(1, 2)[..., None].masked_fill(~sure, 0), lse, rtol=tolerance, atol=tolerance
    )
    causal, _ = replace(call, visibility=[]).truth()
    still = ~sure | (causal == want).all(-1, keepdim=True).all(2, keepdim=True)
    still = still.expand_as(before)
    assert torch.equal(output[still], before[still])


def test_the_calls_drawn_here_open_keys():
    seen = {"joined": 0, "changed": 0, "softened": 0}

    @settings(max_examples=400, deadline=None, database=None, derandomize=True)
    @given(opened())
    def draw(call):
        before, found = joined(call, torch.float32)
        if call.visibility and found is not None:
            seen["joined"] += 1
            seen["changed"] += not torch.equal(found[0], before)
            seen["softened"] += not torch.equal(found[0], before) and any(
                v.strength != 1 for v in call.visibility
            )

    draw()
    assert min(seen.values()) >= 5, seen


def mma(length=60, batch=1, dtype=torch.float32, **more):
    """A prompt whose image rows attend to the question after it."""
    generator = torch.Generator().manual_seed(1)
    group = torch.zeros(batch, length, dtype=torch.long)
    group[:, 5 : length - 10], group[:, length - 10 :] = 1, 2
    later = ((0, 0, 0), (0, 0, ALL), (0, 0, 0))
    tensors = [torch.randn(batch, heads, length, 16, generator=generator).to(dtype) for heads in (4, 2, 2)]
    seen = [Visibility(group, ((ALL,) * 3,) * 3, later, **more)]
    return Drawn(*tensors, Geometry(0, length, length), seen, scaling=0.25)


def test_half_precision_is_as_good_as_rounding_allows():
    call = mma(length=300, dtype=torch.bfloat16)
    call.query = (2 * call.query.float()).bfloat16()
    _, (output, _) = joined(call, torch.bfloat16)
    want, _ = call.truth()
    rounding = float((want.bfloat16().double() - want).norm())
    assert float((output.double() - want).norm()) < 1.5 * rounding


def test_rows_that_stand_together_are_not_picked_one_by_one():
    call, memo = mma(batch=2), Memo()
    _, found = joined(call, torch.float32, memo)
    (pieces,) = memo.kept[visible_path.shared_for_mask].kept.values()
    assert all(piece.rows.start is not None and piece.mask is None for piece in pieces)
    assert relative(found[0], call.truth()[0]) < 1e-5
    call.visibility[0].group[1] = torch.roll(call.visibility[0].group[1], 3)
    memo = Memo()
    _, found = joined(call, torch.float32, memo)
    (pieces,) = memo.kept[visible_path.shared_for_mask].kept.values()
    assert any(piece.rows.start is None for piece in pieces)
    assert relative(found[0], call.truth()[0]) < 1e-5


def test_a_static_cache_and_a_dense_mask_of_the_model():
    call = mma(length=30)
    pad = torch.zeros(1, 2, 12, 16)
    call.key, call.value = torch.cat((call.key, pad), 2), torch.cat((call.value, pad), 2)
    call.geometry = Geometry(0, 30, 42)
    want, _ = call.truth()
    ours, output, total = made(replace(call, visibility=[]), torch.float32)
    mask = call.geometry.may_attend(torch.arange(30)[None])[:, None]
    for dense in (mask, torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)):
        found = attend_unlocked(output.clone(), total, replace(ours, mask=dense), call.visibility)
        assert relative(found[0], want) < 1e-5
    # Keys that the model opens ahead itself are not opened twice.
    both = mask.clone()
    both[..., 5:20, 20:30] = True
    opened = torch.zeros(1, 30, 42, dtype=torch.bool)
    opened[:, 5:20, 20:30] = True
    scores = call.query @ call.key.repeat_interleave(2, 1).transpose(2, 3) * 0.25
    scores = scores.masked_fill(~both, -torch.inf)
    plain = (scores.softmax(-1) @ call.value.repeat_interleave(2, 1)).transpose(1, 2).contiguous()
    found = attend_unlocked(plain.clone(), scores.logsumexp(-1), replace(ours, mask=both), call.visibility)
    assert torch.equal(found[0][:, 5:20], plain[:, 5:20])


def test_what_hides_keys_is_left_to_others():
    call = mma()
    ours, output, total = made(replace(call, visibility=[]), torch.float32)
    hides = Visibility(call.visibility[0].group, ((ALL,) * 3, (ALL, 0, ALL), (ALL,) * 3))
    assert attend_unlocked(output, total, ours, [*call.visibility, hides]) is None
    rule = replace(
        call.visibility[0], predicate=lambda query, key: key < query, touches=call.visibility[0].group > 0
    )
    assert attend_unlocked(output, total, ours, [rule]) is None
    to_all = replace(call.visibility[0], later=((ALL,) * 3,) * 3)
    assert attend_unlocked(output, total, ours, [to_all]) is None  # as many keys as there are


def test_layers_share_what_is_open():
    call, memo = mma(), Memo()
    with patch.object(unlocked, "combined_tables", wraps=unlocked.combined_tables) as made_once:
        first = joined(call, torch.float32, memo)[1]
        again = joined(call, torch.float32, memo)[1]
    assert made_once.call_count == 1
    assert torch.equal(first[0], again[0])


def test_nothing_of_queries_by_keys_is_made():
    length = 1200
    call = mma(length=length)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            for item in found if isinstance(found, (tuple, list)) else [found]:
                if isinstance(item, torch.Tensor):
                    seen.append(item.numel())
            return found

    ours = AttentionCall(call.query, call.key, call.value, call.geometry, call.scaling)
    output, total = torch.zeros(1, length, 4, 16), torch.zeros(1, 4, length)
    with Watch():
        assert attend_unlocked(output, total, ours, call.visibility) is not None
    assert max(seen) <= length * 4 * 16


def test_the_definition_is_of_the_same_call():
    call = mma()
    causal, _ = attention(call.query, call.key, call.value, scaling=0.25, geometry=call.geometry)
    assert relative(causal.transpose(1, 2), call.truth()[0]) > 0.05
