"""Linear layers that pass by padding: the same at tokens, zeros at padding, and nothing left behind."""

import pytest
import torch
from torch import nn

from lvlm_attn.decoding.skip_padding import skipped_padding

MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 11, bias=False)).double()


def test_tokens_agree_and_padding_is_zero():
    layers, rows = model(), torch.randn(2, 6, 17, dtype=torch.float64)
    want = layers(rows)
    seen = []
    layers[2].register_forward_hook(lambda module, args, output: seen.append((args[0].shape, output.shape)))
    with skipped_padding([layers], MASK):
        got = layers(rows)
    is_token = MASK.bool()
    assert torch.allclose(got[is_token], want[is_token], rtol=1e-12, atol=1e-12)
    assert bool((got[~is_token] == 0).all())
    assert seen[0][1] == (2, 6, 11)


def test_padding_is_not_computed():
    layers, rows = model(), torch.randn(2, 6, 17, dtype=torch.float64)
    rows[1, :4] = float("nan")
    with skipped_padding([layers], MASK):
        assert bool(layers(rows).isfinite().all())


@pytest.mark.parametrize("shape", [(2, 1, 17), (1, 6, 17), (2, 5, 17), (8, 17)])
def test_other_shapes_keep_their_bits(shape):
    layers, rows = model(), torch.randn(shape, dtype=torch.float64)
    want = layers(rows)
    with skipped_padding([layers], MASK):
        assert torch.equal(layers(rows), want)


@pytest.mark.parametrize("mask", [None, torch.ones(2, 6, dtype=torch.long)])
def test_without_padding_nothing_is_hooked(mask):
    layers = model()
    with skipped_padding([layers], mask):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in layers.modules())


def test_hooks_are_gone_after_an_error_and_the_next_call_is_right():
    layers, rows = model(), torch.randn(2, 6, 17, dtype=torch.float64)
    with skipped_padding([layers], MASK):
        with pytest.raises(RuntimeError):
            layers(torch.randn(2, 6, 5, dtype=torch.float64))
        got = layers(rows)
    assert torch.allclose(got[0], layers(rows)[0], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="inside"), skipped_padding([layers], MASK):
        raise ValueError("inside")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in layers.modules())
