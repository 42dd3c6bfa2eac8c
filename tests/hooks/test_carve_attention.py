"""CARVEAttention against weights multiplied and normalised by hand, and what every method owes."""

import numpy as np
import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.carve_attention import CARVEAttention, log_contrast
from lvlm_attn.prompts.request import Request
from lvlm_attn.wrapping import target_of
from tests.attention_oracle import last_rows
from tests.hooks.test_carve import OPTIONS, model_of, run
from tests.maps.contrast_inputs import general_inputs
from tests.maps.test_reading import fail, state
from tests.tiny import IMAGE
from tests.tiny_processors import NAMES, PICTURES, QUESTIONS, tiny_processor

LAYERS = (1, 2)


class Multiply(la.Intervention):
    """Multiplies columns of the weights of text rows behind the image, and normalises them again."""

    layers = LAYERS

    def __init__(self, factors):
        self.factors = factors  # (positions,)

    def edit_weights(self, layer, weights):
        factors = torch.ones(weights.shape[-1])
        factors[: len(self.factors)] = self.factors
        changed = weights * factors
        changed = changed / changed.sum(-1, keepdim=True)
        rows = layer.layout.after_image[:, layer.queries]
        return torch.where(rows[:, None, :, None], changed, weights)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_multiplied_by_the_contrast(name):
    model = model_of(name)
    tokens, logits, _ = run(name, CARVEAttention(temperature=0.7, layers=LAYERS), rows=(0,))
    inputs = Request.of_prompts(target_of(model, tiny_processor(name)), PICTURES[:1], QUESTIONS[:1]).inputs
    request = Request.of_tensors(target_of(model), inputs)
    asked, told = (last_rows(name, given, LAYERS) for given in (inputs, general_inputs(name, PICTURES[0])))
    is_image = inputs["input_ids"][0] == IMAGE
    ratio = (asked / (told + 1e-8)).sum(0)
    is_patch = request.layout.is_patch[0][is_image].numpy()
    factors = torch.ones(len(is_image))
    scaled = np.where(is_patch, (ratio / np.exp(np.log(ratio[is_patch]).mean())) ** 0.7, 1.0)
    factors[is_image] = torch.from_numpy(scaled).float()
    with torch.no_grad(), la.wrap(model, Multiply(factors)):
        want = model.generate(**inputs, **OPTIONS)
    assert torch.equal(tokens, want.sequences[:, -3:])
    assert (logits - torch.stack(want.logits, 1)).abs().max() < 1e-3
    bare = torch.stack(model.generate(**inputs, **OPTIONS).logits, 1)
    assert (logits - bare).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_temperature_zero_keeps_bits(name):
    model = model_of(name)
    inputs = Request.of_prompts(target_of(model, tiny_processor(name)), PICTURES[:2], QUESTIONS[:2]).inputs
    _, logits, _ = run(name, CARVEAttention(temperature=0))
    assert torch.equal(logits, torch.stack(model.generate(**inputs, **OPTIONS).logits, 1))


@pytest.mark.parametrize("name", NAMES)
def test_batch_rows_equal_single_rows(name):
    item = CARVEAttention(layers=LAYERS)
    images = [[PICTURES[0], PICTURES[2]], None, PICTURES[1]]
    tokens, logits, _ = run(name, item, rows=(0, 1, 2), images=images)
    for row in (0, 2):
        one, alone, _ = run(name, item, rows=(row,), images=[images[row]])
        assert torch.equal(tokens[row], one[0])
        assert (logits[row] - alone[0]).abs().max() < 2e-4


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_from_the_prompt_before(name):
    item = CARVEAttention(layers=LAYERS)
    tokens, logits, _ = run(name, item, rows=(1,))
    with la.wrap(model_of(name), item, processor=tiny_processor(name)) as lvlm:
        lvlm.generate(images=PICTURES[:2], prompts=QUESTIONS[:2], **OPTIONS)
        out = lvlm.generate(images=[PICTURES[1]], prompts=[QUESTIONS[1]], **OPTIONS)
    assert torch.equal(out.sequences[:, -3:], tokens)
    assert torch.equal(torch.stack(out.logits, 1), logits)


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_leaves_the_model_as_it_was(name):
    model = model_of(name)
    run(name, CARVEAttention(), rows=(0,))
    before = state(model)[:2]
    handle = model.model.language_model.layers[3].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken layer"):
        run(name, CARVEAttention())
    handle.remove()
    assert state(model)[:2] == before


def test_more_rows_than_prompts_are_refused():
    for item, options in (
        (la.AGLA(control=True), {}),
        (None, {"num_return_sequences": 2, "do_sample": True}),
    ):
        items = [CARVEAttention(), *([item] if item else [])]
        with la.wrap(model_of("llava"), *items, processor=tiny_processor("llava")) as lvlm:
            with pytest.raises(la.UnsupportedError, match="2 rows are decoded"):
                lvlm.generate(images=PICTURES[:1], prompts=QUESTIONS[:1], **{**OPTIONS, **options})


def test_logarithm_is_centred():
    values = np.array([0.0, 1.0, 4.0])
    found = log_contrast(values, 1.0)
    assert np.isfinite(found).all()
    assert abs(found.mean()) < 1e-12
    assert np.isclose(found[2] - found[1], np.log(4))
    assert not log_contrast(np.zeros(3), 1.0).any()


def test_written_form_and_bad_parameters():
    (item,) = la.parse("carve_attention:temperature=0.5,mode=all")
    assert item == CARVEAttention(temperature=0.5, mode="all")
    assert la.parse(str(item)) == (item,)
    with pytest.raises(la.LvlmAttnError, match="temperature"):
        CARVEAttention(temperature=-1)
