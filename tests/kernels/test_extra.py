"""Extra keys: one softmax with the sequence's keys, or one of their own, against plain loops."""

import math

import pytest
import torch

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.extra import ExtraKeys, add_gated, with_extra
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.visibility import ALL, Visibility
from lvlm_attn.kernels.visible_path import write_visible

BATCH, HEADS, KV, KEYS, DIM, EXTRA = 2, 4, 2, 9, 8, 5
SCALE = DIM**-0.5


def tensors(seed, queries=KEYS):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (
        noise(BATCH, HEADS, queries, DIM),
        noise(BATCH, KV, KEYS, DIM),
        noise(BATCH, KV, KEYS, DIM),
        noise(BATCH, KV, EXTRA, DIM),
        noise(BATCH, KV, EXTRA, DIM),
    )


FIRST = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0, 2], [0, 0, 0, 0, 0, 0, 0, 4, 0]])
STOP = torch.tensor([[0, 0, 0, 3, 3, 5, 5, 0, 4], [0, 0, 0, 0, 5, 2, 2, 5, 5]])
POSITION = torch.arange(EXTRA).expand(BATCH, -1)


def loop(query, key, value, extra, *, first_query=0, hidden=(), window=None, softcap=None):
    """Row by row: scores of the readable keys and of the readable extra keys, one softmax, weighted sum."""
    out = torch.zeros(BATCH, query.shape[2], HEADS, DIM, dtype=torch.float64)
    for b in range(BATCH):
        for h in range(HEADS):
            kv = h // (HEADS // KV)
            for q in range(query.shape[2]):
                index = q + first_query
                scores, values = [], []

                def capped(key_vector, b=b, h=h, q=q):
                    score = float(query[b, h, q] @ key_vector) * SCALE
                    return softcap * math.tanh(score / softcap) if softcap else score

                a, z = int(extra.first[b, q]), int(extra.stop[b, q])
                beside = [j for j in range(a, z) if window is None or j > index - window]
                if extra.gate is None:
                    for j in range(index + 1):
                        if (j in hidden and j != index) or (window is not None and j <= index - window):
                            continue
                        bias = 0.0
                        if beside and extra.own_bias is not None and j < extra.own_bias.shape[1]:
                            bias = float(extra.own_bias[b, j])
                        scores.append(capped(key[b, kv, j]) + bias)
                        values.append(value[b, kv, j])
                for j in beside:
                    scores.append(capped(extra.key[b, kv, j]) + extra.bias)
                    values.append(extra.value[b, kv, j])
                if scores:
                    weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
                    out[b, q, h] = weights @ torch.stack(values)
    return out


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bias", ["none", "half", "all"])
@pytest.mark.parametrize("hidden", [(), (1, 2)], ids=["plain", "hidden keys"])
def test_one_softmax_with_the_keys_of_the_sequence(bias, hidden, softcap):
    query, key, value, extra_key, extra_value = tensors(0)
    given = {"none": (0.0, None), "half": (math.log(0.5), math.log(0.5)), "all": (0.0, -math.inf)}[bias]
    own = None if given[1] is None else torch.zeros(BATCH, KEYS).index_fill(1, torch.tensor([0]), given[1])
    extra = ExtraKeys(extra_key, extra_value, POSITION, FIRST, STOP, bias=given[0], own_bias=own)
    geometry = Geometry(0, KEYS, KEYS)
    plain = loop(
        query, key, value, ExtraKeys(extra_key, extra_value, POSITION, FIRST, FIRST), softcap=softcap
    )
    group = torch.zeros(BATCH, KEYS, dtype=torch.long)
    group[:, list(hidden)] = 1
    table = Visibility(group, earlier=((ALL, 0), (ALL, 0)))
    got = write_visible(
        plain.clone(),
        AttentionCall(query, key, value, geometry, SCALE, softcap=softcap),
        [table] if hidden else [],
        [extra],
    )
    want = loop(query, key, value, extra, hidden=hidden, softcap=softcap)
    assert torch.allclose(got, want, atol=1e-12)
    assert not torch.allclose(got, plain, atol=1e-3)
    if not hidden:
        reads_none = (STOP <= FIRST)[..., None, None].expand_as(got)
        assert torch.equal(got[reads_none], plain[reads_none])


def test_a_sliding_window_counts_from_where_the_extra_keys_stand():
    query, key, value, extra_key, extra_value = tensors(1)
    extra = ExtraKeys(extra_key, extra_value, POSITION, FIRST, STOP)
    geometry = Geometry(0, KEYS, KEYS, window=4)
    plain = torch.zeros(BATCH, KEYS, HEADS, DIM, dtype=torch.float64)
    got = write_visible(plain, AttentionCall(query, key, value, geometry, SCALE), [], [extra])
    want = loop(query, key, value, extra, window=4)
    is_row = STOP > FIRST
    assert torch.allclose(got[is_row], want[is_row], atol=1e-12)
    assert (loop(query, key, value, extra)[is_row] - want[is_row]).abs().max() > 1e-3


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_softmax_of_their_own_is_added_times_the_gate(softcap):
    query, key, value, extra_key, extra_value = tensors(2)
    extra = ExtraKeys(extra_key, extra_value, POSITION, FIRST, STOP, gate=0.3)
    output = torch.randn(BATCH, KEYS, HEADS, DIM, dtype=torch.float64)
    call = AttentionCall(query, key, value, Geometry(0, KEYS, KEYS), SCALE, softcap=softcap)
    got = add_gated(output, call, extra)
    want = output + 0.3 * loop(query, key, value, extra, softcap=softcap)
    assert torch.allclose(got, want, atol=1e-12)
    none = (STOP <= FIRST)[..., None, None].expand_as(got)
    assert torch.equal(got[none], output[none])


def test_extra_keys_that_none_reads_do_not_count():
    """What stands outside of every run changes nothing, whatever it is."""
    query, key, value, extra_key, extra_value = tensors(3)
    is_read = torch.zeros(BATCH, EXTRA, dtype=torch.bool)
    for j in range(EXTRA):
        is_read[:, j] = ((j >= FIRST) & (j < STOP) & (STOP > FIRST) & (STOP <= 3)).any(1)
    stop = torch.where(STOP <= 3, STOP, FIRST)
    other = torch.where(is_read[:, None, :, None], extra_key, 1e3)
    results = []
    for keys in (extra_key, other):
        extra = ExtraKeys(keys, extra_value, POSITION, FIRST, stop, gate=1.0)
        call = AttentionCall(query, key, value, Geometry(0, 9, 9), SCALE)
        results.append(add_gated(torch.zeros(BATCH, KEYS, HEADS, DIM).double(), call, extra))
    assert not is_read.all()
    assert torch.equal(*results)


def test_padding_rows_stay_finite_under_an_additive_mask():
    query, key, value, extra_key, extra_value = tensors(4)
    extra = ExtraKeys(extra_key, extra_value, POSITION, FIRST, STOP, bias=-0.5)
    rows = Rows.of(torch.ones(BATCH, KEYS, dtype=torch.bool))
    mask = torch.zeros(BATCH, 1, KEYS, KEYS)
    mask[:, :, 0] = torch.finfo(mask.dtype).min
    call = AttentionCall(query, key, value, Geometry(0, KEYS, KEYS), SCALE)
    _, _, total = with_extra(call, mask, [extra], rows)
    assert torch.isfinite(total[:, :, 0]).all()
    assert torch.isfinite(total.softmax(-1)).all()
