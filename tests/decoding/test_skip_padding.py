"""Linear layers that pass by padding: the same at tokens, zeros at padding, and nothing left behind."""

import copy
import warnings

import pytest
import torch
from torch import nn

import lvlm_attn as la
from lvlm_attn.decoding.skip_padding import linear_layers, skipped_padding
from tests.decoding.steps import generated, model_of
from tests.tiny import tiny_inputs

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


def adapted(layers, adapters=("one",)):
    """With PEFT's LoRA, of weights that do something."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["0", "2"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(layers), config, adapter_name=adapters[0])
    for name in adapters[1:]:
        model.add_adapter(name, config)
    return model.double().eval()


def quantised(layers):
    """With torch's dynamic quantisation, layers that are no `nn.Linear`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = torch.ao.nn.quantized.dynamic.Linear
        found = copy.deepcopy(layers).float()
        for place in (0, 2):
            old = found[place]
            new = kind(old.in_features, old.out_features, bias_=old.bias is not None)
            weight = torch.quantize_per_tensor(old.weight.data, 0.01, 0, torch.qint8)
            new.set_weight_bias(weight, old.bias)
            found[place] = new
    return found


@pytest.mark.parametrize("kind", [adapted, quantised])
def test_linear_layers_of_every_kind_pass_by_padding(kind):
    layers = kind(model())
    assert len(list(linear_layers(layers))) == 2
    dtype = torch.float64 if kind is adapted else torch.float32
    rows = torch.randn(2, 6, 17, dtype=dtype)
    is_token = MASK.bool()
    rows[~is_token] = 0  # the scale of a dynamic quantisation must not depend on padding here
    want = layers(rows)
    assert kind is quantised or not torch.allclose(want, model()(rows))
    counts = []
    for layer in linear_layers(layers):
        layer.register_forward_hook(lambda module, args, output: counts.append(args[0].shape))
    with torch.no_grad(), skipped_padding([layers], MASK):
        got = layers(rows)
    assert torch.allclose(got[is_token], want[is_token], rtol=1e-6, atol=1e-6)
    assert bool((got[~is_token] == 0).all())
    assert counts == [(1, int(is_token.sum()), 17), (1, int(is_token.sum()), 64)]


def test_an_adapter_for_each_row_is_left_to_peft():
    layers, rows = adapted(model(), ("one", "two")), torch.randn(2, 6, 17, dtype=torch.float64)
    layer = next(linear_layers(layers))
    want = layer(rows, adapter_names=["one", "two"])
    assert not torch.allclose(want, layer(rows))
    with skipped_padding([layers], MASK):
        assert torch.equal(layer(rows, adapter_names=["one", "two"]), want)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_model_with_adapters_generates_the_same(name, monkeypatch):
    peft = pytest.importorskip("peft")

    class Words(la.Intervention):
        def views(self, request):
            return (request.without_images(),)

        def fuse(self, main, views, step):
            return main + 0.5 * views[0]

    model = copy.deepcopy(model_of(name))
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    inputs = tiny_inputs(name, model, [(1,), (2,)])
    found = []
    for least in (0.1, 1.0):
        monkeypatch.setattr("lvlm_attn.decoding.skip_padding.LEAST_PADDING", least)
        with la.wrap(model, Words()) as lvlm:
            found.append(generated(lvlm, inputs))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)
