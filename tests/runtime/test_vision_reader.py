"""What the image encoder attends to, read without changing it, at the right image token in every family."""

import copy

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.families.encoder_patches import VisionRows, received
from lvlm_attn.runtime.vision_reader import encoder_attentions, received_weight
from tests.hooks.towers import deep_model, token_weights
from tests.tiny import IMAGE, NAMES, tiny_inputs, tiny_rows
from tests.versions import needs_pre_encoding

ROWS = (VisionRows(0, "class"), VisionRows(-2, "class"), VisionRows(0, "all"))
BATCH = [(1,), (2,), (0,), (1, 1, 3)]
ORACLES = ["llava", "llava_next", "llava_onevision", "vipllava", "qwen2_vl", "qwen2_5_vl"]


class Look(la.Intervention):
    """Keeps what each prompt call reads."""

    name = "look"

    def __init__(self):
        self.seen = []

    def vision(self, target):
        return ROWS

    def observe(self, layer, hidden):
        if layer.index == 0 and layer.is_prompt:
            vision = layer.call.vision
            found = None if vision is None else [received(vision, rows, layer.layout) for rows in ROWS]
            self.seen.append(found)


def looked(model, call):
    look = Look()
    with torch.no_grad(), la.wrap(model, look):
        call()
    return look.seen


def image_arguments(inputs):
    names = ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images")
    return {key: inputs[key] for key in names if key in inputs}


@pytest.mark.parametrize("name", ORACLES)
def test_against_eager_attention(name):
    model = deep_model(name)
    for row in tiny_rows(name, model, [(1,), (1, 0, 2), (2,)], seed=3):
        [found] = looked(model, lambda row=row: model(**row))
        is_image = row["input_ids"][0] == IMAGE
        for rows, got in zip(ROWS, found, strict=True):
            layer = {0: 1, -2: 1}[rows.layer] if name == "qwen2_5_vl" else rows.layer
            if name == "llava_onevision" and len(row["image_sizes"]) > 1:
                continue  # of several images none is cut into tiles, and packing goes another way
            want = token_weights(name, model, row, layer, rows.rows)
            assert (got[0][~is_image] == 0).all()
            is_filler = torch.isnan(want)
            assert (got[0][is_image][is_filler] == 0).all()
            assert torch.allclose(got[0][is_image][~is_filler].double(), want[~is_filler], atol=1e-6)
            assert want[~is_filler].std() > 1e-4


@pytest.mark.parametrize("name", NAMES)
@needs_pre_encoding
def test_rows_beams_and_features_given(name):
    """The same weights in a batch, alone, in `generate`, repeated for beams, and with features made before."""
    model = deep_model(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    options = {"max_new_tokens": 2, "do_sample": False}

    def features():
        encoded = model.model.get_image_features(**image_arguments(inputs), return_dict=True)
        rest = {key: value for key, value in inputs.items() if key != "pixel_values"}
        model(**rest, mm_encoder_outputs={"image": encoded})
        cut = type(encoded)(pooler_output=copy.deepcopy(encoded.pooler_output))
        for key in ("deepstack_features",):
            if hasattr(encoded, key):
                setattr(cut, key, getattr(encoded, key))
        model(**rest, mm_encoder_outputs={"image": cut})

    [plain] = looked(model, lambda: model(**inputs))
    [generated] = looked(model, lambda: model.generate(**inputs, **options))
    [beams] = looked(model, lambda: model.generate(**inputs, **options, num_beams=2))
    given = looked(model, features)
    singles = [looked(model, lambda row=row: model(**row))[0] for row in rows]
    for place in range(len(ROWS)):
        assert torch.equal(plain[place], generated[place])
        assert torch.equal(plain[place].repeat_interleave(2, 0), beams[place])
        for one in given:
            assert torch.equal(plain[place], one[place])
        for index, row in enumerate(rows):
            length = row["input_ids"].shape[1]
            if singles[index] is None:
                assert not plain[place][index].any()
            else:
                assert torch.allclose(plain[place][index, -length:], singles[index][place][0], atol=1e-6)


def test_unknown_features_are_not_guessed():
    model = deep_model("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    with torch.no_grad():
        foreign = model.model.get_image_features(pixel_values=inputs["pixel_values"] + 1, return_dict=True)
    rest = {key: value for key, value in inputs.items() if key != "pixel_values"}

    def both():
        model(**inputs)
        model(**rest, mm_encoder_outputs={"image": foreign})

    first, second = looked(model, both)
    assert first is not None
    assert second is None


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl"])
def test_the_encoder_keeps_its_bits_and_its_backend(name, attn):
    model = deep_model(name)
    inputs = tiny_inputs(name, model, [(1,), (2,)])
    config = model.config.vision_config
    tower = model.model.visual if hasattr(model.model, "visual") else model.model.vision_tower
    before = config._attn_implementation
    config._attn_implementation_internal = attn

    def fail(*_):
        raise RuntimeError("broken")

    try:
        with torch.no_grad():
            bare = model(**inputs).logits
            with la.wrap(model, Look()):
                assert config._attn_implementation == attn
                assert torch.equal(model(**inputs).logits, bare)
                handle = encoder_attentions(tower)[-1].register_forward_hook(fail)
                with pytest.raises(RuntimeError, match="broken"):
                    model(**inputs)
                handle.remove()
                assert config._attn_implementation == attn
                assert torch.equal(model(**inputs).logits, bare)
        assert config._attn_implementation == attn
        assert not tower._forward_hooks
    finally:
        config._attn_implementation_internal = before


def test_two_wraps_read_the_same_encoding():
    model = deep_model("llava")
    inputs = tiny_inputs("llava", model, [(1,)])

    class Other(Look):
        name = "other"

    one, two = Look(), Other()
    with torch.no_grad(), la.wrap(model, one), la.wrap(model, two):
        model(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(one.seen[0], two.seen[0], strict=True))


def test_long_encodings_in_pieces():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 1100, 4, generator=generator) for _ in range(2))
    want = (query.double() @ key.double().transpose(2, 3)).softmax(-1).mean((1, 2))
    assert torch.allclose(received_weight(query, key, 1.0).double(), want, atol=1e-7)


def test_a_missing_layer_is_refused_before_anything_is_installed():
    model = deep_model("llava")

    class Deep(la.Intervention):
        def vision(self, target):
            return (VisionRows(7, "class"),)

    with pytest.raises(la.UnsupportedError, match="4 layers"), la.wrap(model, Deep()):
        pass
    assert not model.model.vision_tower._forward_hooks
