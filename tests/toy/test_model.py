"""The bundled model: stock, small, grouped-query, loadable anywhere."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.toy import load
from lvlm_attn.toy.bundle import WEIGHTS
from lvlm_attn.toy.model import ModelSizes, build_model
from lvlm_attn.toy.tokenizer import build_tokenizer, token_ids


@pytest.fixture(scope="module")
def toy():
    return load()


def test_it_is_a_stock_llava_with_grouped_queries(toy):
    model, _ = toy
    assert type(model) is LlavaForConditionalGeneration
    assert not model.training
    assert model.dtype == torch.float32
    text = model.config.text_config
    assert text.num_attention_heads == 2 * text.num_key_value_heads
    assert text.num_hidden_layers >= 6
    assert model.config.vision_feature_select_strategy == "default"
    assert model.config.image_seq_length == 144


def test_it_is_small_and_pins_no_backend():
    assert (WEIGHTS / "model.safetensors").stat().st_size < 16e6
    text = (WEIGHTS / "config.json").read_text()
    assert "attn_implementation" not in text
    assert "/" not in json.loads(text).get("_name_or_path", "")


def test_another_type_of_weights():
    model, _ = load(dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_it_loads_without_torchvision():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from lvlm_attn.toy import load\nmodel, processor = load()\nprint(type(processor).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "LlavaProcessor"


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(LvlmAttnError, match=r"model\.safetensors.*lvlm_attn\.toy\.train"):
        load(folder=tmp_path)


def test_equal_tokens_attract_each_other_before_training():
    sizes = ModelSizes(width=64, layers=4, heads=4, kv_heads=2, inner=96, vision_width=32, vision_heads=2)
    model = build_model(sizes, token_ids(build_tokenizer()), seed=3)
    layer = model.model.language_model.layers[0].self_attn
    query, key = layer.q_proj.weight, layer.k_proj.weight
    assert torch.equal(query.view(2, 2, 16, 64)[:, 0], key.view(2, 16, 64))
    again = build_model(sizes, token_ids(build_tokenizer()), seed=3)
    assert torch.equal(again.model.language_model.layers[0].self_attn.q_proj.weight, query)
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
