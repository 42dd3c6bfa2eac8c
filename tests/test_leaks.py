"""The check that runs around every test finds what a test leaves on a model that others share."""

import gc

import pytest
import torch

from tests import leaks
from tests.tiny import tiny_model


def hook(model):
    handle = model.model.language_model.layers[1].register_forward_hook(lambda *args: None)
    return handle.remove


def attribute(model):
    model.model.language_model.left = 1
    return lambda: delattr(model.model.language_model, "left")


def backend(model):
    config, before = model.config.text_config, model.config.text_config._attn_implementation
    config._attn_implementation = "eager"
    return lambda: setattr(config, "_attn_implementation", before)


def generation_setting(model):
    model.generation_config.num_beams = 3
    return lambda: setattr(model.generation_config, "num_beams", None)


def mode(model):
    model.model.language_model.layers[0].train()
    return model.eval


def weight(model):
    with torch.no_grad():
        model.lm_head.weight[0] += 1
    return None


@pytest.mark.parametrize("leave", [hook, attribute, backend, generation_setting, mode, weight])
def test_what_is_left_is_found(leave):
    model = tiny_model("llava")
    before = [(watched, state) for watched, state in leaks.states() if watched.model() is model]
    assert len(before) == 1
    assert leaks.left_behind(before) == []
    take_back = leave(model)
    (found,) = leaks.left_behind(before)
    assert "LlavaForConditionalGeneration" in found
    if take_back is not None:
        take_back()
        assert leaks.left_behind(before) == []


def test_models_that_are_gone_are_forgotten():
    model = tiny_model("llava")
    known = [watched for watched, _ in leaks.states() if watched.model() is model]
    assert known
    del model
    gc.collect()
    assert not [watched for watched, _ in leaks.states() if watched in known]
