"""Rows of attention against transformers' own eager weights."""

from functools import cache

import numpy as np
import pytest
import torch

import lvlm_attn as la
from lvlm_attn.maps import reading
from lvlm_attn.maps.contrast import GENERAL
from lvlm_attn.maps.reading import read_attention
from lvlm_attn.prompts.request import Request
from lvlm_attn.wrapping import target_of
from tests.attention_oracle import eager_twin, last_rows, shapes_of, split_blocks
from tests.oracle_setup import generate
from tests.tiny import tiny_model
from tests.tiny_processors import NAMES, PICTURES, QUESTIONS, tiny_processor

LAYERS = (1, 2)
PIXELS = ("pixel", "image_")


@cache
def shared_target(name):
    """The tiny model and its processor; tests leave it as it was."""
    return target_of(tiny_model(name), tiny_processor(name))


def requests(name, rows=(0, 1), target=None):
    target = target or shared_target(name)
    images, questions = [PICTURES[row] for row in rows], [QUESTIONS[row] for row in rows]
    request = Request.of_prompts(target, images, questions)
    return [request, request.asking([GENERAL] * request.batch)]


def truth(name, which, row, tokens=()):
    """Per block the weights of the last position of one row, unpadded."""
    request = requests(name, (row,))[which]
    return split_blocks(last_rows(name, request.inputs, LAYERS, tokens), shapes_of(request, 0))


def close(got, want):
    return all(np.allclose(a, b, rtol=2e-4, atol=1e-7) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", [*NAMES, "llava_onevision", "internvl", "qwen3_vl"])
def test_rows_equal_a_full_forward(name, share):
    """Prompts in a padded batch, read in pieces and left early, against single rows read whole."""
    found = read_attention(requests(name), LAYERS, share=share)
    for which in (0, 1):
        for row in (0, 1):
            got = [block[0] for block in found[which][row][0]]
            assert close(got, truth(name, which, row))
    assert not close([block[0] for block in found[0][0][0]], truth(name, 1, 0))


@pytest.mark.parametrize("name", NAMES)
def test_early_exit_changes_nothing(name):
    asked = requests(name)
    left = read_attention(asked, LAYERS, steps=1)
    whole = read_attention(asked, LAYERS, steps=2)
    for which in (0, 1):
        for row in (0, 1):
            for a, b in zip(left[which][row][0], whole[which][row][0]):
                assert np.array_equal(a[0], b[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_left_early(name):
    asked = requests(name)
    calls = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, at=index: calls.append(at))
        for index, layer in enumerate(asked[0].target.parts.layers)
    ]
    read_attention(asked, (0, 1), steps=1)
    for handle in handles:
        handle.remove()
    assert calls.count(1) == 3 + 1  # the images, two endings, and the check that attention can be read
    assert calls.count(2) == calls.count(3) == 1


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_steps_follow_greedy_decoding(name, share):
    """Step t equals a full forward over the prompt and the first t - 1 greedy tokens."""
    found = read_attention(requests(name), LAYERS, steps=4, share=share)
    for which in (0, 1):
        for row in (0, 1):
            alone = requests(name, (row,))[which]
            tokens, _ = generate(alone.target.model, alone.inputs, 4)
            got = found[which][row][0]
            assert all(len(block) == 4 for block in got)
            for step in range(4):
                want = truth(name, which, row, tokens[0, :step].tolist())
                assert close([block[step] for block in got], want)


def test_a_row_ends_with_its_end_token():
    asked = requests("llava", target=target_of(tiny_model("llava"), tiny_processor("llava")))
    model = asked[0].target.model
    tokens = [generate(model, requests("llava", (row,))[0].inputs, 4)[0][0].tolist() for row in (0, 1)]
    model.generation_config.eos_token_id = [tokens[0][1]]
    lengths = [
        next((step + 1 for step, token in enumerate(row) if token == tokens[0][1]), 4) for row in tokens
    ]
    found = read_attention(asked, LAYERS, steps=4)
    assert [len(found[0][row][0][0]) for row in (0, 1)] == lengths
    assert lengths[0] <= 2


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_images_have_none(name):
    target = shared_target(name)
    images = [None, [PICTURES[0], PICTURES[1]], PICTURES[1]]
    request = Request.of_prompts(target, images, QUESTIONS)
    other = request.asking([GENERAL] * request.batch)
    found = read_attention([request, other], LAYERS)
    assert [len(row) for row in found[0]] == [0, 2, 1]
    single = Request.of_prompts(target, images[1:2], QUESTIONS[1:2])
    rows = split_blocks(last_rows(name, single.inputs, LAYERS), shapes_of(single, 0))
    assert close([block[0] for image in found[0][1] for block in image], rows)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_keeps_nothing(name):
    """Hooks, attention and the positions that Qwen-VL keeps on its module are as they were."""
    asked = requests(name)
    model = asked[0].target.model
    base = asked[0].target.parts.base
    if hasattr(base, "rope_deltas"):
        base.rope_deltas = torch.tensor([[7]])
    with torch.no_grad():
        base.get_image_features(
            **{key: asked[0].inputs[key] for key in asked[0].inputs if key.startswith(PIXELS)}
        )
    before = state(model)
    read_attention(asked, LAYERS, steps=2)
    assert state(model) == before
    broken = asked[0].target.parts.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken layer"):
        read_attention(asked, LAYERS)
    broken.remove()
    assert state(model) == before


def fail(*_):
    raise RuntimeError("broken layer")


def state(model):
    """Hooks, attention implementations and rotary offsets of a model."""
    hooks = [
        (name, len(module._forward_pre_hooks), len(module._forward_hooks))
        for name, module in model.named_modules()
    ]
    offsets = getattr(model.model, "rope_deltas", None)
    return (
        hooks,
        model.config.get_text_config()._attn_implementation,
        None if offsets is None else offsets.tolist(),
    )


def test_prompts_are_read_whole_under_other_methods(monkeypatch):
    """A method that looks at the end of the prompt must not be shown its beginning alone."""
    asked = requests("llava")
    cut = []
    monkeypatch.setattr(reading, "common_beginning", lambda items: cut.append(items) and None)
    with la.wrap(asked[0].target.model, la.VHR(layers=[1])):
        read_attention(asked, LAYERS)
    assert not cut
    read_attention(asked, LAYERS)
    assert cut


def test_other_methods_act_on_what_is_read():
    asked = requests("llava", (0,))
    plain = read_attention(asked, (3,))[0][0][0][0]
    with la.wrap(asked[0].target.model, la.VHR(alpha=3.0, layers=[1, 2])):
        changed = read_attention(asked, (3,))[0][0][0][0]
    assert not np.allclose(plain, changed, rtol=1e-3)


def test_the_twin_has_the_same_weights():
    one, other = tiny_model("llava"), eager_twin("llava")
    assert all(torch.equal(a.double(), b) for a, b in zip(one.parameters(), other.parameters()))
