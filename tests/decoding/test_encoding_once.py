"""Pictures that several rows show are encoded once, in every family, and nothing else changes."""

import dataclasses

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.decoding.features import encoding_once
from lvlm_attn.prompts.pixels import join_pictures
from lvlm_attn.prompts.request import Request
from lvlm_attn.prompts.rows import stack_rows, tokens_of
from lvlm_attn.wrapping import target_of
from tests.decoding.steps import error, model_of
from tests.tiny import ALL_NAMES, tiny_inputs
from tests.versions import needs_pre_encoding

BATCH = [(1,), (2,), (0,)]
METHOD = "get_image_features"


def twice(name):
    """A request of six rows, the last three equal to the first three."""
    model = model_of(name)
    once = Request.of_tensors(target_of(model), tiny_inputs(name, model, BATCH))
    piece = {**tokens_of(once.inputs), "attention_mask": once.mask}
    pixels = join_pictures(once.pictures * 2, counts="batch_num_images" in once.inputs)
    inputs = dict(stack_rows([piece, piece], once.pad_id)) | pixels
    return Request(once.target, inputs, encodes_once=True)


def encoded(request, options=None, **given):
    """Logits of a `generate`, and the shapes of all pixels that the model encoded."""
    model, seen = request.target.model, []
    base = request.target.parts.base
    method = getattr(type(base), METHOD)

    def spy(self, *args, **kwargs):
        seen.append(kwargs["pixel_values"])
        return method(self, *args, **kwargs)

    spy.__wrapped__ = method
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True} | (options or {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(base), METHOD, spy)
        with encoding_once(request):
            out = model.generate(**request.inputs, **options, return_dict_in_generate=True)
    assert METHOD not in vars(base)
    return torch.stack(out.logits, 1), seen


@needs_pre_encoding
@pytest.mark.parametrize("name", ALL_NAMES)
def test_logits_are_those_of_every_row_encoded_for_itself(name):
    request = twice(name)
    got, fewer = encoded(request)
    want, all_rows = encoded(dataclasses.replace(request, encodes_once=False))
    assert error(got, want.double()) < 2e-5
    assert fewer[0].numel() < all_rows[0].numel()
    assert torch.equal(got[:3].argmax(-1), got[3:].argmax(-1))


@needs_pre_encoding
def test_pictures_that_differ_are_left_alone():
    model = model_of("llava")
    request = Request(target_of(model), tiny_inputs("llava", model, BATCH), encodes_once=True)
    _, seen = encoded(request)
    assert [pixels is request.inputs["pixel_values"] for pixels in seen] == [True]


@needs_pre_encoding
def test_other_pixels_and_a_model_in_training_are_encoded_as_they_come():
    request = twice("llava")
    base, model = request.target.parts.base, request.target.model
    other = request.inputs["pixel_values"].clone()
    with encoding_once(request):
        assert len(base.get_image_features(pixel_values=other, return_dict=True).pooler_output) == len(other)
    model.train()
    try:
        with encoding_once(request):
            assert METHOD not in vars(base)
    finally:
        model.eval()


@needs_pre_encoding
def test_an_exception_and_beams():
    request = twice("llava")
    with encoding_once(request):
        assert METHOD in vars(request.target.parts.base)
    with pytest.raises(ValueError, match="not used by the model"), encoding_once(request):
        request.target.model.generate(**request.inputs, no_such_option=1)
    assert METHOD not in vars(request.target.parts.base)
    model, options = request.target.model, {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    with encoding_once(request):
        got = model.generate(**request.inputs, **options)
    assert torch.equal(got, model.generate(**request.inputs, **options))


class Reads(la.VAR):
    """A method that also reads the image encoder."""

    def vision(self, target):
        return ()


@needs_pre_encoding
@pytest.mark.parametrize("kind", [la.VAR, Reads])
def test_inside_a_wrap_and_off_where_a_method_reads_the_encoder(kind, monkeypatch):
    request = twice("llava")
    base, sizes = request.target.parts.base, []
    hook = base.vision_tower.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    with la.wrap(request.target.model, kind()) as lvlm:
        lvlm.ask(dataclasses.replace(request, target=lvlm.target), max_new_tokens=2, do_sample=False)
    hook.remove()
    rows = len(request.inputs["pixel_values"])
    assert sizes == [rows if kind is Reads else rows // 2]
