"""Single images cut out of a batch and joined again; features encoded once and used for all who show them."""

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.decoding.features import can_share
from lvlm_attn.prompts.pixels import IMAGE_KEYS, join_pictures, split_pictures
from lvlm_attn.prompts.request import Request
from lvlm_attn.wrapping import target_of
from tests.decoding.steps import model_of
from tests.tiny import IMAGE, NAMES, tiny_inputs, tiny_rows

BATCH = [(2,), (0,), (1,)]


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_a_batch_are_those_of_single_rows(name):
    model = model_of(name)
    request = Request.of_tensors(target_of(model), tiny_inputs(name, model, BATCH))
    assert [len(row) for row in request.pictures] == [2, 0, 1]
    joined = join_pictures(request.pictures, counts="batch_num_images" in request.inputs)
    assert joined.keys() == request.inputs.keys() & {
        "pixel_values",
        "image_sizes",
        "image_grid_thw",
        "batch_num_images",
    }
    for key, value in joined.items():
        assert torch.equal(value, request.inputs[key])
    for row, inputs in zip(request.pictures, tiny_rows(name, model, BATCH)):
        single = split_pictures(inputs, Request.of_tensors(target_of(model), inputs).layout)[0]
        assert len(single) == len(row)
        for mine, alone in zip(row, single):
            assert torch.equal(mine.pixels[: len(alone.pixels)], alone.pixels)


@pytest.mark.parametrize("name", NAMES)
def test_taking_images_out_leaves_the_words(name):
    model = model_of(name)
    request = Request.of_tensors(target_of(model), tiny_inputs(name, model, BATCH))
    text = request.without_images()
    assert not text.layout.has_image.any()
    assert not text.inputs.keys() & set(IMAGE_KEYS)
    for index, inputs in enumerate(tiny_rows(name, model, BATCH)):
        words = inputs["input_ids"][inputs["input_ids"] != IMAGE]
        kept = text.inputs["input_ids"][index][text.inputs["attention_mask"][index].bool()]
        assert torch.equal(kept, words)
        assert bool(text.inputs["attention_mask"][index, -1])


def test_a_prompt_that_is_all_image_is_refused():
    model = model_of("llava")
    inputs = tiny_rows("llava", model, [(1,)])[0]
    is_image = inputs["input_ids"] == IMAGE
    inputs |= {key: inputs[key][is_image][None] for key in ("input_ids", "attention_mask")}
    with pytest.raises(la.LvlmAttnError, match="all image"):
        Request.of_tensors(target_of(model), inputs).without_images()


def test_pixels_of_other_images_are_refused():
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    inputs["pixel_values"] = inputs["pixel_values"][:2]
    with pytest.raises(la.LvlmAttnError, match="pixel_values"):
        _ = Request.of_tensors(target_of(model), inputs).pictures


class Counted(la.Intervention):
    """Reads the images twice more: as they are, and inverted."""

    def views(self, request):
        return (request, request.with_pixels(lambda pixels, index: -pixels))

    def fuse(self, main, views, step):
        return main


def encoder_calls(model, run):
    """Rows of features the image encoder's last layer made, summed over its calls."""
    seen = []
    base = model.model
    last = base.visual.merger if hasattr(base, "visual") else base.multi_modal_projector
    handle = last.register_forward_hook(lambda module, args, out: seen.append(out.shape[:-1].numel()))
    try:
        result = run()
    finally:
        handle.remove()
    return sum(seen), result


@pytest.mark.parametrize("name", NAMES)
def test_every_image_is_encoded_once(name):
    model = model_of(name)
    if not can_share(target_of(model)):
        pytest.skip("this version of transformers takes no features in place of pixels")
    inputs = tiny_inputs(name, model, [(1,), (2,)])
    plain, _ = encoder_calls(model, lambda: model.generate(**inputs, max_new_tokens=2))
    with la.wrap(model, Counted()) as lvlm:
        count, _ = encoder_calls(model, lambda: lvlm.generate(**inputs, max_new_tokens=2))
    assert plain > 0
    assert (
        count == 2 * plain
    )  # the images and their inverses, not a third time for the view that shows them too


@pytest.mark.parametrize("name", NAMES)
def test_rows_with_the_same_image_share_its_features(name):
    model = model_of(name)
    if not can_share(target_of(model)):
        pytest.skip("this version of transformers takes no features in place of pixels")
    row = tiny_rows(name, model, [(1,)])[0]
    inputs = {key: torch.cat((value, value)) for key, value in row.items()}
    single, _ = encoder_calls(model, lambda: model.generate(**row, max_new_tokens=1))

    class Same(la.Intervention):
        def views(self, request):
            return (request,)

        def fuse(self, main, views, step):
            assert torch.allclose(main, views[0], atol=1e-5)
            return main

    options = {"max_new_tokens": 3, "do_sample": False}
    plain = model.generate(**inputs, **options)
    with la.wrap(model, Same()) as lvlm:
        count, out = encoder_calls(model, lambda: lvlm.generate(**inputs, **options))
    assert count == single
    assert torch.equal(out, plain)


@pytest.mark.parametrize("name", NAMES)
def test_shared_features_are_bit_equal(name):
    """The embeddings that enter the language model are those of the plain call, in every row that shows them."""
    model = model_of(name)
    inputs = tiny_inputs(name, model, [(1,), (2,)])

    def embeddings(run):
        seen = []
        handle = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        run()
        handle.remove()
        return seen[0]

    want = embeddings(lambda: model.generate(**inputs, max_new_tokens=1))
    with la.wrap(model, Counted()) as lvlm:
        got = embeddings(lambda: lvlm.generate(**inputs, max_new_tokens=1))
    assert torch.equal(got[:2], want)
    assert torch.equal(got[2:4], want)
    assert not torch.equal(got[4:], want)
