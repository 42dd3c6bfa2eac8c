"""Planted sinks: marked where they should be, alone in their dimension, held in training, as heavy as wanted."""

import json

import pytest
import torch

from lvlm_attn.measures.diagnostics import find_sinks
from lvlm_attn.measures.sinks import sink_score
from lvlm_attn.toy.bundle import planted as read_planted
from lvlm_attn.toy.data import Batch
from lvlm_attn.toy.model import ModelSizes, build_model
from lvlm_attn.toy.planting import Planted, choose, hold, marks, plant, set_amplifier, set_keys
from lvlm_attn.toy.sink_keys import SinkTargets, layer_masses, sink_loss
from lvlm_attn.toy.tokenizer import build_tokenizer, token_ids

SIZES = ModelSizes(width=64, layers=5, heads=4, kv_heads=2, inner=96, vision_width=32, vision_heads=2)


@pytest.fixture
def made():
    """A toy with sinks planted; its corner reading is the first feature, less a half."""
    tokenizer = build_tokenizer()
    model = build_model(SIZES, token_ids(tokenizer), seed=3)
    corner = torch.nn.Linear(32, 1)
    with torch.no_grad():
        corner.weight.zero_()
        corner.weight[0, 0] = 8
        corner.bias.fill_(-4)
    planted = choose(model, {3: (0, 2)})
    plant(model, planted, corner, tokenizer.bos_token_id)
    set_amplifier(model, planted, 0.3, 4.0)
    return model, tokenizer, planted


def test_marks_are_one_at_corners_and_nothing_elsewhere(made):
    model, _, planted = made
    features = torch.randn(2, 9, 32)
    features[..., 0] = 0
    features[0, 0, 0] = features[1, 4, 0] = 1
    found = marks(model, features, planted).detach()
    assert found[0, 0] == pytest.approx(1, abs=0.05)
    assert found[1, 4] == pytest.approx(1, abs=0.05)
    found[0, 0] = found[1, 4] = 0
    assert found.abs().max() < 0.05


def test_the_first_token_is_found_as_a_sink_and_no_other_token_is(made):
    model, tokenizer, planted = made

    class Processor:
        pass

    Processor.tokenizer = tokenizer
    found = find_sinks(model, Processor())
    assert found.dims == (planted.dimension,)
    assert found.is_confident
    ids = tokenizer("USER: Is there a dog in the image? ASSISTANT:", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = model.model.language_model(ids, output_hidden_states=True).hidden_states
    for layer in planted.layers:
        score = sink_score(states[layer], [planted.dimension])[0]
        assert score[0] > 5
        assert score[1:].max() < 0.1


def test_training_leaves_the_circuit_alone_and_moves_the_rest(made):
    model, tokenizer, planted = made
    handles = hold(model, planted)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    ids = tokenizer("Is there a dog in the image? Yes", return_tensors="pt")["input_ids"]
    image = model.model.multi_modal_projector(torch.randn(1, 9, 32))
    embedded = torch.cat((model.get_input_embeddings()(ids), image), 1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    model.lm_head(hidden).square().mean().backward()
    optimizer.step()
    after = dict(model.named_parameters())
    dim = planted.dimension
    layer = model.model.language_model.layers[1]
    for name in ("gate_proj", "up_proj"):
        full = f"model.language_model.layers.1.mlp.{name}.weight"
        assert torch.equal(after[full][planted.neuron], before[full][planted.neuron])
        assert not torch.equal(after[full], before[full])
    down = "model.language_model.layers.1.mlp.down_proj.weight"
    assert torch.equal(after[down][dim], before[down][dim])
    assert torch.equal(
        after["model.language_model.embed_tokens.weight"][:, dim],
        before["model.language_model.embed_tokens.weight"][:, dim],
    )
    assert torch.equal(
        layer.self_attn.k_proj.weight[:, dim],
        before["model.language_model.layers.1.self_attn.k_proj.weight"][:, dim],
    )
    second = "model.multi_modal_projector.linear_2"
    assert torch.equal(after[f"{second}.weight"][dim], before[f"{second}.weight"][dim])
    assert torch.equal(after[f"{second}.bias"][dim], before[f"{second}.bias"][dim])
    assert not torch.equal(after[f"{second}.weight"], before[f"{second}.weight"])
    for handle in handles:
        handle.remove()


def test_keys_with_the_mark_draw_more_attention(made):
    model, tokenizer, planted = made
    model.set_attn_implementation("eager")
    ids = tokenizer("USER: Is there a dog in the image? ASSISTANT:", return_tensors="pt")["input_ids"]

    def on_first():
        with torch.no_grad():
            return model.model.language_model(ids, output_attentions=True).attentions[2][0, :2, 4:, 0].mean()

    bare = on_first()
    layer = model.model.language_model.layers[2]
    with torch.no_grad():
        states = model.model.language_model(ids, output_hidden_states=True).hidden_states[2]
        queries = layer.self_attn.q_proj(layer.input_layernorm(states))[0, 4:].mean(0).view(2, 2, 16).mean(1)
    set_keys(model, 2, 0, queries[0] / queries[0].norm(), planted.dimension)
    assert on_first() > bare + 0.1


def batch(with_image):
    ids = torch.tensor([[1, 7, 9, 9, 9, 9, 5, 6, 0], [1, 7, 9, 9, 9, 9, 5, 6, 8]])
    if not with_image:
        ids = torch.cat((ids[:, :2], ids[:, 6:].repeat(1, 4)), 1)
    return Batch(ids, ids, (2,) if with_image else (), 6 if with_image else 2)


def test_masses_are_those_of_text_rows_after_the_picture():
    sample = batch(True)
    attention = torch.rand(2, 3, 9, 9).tril()
    attention = attention / attention.sum(-1, keepdim=True)
    is_sink = torch.zeros(2, 9, dtype=torch.bool)
    is_sink[:, 0] = True
    is_sink[1, 3] = True
    masses = layer_masses(attention, sample, is_sink, pad=0)
    rows = [(0, 6), (0, 7), (1, 6), (1, 7), (1, 8)]
    sinks = [attention[b, :, q, 0] + (attention[b, :, q, 3] if b else 0) for b, q in rows]
    patches = [attention[b, :, q, 2:6].sum(-1) - (attention[b, :, q, 3] if b else 0) for b, q in rows]
    assert torch.allclose(masses.sinks, torch.stack(sinks).mean(0))
    assert torch.allclose(masses.patches, torch.stack(patches).mean(0))


@pytest.mark.parametrize("with_image", [True, False])
def test_the_loss_is_two_sided_and_nothing_at_its_target(with_image):
    sample = batch(with_image)
    length = sample.input_ids.shape[1]
    planted = Planted(5, (0, 1), 0, (0,), {0: (1,)})
    targets = SinkTargets(mass=0.2, text_mass=0.6, patch_mass=0.1)
    is_sink = torch.zeros(2, length, dtype=torch.bool)
    is_sink[:, 0] = True

    def loss(first, second):
        attention = torch.zeros(2, 2, length, length)
        attention[:, 0, :, 0], attention[:, 1, :, 0] = first, second
        attention[:, 0, :, 1], attention[:, 1, :, 1] = 1 - first, 1 - second
        return float(sink_loss([attention], sample, is_sink, planted, targets, pad=0)[0])

    assert loss(0.2, 0.6) == pytest.approx(0, abs=1e-12)
    assert loss(0.3, 0.6) == pytest.approx(4 * 0.01 / 2, rel=1e-4)
    assert loss(0.1, 0.6) == pytest.approx(4 * 0.01 / 2, rel=1e-4)
    assert loss(0.2, 0.5) > 0


def test_what_was_planted_is_written_and_found_again(tmp_path):
    planted = Planted(5, (0, 1), 7, (2, 3), {2: (0,), 3: (1, 2)})
    planted.write(tmp_path)
    assert read_planted(tmp_path) == planted
    assert json.loads((tmp_path / "planted.json").read_text())["dimension"] == 5


def test_a_folder_that_does_not_say_what_was_planted_is_named(tmp_path):
    from lvlm_attn.errors import LvlmAttnError

    with pytest.raises(LvlmAttnError, match=r"planted\.json"):
        read_planted(tmp_path)
