"""Linear layers with the weight first: the same numbers, and only where they are meant."""

import pytest
import torch
from torch.nn.functional import linear

from lvlm_attn.decoding.small_batches import MOST_ROWS, WeightFirst, weight_first_layers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 1, 17), (8, 17), (2, 3, 17)])
def test_agrees_with_float64(shape, bias):
    torch.manual_seed(0)
    rows, layer = torch.randn(shape), torch.nn.Linear(17, 11, bias=bias)
    with WeightFirst(), torch.no_grad():
        got = layer(rows)
        assert got.is_contiguous()
    want = linear(rows.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    assert got.shape == want.shape
    assert (got.double() - want).norm() / want.norm() < 1e-6


@pytest.mark.parametrize("rows", [1, MOST_ROWS + 1])
def test_other_sizes_keep_their_bits(rows):
    torch.manual_seed(0)
    values, weight = torch.randn(rows, 64), torch.randn(32, 64)
    with WeightFirst():
        got = linear(values, weight)
    assert torch.equal(got, linear(values, weight))


def test_other_dtypes_keep_their_bits_and_the_mode_ends():
    torch.manual_seed(0)
    values, weight = torch.randn(2, 64, dtype=torch.float64), torch.randn(32, 64, dtype=torch.float64)
    with WeightFirst():
        got = linear(values, weight)
    assert torch.equal(got, linear(values, weight))
    assert not torch.overrides._get_current_function_mode_stack()


def test_layers_leave_the_mode_also_after_an_error():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(17, 64), torch.nn.Tanh(), torch.nn.Linear(64, 11))
    rows = torch.randn(2, 17)
    want = model.double()(rows.double())
    model.float()
    with torch.no_grad(), weight_first_layers(model):
        got = model(rows)
        assert not torch.overrides._get_current_function_mode_stack()
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 5))
        assert not torch.overrides._get_current_function_mode_stack()
    assert (got.double() - want).norm() / want.norm() < 1e-6
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
