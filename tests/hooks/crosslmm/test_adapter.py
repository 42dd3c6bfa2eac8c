"""Adapters by themselves: what a branch reads, files, and files that do not fit."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lvlm_attn as la
from lvlm_attn.hooks.crosslmm.adapter import AdapterShape, Branch, CrossLMMAdapter
from lvlm_attn.hooks.crosslmm.method import CrossLMM
from lvlm_attn.hooks.crosslmm.weights import load_adapter, read_shape, save_adapter
from tests.hooks.crosslmm.test_truth import random_adapter
from tests.runtime.test_lifecycle import state
from tests.tiny import tiny_inputs, tiny_model

SHAPE = AdapterShape(K=2, offset=1, layers=4, hidden=32, n_heads=4, n_kv=2, head_dim=8)


@pytest.fixture
def branch():
    torch.manual_seed(0)
    found = Branch(SHAPE).double()
    with torch.no_grad():
        found.gate.fill_(0.7)
    return found


def test_the_order_of_the_patches_does_not_matter_and_masked_ones_do_not_count(branch):
    hidden, patches = torch.randn(2, 3, 32).double(), torch.randn(2, 6, 32).double()
    readable = torch.rand(2, 3, 6) > 0.4
    readable[0, 1] = False
    with torch.no_grad():
        want = branch(hidden, branch.keys_values(patches), readable)
        order = torch.randperm(6)
        got = branch(hidden, branch.keys_values(patches[:, order]), readable[..., order])
        assert torch.allclose(got, want, atol=1e-12)
        wild = torch.where(readable.any(1)[..., None], patches, 1e3)
        is_same = torch.where(readable[..., None], 1.0, 0.0).sum() < readable.numel()
        assert is_same
        assert torch.equal(branch(hidden, branch.keys_values(wild), readable), want)
        assert torch.equal(want[0, 1], torch.zeros(32).double())
        for row in (0, 2):
            unread = torch.where(readable[0, row][:, None], patches[0], -5.0)[None]
            lone = branch(hidden[:1, row : row + 1], branch.keys_values(unread), readable[:1, row : row + 1])
            assert torch.allclose(lone[0, 0], want[0, row], atol=1e-12)


def test_a_fresh_adapter_starts_from_the_self_attention_with_closed_gates():
    model = tiny_model("qwen2_5_vl")
    adapter = CrossLMMAdapter.for_model(model, K=2)
    assert adapter.shape.hosted == (1, 3)
    assert adapter.shape.qkv_bias
    own = model.model.language_model.layers[3].self_attn
    for name in ("v2v", "t2v"):
        assert torch.equal(adapter.branch(3, name).k_proj.weight, own.k_proj.weight)
        assert torch.equal(adapter.branch(3, name).q_proj.bias, own.q_proj.bias)
        assert adapter.gates(3)[name] == 0
    other = CrossLMMAdapter.for_model(model, K=2, init="random")
    assert not torch.equal(other.branch(3, "t2v").k_proj.weight, own.k_proj.weight)


def test_a_layer_in_four_hosts_by_default():
    assert CrossLMMAdapter.for_model(tiny_model("llava")).shape.hosted == (3,)
    assert CrossLMMAdapter.for_model(tiny_model("llava"), offset=0).shape.hosted == (0,)


def test_only_the_adapter_learns_when_the_model_is_frozen():
    model = tiny_model("llava", seed=3).requires_grad_(False)
    adapter = random_adapter(model, K=2, grid=(2, 2)).float()
    inputs = tiny_inputs("llava", model, [(1, 2, 6), (2, 3, 4)])
    with la.wrap(model, CrossLMM(adapter=adapter)):
        model(
            **inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == 3, -100)
        ).loss.backward()
    for name, value in adapter.named_parameters():
        # After the last layer nobody attends to pooled tokens any more.
        is_idle = name.startswith("dcal.3.v2v")
        assert (value.grad is not None and bool(value.grad.abs().sum() > 0)) != is_idle, name
    step = 1e-2
    value = adapter.branch(1, "t2v").gate
    losses = []
    for side in (step, -2 * step):
        with torch.no_grad():
            value += side
            with la.wrap(model, CrossLMM(adapter=adapter)):
                labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 3, -100)
                losses.append(float(model(**inputs, labels=labels).loss))
    slope = (losses[0] - losses[1]) / (2 * step)
    assert abs(slope - float(value.grad)) < 0.05 * abs(slope) + 1e-3


@pytest.mark.parametrize("source", ["S0", "S1", "S2"])
@pytest.mark.parametrize("part", ["projector", "decoder"])
def test_gradients_that_would_lack_a_part_are_refused(source, part):
    """Keys and values of un-pooled patches are made without gradients, and depend on projector and decoder."""
    model = tiny_model("llava", seed=3).requires_grad_(False)
    trained = {
        "projector": model.model.multi_modal_projector,
        "decoder": model.model.language_model.layers[0],
    }
    trained[part].requires_grad_(True)
    inputs = tiny_inputs("llava", model, [(1, 2, 6)])
    with la.wrap(model, CrossLMM.reuse(grid=2, source=source)):
        loss = model(**inputs).logits[0, -1].square().mean()
        with pytest.raises(la.UnsupportedError, match=r"freeze the model .*requires_grad_\(False\)"):
            loss.backward()
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits[0, -1].square().mean(), loss)


def test_a_file_gives_back_the_adapter(tmp_path):
    model = tiny_model("llava_next", seed=3)
    adapter = random_adapter(model, K=2, grid=(2, 3), v2v_scope="frame", kv_norm=True).float()
    path = tmp_path / "deep" / "adapter.safetensors"
    save_adapter(adapter, path)
    assert read_shape(path) == adapter.shape
    assert set(load_file(path)) == {
        f"dcal.{layer}.{branch}.{part}"
        for layer in (1, 3)
        for branch in ("v2v", "t2v")
        for part in ("gate", *(f"{side}_proj.weight" for side in "qkvo"))
    }
    again = load_adapter(path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in adapter.state_dict().items())
    inputs = tiny_inputs("llava_next", model, [(1, 2, 6), (2, 3, 4)])
    with torch.no_grad():
        with la.wrap(model, CrossLMM(adapter=adapter)):
            want = model(**inputs).logits
        with la.wrap(model, CrossLMM(weights=str(path))) as lvlm:
            assert torch.equal(model(**inputs).logits, want)
            assert str(lvlm.interventions[0]) == f"crosslmm:weights={path}"


def test_a_half_precision_file_serves_a_model_of_another_type(tmp_path):
    model = tiny_model("llava", seed=3)
    path = tmp_path / "half.safetensors"
    save_adapter(random_adapter(model, K=2, grid=(2, 2)), path, torch.float16)
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    inputs = tiny_inputs("llava", model, [(1,)])
    with torch.no_grad(), la.wrap(model, CrossLMM(weights=str(path))):
        assert model(**inputs).logits.dtype == torch.float32


def changed(path, tensors=None, **metadata):
    """Writes a file again with other tensors or metadata."""
    shape = {name: json.dumps(getattr(read_shape(path), name)) for name in SHAPE.__dataclass_fields__}
    shape |= metadata
    save_file(
        tensors or load_file(path), path, {name: value for name, value in shape.items() if value is not None}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": "48"}, "dcal.*shape|hidden=48"),
        ({"n_kv": None}, "lacks n_kv"),
        ({"placement": '"pre_layer"'}, "placement='pre_layer' is not supported"),
        ({"kv_source": '"encoder"'}, "kv_source='encoder' is not supported"),
        ({"K": "1", "offset": "0"}, "lacks 'dcal.0"),
        ({"K": "4", "offset": "3"}, "holds 'dcal.1"),
        ({"offset": "7"}, "offset=7 must be"),
        ({"grid": "[3]"}, r"grid=\(3,\)"),
        ({"layers": "6"}, "lacks 'dcal.5"),
    ],
    ids=str,
)
def test_files_that_do_not_fit_are_refused_in_one_sentence(tmp_path, change, message):
    model = tiny_model("llava")
    path = tmp_path / "adapter.safetensors"
    save_adapter(CrossLMMAdapter.for_model(model, K=2), path)
    changed(path, **change)
    before = state(model)
    with (
        pytest.raises(la.LvlmAttnError, match=message) as caught,
        la.wrap(model, CrossLMM(weights=str(path))),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert state(model) == before


def test_an_adapter_of_another_model_is_refused(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(CrossLMMAdapter.for_model(tiny_model("llava", hidden=64, heads=8), K=2), path)
    with (
        pytest.raises(la.LvlmAttnError, match="hidden=64, and this LLaVA has hidden=32"),
        la.wrap(tiny_model("llava"), CrossLMM(weights=str(path))),
    ):
        pass


def test_a_tensor_of_another_shape_is_named(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(CrossLMMAdapter.for_model(tiny_model("llava"), K=2), path)
    tensors = load_file(path)
    tensors["dcal.3.v2v.k_proj.weight"] = torch.zeros(8, 32)
    changed(path, tensors)
    with pytest.raises(la.LvlmAttnError, match=r"'dcal.3.v2v.k_proj.weight' .* \(8, 32\)"):
        load_adapter(path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(b"no tensors here")
    with pytest.raises(la.LvlmAttnError, match="cannot be read"):
        load_adapter(path)


def test_sizes_given_as_numpy_numbers_are_saved(tmp_path):
    shape = AdapterShape(
        K=np.int64(2),
        offset=np.int32(1),
        layers=4,
        hidden=8,
        n_heads=2,
        n_kv=1,
        head_dim=4,
        grid=(np.int64(2), 3),
    )
    save_adapter(CrossLMMAdapter(shape), tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors").shape == shape
    assert all(type(side) is int for side in (shape.K, shape.offset, *shape.grid))
