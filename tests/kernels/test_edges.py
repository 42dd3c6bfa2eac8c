"""Calls at the edge of what a spec can say: heads that attend to nothing amplified, infinite biases, short masks."""

from unittest.mock import patch

import pytest
import torch

from lvlm_attn.kernels import visible_path
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.extra import ExtraKeys
from lvlm_attn.kernels.reference import attention
from lvlm_attn.kernels.spec import Amplification, Geometry, amplified
from lvlm_attn.kernels.torch_path import Rows, mask_rows, row_weights
from lvlm_attn.kernels.visibility import ALL, Visibility
from lvlm_attn.kernels.visible_path import write_visible

BATCH, HEADS, KV, DIM, SCALE = 2, 4, 2, 4, 0.5


def tensors(queries, keys, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return 2 * noise(BATCH, HEADS, queries, DIM), noise(BATCH, KV, keys, DIM), noise(BATCH, KV, keys, DIM)


def weights_of(query, key, geometry, *specs):
    return attention(query, key, key, scaling=SCALE, geometry=geometry, amplification=specs)[1]


def test_a_cap_per_head_where_a_row_attends_to_no_amplified_key():
    """Row 0 attends to key 0 alone; key 2 is amplified, so only rows from 2 on have any weight on it."""
    geometry = Geometry(0, 4, 4)
    query, key, _ = tensors(4, 4)
    rows = torch.ones(BATCH, 4, dtype=torch.bool)
    gain = torch.tensor([0.0, 0.0, 0.75, 0.0]).expand(BATCH, -1)
    plain = weights_of(query, key, geometry)
    for given in ({"gain": gain}, {"bias": gain}):
        got = weights_of(query, key, geometry, Amplification(rows, **given, head_cap=1.25))
        assert torch.equal(got[:, :, :2], plain[:, :, :2])
        on_key = plain[:, :, 2:, 2]
        factor = (on_key / on_key.mean(1, keepdim=True)).clamp(max=1.25)
        assert bool((factor == 1.25).any())
        assert bool((factor < 1).any())
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key.repeat_interleave(2, 1))[:, :, 2:] * SCALE
        size = scores[..., 2].abs() if "gain" in given else torch.ones_like(factor)
        scores[..., 2] += 0.75 * factor * size
        scores[:, :, 0, 3] = -torch.inf
        torch.testing.assert_close(got[:, :, 2:], scores.softmax(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", [torch.tensor([1.0, 0.0, 0.5, 0.0]), torch.zeros(4)])
def test_an_infinite_bias_leaves_heads_of_factor_zero_alone(heads):
    """Minus infinity hides a key from the other heads; 0 times infinity would be no number."""
    geometry = Geometry(3, 2, 5)
    query, key, _ = tensors(2, 5)
    rows = torch.tensor([[True, True], [True, False]])
    bias = torch.tensor([0.0, -torch.inf, 0.0, 0.0]).expand(BATCH, -1)
    plain = weights_of(query, key, geometry)
    got = weights_of(query, key, geometry, Amplification(rows, bias=bias, heads=heads))
    still = (heads == 0)[None, :, None] | ~rows[:, None]
    assert torch.equal(got[still], plain[still])
    hidden = plain.clone()
    hidden[..., 1] = 0
    hidden = hidden / hidden.sum(-1, keepdim=True)
    torch.testing.assert_close(got[~still], hidden[~still], rtol=0, atol=1e-12)


def test_rows_that_attend_to_themselves_find_their_value_in_a_sliding_cache():
    """The cache has dropped the first two keys, so key columns begin at position 2."""
    geometry = Geometry(6, 3, 7, window=4)
    query, key, value = tensors(3, 7)
    group = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0, 1, 1]])
    alone = Visibility(group, earlier=((ALL, ALL), (0, 0)))
    plain, _ = attention(query, key, value, scaling=SCALE, geometry=geometry)
    call = AttentionCall(query, key, value, geometry, SCALE)
    with patch.object(visible_path, "attend_masked", side_effect=AssertionError("no attention is needed")):
        got = write_visible(plain.transpose(1, 2).clone(), call, [alone])
    want, _ = attention(query, key, value, scaling=SCALE, geometry=geometry, visibility=[alone])
    torch.testing.assert_close(got, want.transpose(1, 2), rtol=0, atol=1e-12)
    own = value[:, :, 4:7].repeat_interleave(2, 1).transpose(1, 2)
    is_alone = group[:, 6:] == 1
    assert torch.equal(got[is_alone], own[is_alone])


def test_a_row_without_earlier_keys_that_has_extra_keys_is_not_alone():
    geometry = Geometry(0, 4, 4)
    query, key, value = tensors(4, 4)
    _, extra_key, extra_value = tensors(1, 2, seed=1)
    group = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 1]])
    alone = Visibility(group, earlier=((ALL, ALL), (0, 0)))
    first = torch.zeros(BATCH, 4, dtype=torch.long)
    stop = torch.tensor([[0, 2, 0, 0], [0, 0, 0, 1]])
    extra = ExtraKeys(extra_key, extra_value, torch.zeros(BATCH, 2, dtype=torch.long), first, stop)
    plain, _ = attention(query, key, value, scaling=SCALE, geometry=geometry)
    call = AttentionCall(query, key, value, geometry, SCALE)
    got = write_visible(plain.transpose(1, 2).clone(), call, [alone], [extra])
    for sample, row, count in ((0, 1, 2), (1, 3, 1), (0, 2, 0), (1, 1, 0)):
        for head in range(HEADS):
            kv = head // (HEADS // KV)
            keys = torch.cat([key[sample, kv, row : row + 1], extra_key[sample, kv, :count]])
            values = torch.cat([value[sample, kv, row : row + 1], extra_value[sample, kv, :count]])
            want = (query[sample, head, row] @ keys.T * SCALE).softmax(0) @ values
            torch.testing.assert_close(got[sample, row, head], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_an_edit_sees_minus_infinity_where_an_additive_mask_blocks(dtype):
    """The lowest finite number blocks; what a caller adds of any other size is a bias and stays."""
    query, key, _ = tensors(3, 4)
    low = torch.finfo(dtype).min
    mask = torch.tensor([[0, low, 0, low], [0, 0, -3, low], [-300, 0, 0, 0]], dtype=dtype)[None, None]
    seen = []

    def edit(scores):
        seen.append(scores)
        return amplified(scores, spec, Geometry(1, 3, 4), spec.is_touched)

    rows = torch.ones(BATCH, 3, dtype=torch.bool)
    spec = Amplification(rows, gain=torch.full((BATCH, 4), 2.0))
    weights = row_weights(query, key, scaling=SCALE, mask=mask.expand(BATCH, 1, 3, 4), edit=edit)
    is_blocked = (mask == low).expand(BATCH, HEADS, 3, 4)
    assert torch.equal(seen[0] == -torch.inf, is_blocked)
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key.repeat_interleave(2, 1)) * SCALE
    scores = scores + mask.double()
    want = (scores + 2 * scores.abs()).masked_fill(is_blocked, -torch.inf).softmax(-1)
    torch.testing.assert_close(weights, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("picked", [[[True, True, True]], [[False, True, True]]])
def test_keys_past_the_end_of_a_mask_are_blocked(kind, picked):
    """A cache may be longer than the mask that was made for what is in it."""
    geometry = Geometry(2, 3, 8)
    query, key, value = tensors(3, 8)
    mask = torch.ones(3, 5, dtype=torch.bool).tril(2)[None, None]
    given = mask if kind == "bool" else torch.zeros(mask.shape).masked_fill(~mask, torch.finfo().min)
    rows = Rows.of(torch.tensor(picked).expand(BATCH, -1))
    chosen = mask_rows(AttentionCall(query, key, value, geometry, SCALE, mask=given), rows)
    assert chosen.shape == (BATCH, 1, rows.index.shape[1], 8)
    is_open = chosen if kind == "bool" else chosen == 0
    assert not is_open[..., 5:].any()
    assert torch.equal(is_open[..., :5], mask.expand(BATCH, -1, -1, -1)[:, :, -rows.index.shape[1] :])
    longer = mask_rows(AttentionCall(query, key[:, :, :4], value, Geometry(2, 3, 4), SCALE, mask=given), rows)
    assert torch.equal(longer, chosen[..., :4])
