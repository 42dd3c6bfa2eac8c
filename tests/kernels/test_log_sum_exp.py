"""The backend with its log-sum-exp: the same bits as without, and the log-sum-exp of the definition."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lvlm_attn.kernels import log_sum_exp
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.log_sum_exp import row_log_sum_exp, with_log_sum_exp
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.torch_path import Rows

DIM = 16


def drawn(queries, keys, heads=4, kv_heads=4, batch=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(queries + keys)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)

    return (
        noise(batch, heads, queries, DIM),
        noise(batch, kv_heads, keys, DIM),
        noise(batch, kv_heads, keys, DIM),
    )


def padded(geometry, batch, additive=None):
    """A dense mask with three padding columns in the second sample."""
    is_valid = torch.ones(batch, geometry.length, dtype=torch.bool)
    is_valid[-1, :3] = False
    index = torch.arange(geometry.start, geometry.length).expand(batch, -1)
    mask = Geometry(geometry.start, geometry.queries, geometry.keys, is_valid).may_attend(index)[:, None]
    mask[..., 0] |= ~mask.any(-1)  # as transformers does, so that no row is empty
    if additive is None:
        return mask
    return torch.zeros(mask.shape, dtype=additive).masked_fill(~mask, torch.finfo(additive).min)


CASES = {
    "causal": (9, 9, 4, None),
    "masked": (9, 9, 4, "bool"),
    "additive": (9, 9, 4, "additive"),
    "grouped": (9, 9, 2, None),
    "grouped masked": (9, 9, 1, "bool"),
    "decode": (1, 23, 4, None),
    "decode masked": (1, 23, 4, "bool"),
    "grouped decode": (1, 23, 2, None),
    "grouped decode masked": (1, 23, 2, "bool"),
    "static": (9, 31, 4, None),
    "static masked": (9, 31, 2, "bool"),
    "later turn": (5, 12, 2, "bool"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_the_backend_keeps_its_bits(name, dtype):
    queries, keys, kv_heads, kind = CASES[name]
    start = {"later turn": 7}.get(name, 0 if queries > 1 else keys - 1)
    geometry = Geometry(start, queries, keys)
    query, key, value = drawn(queries, keys, kv_heads=kv_heads, dtype=dtype)
    mask = None if kind is None else padded(geometry, 2, dtype if kind == "additive" else None)
    module = SimpleNamespace(num_key_value_groups=4 // kv_heads, is_causal=True)
    call = AttentionCall(query, key, value, geometry, 0.3, mask)

    def run():
        return sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)

    output, weights, total = with_log_sum_exp(run, call)
    assert weights is None
    assert torch.equal(output, run()[0])
    assert total is not None
    assert total.shape == (2, 4, queries)
    rows = Rows.of(torch.ones(2, queries, dtype=torch.bool))
    double = AttentionCall(query.double(), key.double(), value.double(), geometry, 0.3, mask)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(total.double(), row_log_sum_exp(double, rows), rtol=0, atol=tolerance)


def causal(query, key, value, **more):
    return lambda: (
        scaled_dot_product_attention(query, key, value, is_causal=True, **more).transpose(1, 2),
        None,
    )


def test_nothing_is_said_where_the_function_takes_another_way():
    query, key, value = drawn(5, 5)
    geometry = Geometry(0, 5, 5)
    call = AttentionCall(query, key, value, geometry, 0.25)
    assert with_log_sum_exp(causal(query, key, value), call)[2] is not None
    assert with_log_sum_exp(causal(query, key, value, dropout_p=0.5), call)[2] is None
    query.requires_grad_()
    assert with_log_sum_exp(causal(query, key, value), call)[2] is None
    query.requires_grad_(False)
    call = AttentionCall(query, key, value, geometry, 0.25)  # of another forward call
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert with_log_sum_exp(causal(query, key, value), call)[2] is None
    for unlike in (
        AttentionCall(query, key, value, geometry, 0.25, softcap=5.0),
        AttentionCall(query, key, value, geometry, 0.25, kwargs={"s_aux": torch.zeros(4)}),
    ):
        assert with_log_sum_exp(causal(query, key, value), unlike)[2] is None
    twice = causal(query, key, value)
    assert with_log_sum_exp(lambda: (twice(), twice())[1], call)[2] is None


@pytest.mark.parametrize("gone", ["_fused_sdp_choice", "_scaled_dot_product_flash_attention_for_cpu"])
def test_a_torch_without_the_operator_only_says_less(gone):
    query, key, value = drawn(5, 5)
    call = AttentionCall(query, key, value, Geometry(0, 5, 5), 0.25)
    run = causal(query, key, value)
    fake = SimpleNamespace(
        _fused_sdp_choice=torch._fused_sdp_choice, ops=SimpleNamespace(aten=SimpleNamespace()), inf=torch.inf
    )
    if gone == "_fused_sdp_choice":
        fake = SimpleNamespace(ops=torch.ops, inf=torch.inf)
    with patch.object(log_sum_exp, "torch", fake):
        output, _, total = with_log_sum_exp(run, call)
    assert total is None
    assert torch.equal(output, run()[0])


def test_a_boolean_mask_is_made_additive_once_for_all_layers():
    query, key, value = drawn(1, 23)
    mask = padded(Geometry(22, 1, 23), 2)
    call = AttentionCall(query, key, value, Geometry(22, 1, 23), 0.25, mask)

    def run():
        return scaled_dot_product_attention(query, key, value, attn_mask=mask), None

    with_log_sum_exp(run, call)
    kept = len(call.memo.kept)
    with_log_sum_exp(run, call)
    assert kept == len(call.memo.kept) == 2  # and the choice of the operator
