"""The causal check against a forward with a mask made by hand, and what it needs."""

import numpy as np
import pytest
import torch

import lvlm_attn as la
from lvlm_attn import toy
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.prompts.chat import encode_prompts
from tests.maps.made import hand_made, toy_model

IMAGE = toy.scenes("test")[0].image
QUESTION = "Describe this image."


@pytest.fixture(scope="module")
def maps():
    model, processor = toy_model()
    with la.wrap(model, la.record(), processor=processor) as lvlm:
        lvlm.generate(
            images=[IMAGE, IMAGE], prompts=["Is there a dog in the image?", QUESTION], max_new_tokens=24
        )
    return lvlm.maps.sample(1)


def logit_by_hand(maps, word, hidden):
    """The mean logit of a word's tokens when nobody but themselves attends to some positions."""
    model, processor = toy_model()
    targets = maps[word].targets[0].tolist()
    ids = maps.ids[:, : max(targets)]
    length = ids.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    allowed &= maps.layout.is_valid[0, :length]
    allowed[:, hidden] = False
    allowed |= torch.eye(length, dtype=torch.bool)
    mask = torch.zeros(1, 1, length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)
    pixels = processor.image_processor([IMAGE], return_tensors="pt")["pixel_values"]
    embeds = model.get_input_embeddings()(ids)
    features = model.model.get_image_features(pixels, return_dict=True).pooler_output
    embeds[0, maps.layout.is_patch[0, :length]] = torch.cat(list(features))
    positions = (maps.layout.is_valid[:, :length].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        hidden_states = model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden_states)[0]
    return float(torch.stack([logits[target - 1, maps.ids[0, target]] for target in targets]).mean())


@pytest.mark.parametrize("cells", [1, 3])
def test_hidden_keys_by_hand(maps, cells):
    check = maps.occlude("car", cells=cells, batch=7)
    count = 12 // cells
    assert check.drop.shape == check.attention.shape == (count, count)
    whole = logit_by_hand(maps, "car", [])
    assert check.logit == pytest.approx(whole, abs=1e-4)
    patches = maps.layout.is_patch[0].nonzero().flatten().reshape(12, 12)
    for row, col in (
        (0, 0),
        (count // 2, count - 1),
        np.unravel_index(check.drop.argmax(), check.drop.shape),
    ):
        part = patches[row * cells : (row + 1) * cells, col * cells : (col + 1) * cells].flatten()
        assert check.drop[row, col] == pytest.approx(whole - logit_by_hand(maps, "car", part), abs=1e-4)
    assert check.attention.sum() == pytest.approx(maps["car"].pixels().sum())
    assert np.abs(check.drop).max() > 0.1


def test_a_row_is_chosen_by_its_number(maps):
    row = [token.strip() for token in maps.tokens].index("car")
    check, named = maps.occlude(row, cells=6), maps.occlude("car", cells=6)
    assert check.word == "car"
    assert np.array_equal(check.drop, named.drop)


def test_painted_regions(maps):
    check = maps.occlude("car", by="pixels", cells=4)
    assert repr(check).startswith("Occlusion('car', 3 x 3 regions by pixels: logit ")
    assert check.logit == pytest.approx(maps.occlude("car", cells=12).logit, abs=1e-4)
    car = next(item.box for item in toy.scenes("test")[0].objects if item.name == "car")
    middle = ((car[1] + car[3]) / 2 // 48, (car[0] + car[2]) / 2 // 48)
    assert np.unravel_index(np.abs(check.drop).argmax(), check.drop.shape) == middle


def test_inside_the_wrap_and_after_it_are_the_same():
    """Everything that acted acts again, the recorder's maps stay, and the model is left alone."""
    model, processor = toy_model()
    with la.wrap(model, la.VHR(alpha=3.0), la.record(), processor=processor) as lvlm:
        lvlm.generate(images=[IMAGE], prompts=[QUESTION], max_new_tokens=12)
        maps = lvlm.maps
        word = maps.words[-1]
        inside = maps.occlude(word, cells=4)
        assert lvlm.maps is maps
    after = maps.occlude(word, cells=4)
    assert np.allclose(inside.drop, after.drop, atol=1e-6)
    with la.wrap(model, la.record(), processor=processor) as lvlm:
        lvlm.generate(images=[IMAGE], prompts=[QUESTION], answers=[maps.meta["answers"][0]])
    assert lvlm.maps.occlude(word, cells=4).logit != pytest.approx(inside.logit, abs=1e-3)


def test_a_picture_of_it(maps):
    pytest.importorskip("matplotlib")
    check = maps.occlude("car", cells=4)
    texts = [text.get_text() for text in check.overlay().findobj(lambda item: hasattr(item, "get_text"))]
    assert any("rank correlation" in text for text in texts)
    assert "attention weight (%)" in texts


def test_what_it_needs(tmp_path, maps):
    with pytest.raises(LvlmAttnError, match="read from a file or made by hand"):
        hand_made().occlude("dog")
    with pytest.raises(LvlmAttnError, match="read from a file"):
        la.AttentionMaps.load(maps.save(tmp_path / "m")).occlude("car")
    with pytest.raises(LvlmAttnError, match="No recorded token holds the word 'zebra'"):
        maps.occlude("zebra")
    with pytest.raises(LvlmAttnError, match="by='ears' must be"):
        maps.occlude("car", by="ears")
    with pytest.raises(LvlmAttnError, match="must be at least 1"):
        maps.occlude("car", cells=0)


@pytest.mark.parametrize("name", ["llava_next", "internvl", "qwen2_vl"])
def test_tiles_and_native_grids(name):
    """Of prompts given as tensors, where patches have no known place in pixels."""
    from tests.tiny import tiny_inputs, tiny_model

    model = tiny_model(name)
    inputs = tiny_inputs(name, model, [(1,), (2,)])
    with la.wrap(model, la.record()) as lvlm:
        model.generate(**inputs, max_new_tokens=3)
    from dataclasses import replace

    maps = lvlm.maps.sample(1)
    named = replace(maps, pieces=(tuple(f" w{place}" for place in range(maps.ids.shape[1])),))
    word = f"w{int(maps.targets[0, 1])}"
    check = named.occlude(word, image=1)
    assert check.drop.shape == maps.grid(1)[0].shape
    assert np.abs(check.drop).max() > 1e-4


def test_t_vhd_along_an_answer_is_that_of_every_prefix():
    """One call gives what `la.vhd` gives of the prompt with the answer so far, and marks words in its picture."""
    from lvlm_attn.maps.divergence import t_vhd

    model, processor = toy_model()
    scene = toy.scenes("test")[0]
    with la.wrap(model, la.record(), processor=processor) as lvlm:
        lvlm.generate(images=[scene.image], prompts=["Describe this image."], max_new_tokens=6)
        maps = lvlm.maps
    inputs = encode_prompts(processor, [scene.image], ["Describe this image."])
    prompt = inputs["input_ids"].shape[1]
    found = t_vhd(maps, top=2)
    for row in (0, 1, 4):
        so_far = maps.ids[:, prompt : prompt + row]
        wanted = la.vhd(model, inputs, generated=so_far if row else None).t_vhd(2)
        assert found[row] == pytest.approx(float(wanted), rel=1e-3)
    figure = maps.vhd_along(hallucinated=["car"])
    bad = figure.axes[0].lines[1]
    assert maps.tokens[int(bad.get_xdata()[0])].strip() == "car"
    with pytest.raises(LvlmAttnError, match="No recorded token holds the word 'zebra'"):
        maps.vhd_along(hallucinated=["zebra"])
    with pytest.raises(LvlmAttnError, match="were read from a file or made by hand"):
        t_vhd(hand_made()[:1])
