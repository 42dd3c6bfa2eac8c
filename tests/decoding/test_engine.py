"""What `lvlm.generate` refuses, what it leaves behind, and requests that are rewritten or decoded otherwise."""

import threading

import pytest
import torch
from PIL import Image

import lvlm_attn as la
from lvlm_attn.prompts.request import Request
from tests.decoding.steps import generated, model_of
from tests.tiny import NAMES, tiny_inputs, tiny_model, tiny_rows

BATCH = [(1,), (2,)]


class Double(la.Intervention):
    """Contrasts with inverted pixels."""

    def views(self, request):
        return (request.with_pixels(lambda pixels, index: -pixels),)

    def fuse(self, main, views, step):
        return 2 * main - views[0]


REFUSED = {
    "num_beams": {"num_beams": 2},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 2},
    "prefill_chunk_size": {"prefill_chunk_size": 4},
    "guidance_scale": {"guidance_scale": 2.0},
    "output_attentions": {"output_attentions": True, "return_dict_in_generate": True},
    "output_hidden_states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "assisted decoding": {"assistant_model": "model"},
    "past_key_values": {"past_key_values": "cache"},
    "position_ids": {"position_ids": torch.zeros(2, 3)},
    "inputs_embeds": {"inputs_embeds": torch.zeros(2, 3, 4)},
    "custom_generate": {"custom_generate": "folder"},
    "synced_gpus": {"synced_gpus": True},
    "paged": {"cache_implementation": "paged"},
    "stop_strings": {"stop_strings": ["a"]},
    "'pixel_mask'": {"pixel_mask": torch.zeros(2, 3)},
}


@pytest.mark.parametrize("word", REFUSED)
def test_ways_to_decode_that_would_go_wrong_are_refused(word):
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    with la.wrap(model, Double()) as lvlm:
        with pytest.raises(la.LvlmAttnError, match=word) as caught:
            lvlm.generate(**inputs, max_new_tokens=3, **REFUSED[word])
        assert "\n" not in str(caught.value)
        assert generated(lvlm, inputs)[0].shape == (2, 5)  # nothing is left behind


def test_a_default_of_the_model_is_refused_as_an_option_is():
    model = tiny_model("llava")
    model.generation_config.num_beams = 3
    with la.wrap(model, Double()) as lvlm:
        with pytest.raises(la.UnsupportedError, match="num_beams=3"):
            lvlm.generate(**tiny_inputs("llava", model, BATCH), max_new_tokens=3)
        assert (
            lvlm.generate(**tiny_inputs("llava", model, BATCH), max_new_tokens=3, num_beams=1).shape[0] == 2
        )


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_plain_calls_are_refused_with_the_way_out(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    with la.wrap(model, Double()), la.wrap(model, la.VHR()) as inner:
        for call in (model.generate, model, inner.generate):
            with pytest.raises(la.UnsupportedError, match=r"Double .*lvlm\.generate\(") as caught:
                call(**inputs)
            assert "\n" not in str(caught.value)
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 2


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_leaves_the_model_as_it_was(name):
    class Fails(Double):
        def fuse(self, main, views, step):
            if step == 2:
                raise KeyError("broken")
            return main

    model = tiny_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    before = generated(model, inputs)
    hooks = {path: len(module._forward_pre_hooks) for path, module in model.named_modules()}
    deltas = getattr(model.model, "rope_deltas", None)
    with pytest.raises(KeyError), la.wrap(model, Fails()) as lvlm:
        generated(lvlm, inputs)
    assert getattr(model.model, "rope_deltas", None) is deltas
    assert {path: len(module._forward_pre_hooks) for path, module in model.named_modules()} == hooks
    after = generated(model, inputs)
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_after_another_is_the_sample_alone(name):
    model = model_of(name)
    first, second = tiny_rows(name, model, [(2,), (1, 5, 7)])
    with la.wrap(model, Double()) as lvlm:
        alone = generated(lvlm, second)
    with la.wrap(model, Double()) as lvlm:
        generated(lvlm, first)
        after = generated(lvlm, second)
    assert torch.equal(alone[1], after[1])


def test_views_and_joined_logits_of_a_wrong_size():
    class Fewer(Double):
        def views(self, request):
            return (Request.of_tensors(request.target, {"input_ids": request.inputs["input_ids"][:1]}),)

    class Flat(Double):
        def fuse(self, main, views, step):
            return main[0]

    class Cropped(Double):
        def views(self, request):
            return (request.with_pixels(lambda pixels, index: pixels[..., :2]),)

    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    for kind, words in ((Fewer, "1 rows for a request of 2"), (Flat, r"\(99,\)"), (Cropped, "shape")):
        with la.wrap(model, kind()) as lvlm, pytest.raises(la.LvlmAttnError, match=words) as caught:
            lvlm.generate(**inputs, max_new_tokens=2)
        assert "\n" not in str(caught.value)


def test_fuse_without_views_joins_nothing_but_changes_logits():
    class Least(la.Intervention):
        def fuse(self, main, views, step):
            assert list(views) == []
            return -main

    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    bare = model(**inputs).logits[:, -1]
    with la.wrap(model, Least()) as lvlm:
        _, logits = generated(lvlm, inputs)
    assert torch.allclose(logits[:, 0], -bare, atol=1e-5)


def test_rows_without_an_image_keep_their_logits_where_an_image_is_needed():
    class Needy(Double):
        needs_image = True

        def fuse(self, main, views, step):
            return main + 100.0 * step + 50.0

    model = model_of("llava")
    inputs = tiny_inputs("llava", model, [(1,), (0,)])
    bare = model(**inputs).logits[:, -1]
    with la.wrap(model, Needy()) as lvlm:
        _, logits = generated(lvlm, inputs, do_sample=True, num_return_sequences=2)
    assert torch.allclose(logits[:2, 0], bare[[0, 0]] + 50, atol=1e-4)
    assert torch.allclose(logits[2:, 0], bare[[1, 1]], atol=1e-4)


class Rewrites(la.Intervention):
    """Asks the bare model, with a wrap of its own and without one, then asks about inverted pixels."""

    def rewrite(self, request):
        seen = []

        class Reads(la.Intervention):
            def observe(self, layer, hidden):
                seen.append(layer.index)

        model = request.target.model
        with la.wrap(model, Reads()):
            model(**request.inputs)
        request.details["Rewrites"] = {
            "layers": seen,
            "logits": model(**request.inputs).logits,
            "tokens": model.generate(**request.inputs, max_new_tokens=2, do_sample=False),
        }
        return request.with_pixels(lambda pixels, index: -pixels)


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
def test_a_request_is_rewritten_after_looking_at_the_bare_model(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    bare = model(**inputs).logits
    want = model.generate(
        **inputs | {"pixel_values": -inputs["pixel_values"]}, max_new_tokens=4, do_sample=False
    )
    # Heads turned off are sure to change the logits, and must not do so while the method looks.
    with la.wrap(model, la.VHR(alpha=0.0)) as lvlm:
        scaled = lvlm.generate(
            **inputs | {"pixel_values": -inputs["pixel_values"]}, max_new_tokens=4, do_sample=False
        )
    for extra in ([], [la.VHR(alpha=0.0)]):
        with la.wrap(model, *extra, Rewrites()) as lvlm:
            assert lvlm.details == {}
            got = lvlm.generate(**inputs, max_new_tokens=4, do_sample=False)
            details = lvlm.details["Rewrites"]
        assert torch.equal(got, scaled if extra else want)
        assert details["layers"] == list(range(4))
        assert torch.equal(details["logits"], bare)
        assert details["tokens"].shape[1] == inputs["input_ids"].shape[1] + 2


def test_details_are_those_of_the_last_call():
    class Notes(la.Intervention):
        def rewrite(self, request):
            request.details["rows"] = request.batch
            return request

    model = model_of("llava")
    with la.wrap(model, Notes()) as lvlm:
        lvlm.generate(**tiny_inputs("llava", model, BATCH), max_new_tokens=1)
        lvlm.generate(**tiny_inputs("llava", model, [(1,)]), max_new_tokens=1)
    assert lvlm.details == {"rows": 1}


def own_loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    return input_ids.flip(0)


class Loops(la.Intervention):
    """Decodes in a loop of its own."""

    def loop(self, request):
        return own_loop


def test_a_loop_of_its_own():
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    with la.wrap(model, Loops()) as lvlm:
        assert torch.equal(lvlm.generate(**inputs, max_new_tokens=3), inputs["input_ids"].flip(0))
    for other in (Double(), Loops()):
        with (
            la.wrap(model, Loops(), other) as lvlm,
            pytest.raises(la.UnsupportedError, match="loop of its own"),
        ):
            lvlm.generate(**inputs, max_new_tokens=3)


def test_answers_stop_strings_and_output_objects(loaded):
    model, processor = loaded
    image = Image.new("RGB", (64, 64), (200, 30, 30))
    ask = {"images": [image, image], "prompts": ["Describe this image.", "Is there a dog in the image?"]}
    with la.wrap(model, processor=processor) as lvlm:
        plain = lvlm.generate(**ask, max_new_tokens=12, do_sample=False)

    class Same(Double):
        def fuse(self, main, views, step):
            return main

    with la.wrap(model, Same(), processor=processor) as lvlm:
        assert lvlm.generate(**ask, max_new_tokens=12, do_sample=False) == plain
        out = lvlm.generate(
            **ask, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
        assert len(out.scores) == 3
        word = plain[0].split()[1]
        stopped = lvlm.generate(
            images=[image],
            prompts=ask["prompts"][:1],
            max_new_tokens=12,
            do_sample=False,
            stop_strings=[word],
            tokenizer=processor.tokenizer,
        )
        assert stopped[0].endswith(word)
        assert len(stopped[0]) < len(plain[0])


@pytest.fixture(scope="module")
def loaded():
    return la.load("toy")


def test_another_thread_may_not_use_the_model_meanwhile():
    """The wrap says so in one sentence instead of mixing two prompts."""
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    caught = []

    class Meddles(Double):
        def observe(self, layer, hidden):
            if not caught:
                thread = threading.Thread(target=call)
                caught.append(None)
                thread.start()
                thread.join()

    def call():
        try:
            lvlm.generate(**inputs, max_new_tokens=1)
        except la.LvlmAttnError as error:
            caught.append(str(error))

    with la.wrap(model, Meddles()) as lvlm:
        lvlm.generate(**inputs, max_new_tokens=2)
    assert len(caught) == 2
    assert "Two threads" in caught[1]
