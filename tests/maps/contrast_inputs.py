"""The general instruction as inputs, for oracles."""

from lvlm_attn.maps.contrast import GENERAL
from lvlm_attn.prompts.request import Request
from lvlm_attn.wrapping import target_of
from tests.tiny import tiny_model
from tests.tiny_processors import tiny_processor


def general_inputs(name, image):
    """What the model takes for the general instruction about an image."""
    return Request.of_prompts(target_of(tiny_model(name), tiny_processor(name)), [image], [GENERAL]).inputs
