"""A family whose prompt attends to itself both ways, written with CONTRIBUTING alone: PaliGemma under another name."""

import copy
import dataclasses

import pytest
import torch

import lvlm_attn as la
from lvlm_attn import families
from lvlm_attn.families import Family, register_family, repeat_over_tokens
from lvlm_attn.interventions import Block, ImageGrid
from tests.newcomer.lean import Lean
from tests.newcomer.oracle import changing, leaning, twin
from tests.tiny import IMAGE, tiny_inputs, tiny_model, tiny_rows

BATCH = [(1,), (2, 3)]
LAYERS = (0, 2)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""The norms of Gemma compute in fp32, whatever the model's dtype."""


def grids(inputs):
    vision = inputs.config.vision_config
    side = vision.image_size // vision.patch_size
    return repeat_over_tokens(ImageGrid((Block(side, side, "base"),)), inputs)


FAMILY = Family(
    name="prefix_vlm",
    title="Prefix VLM",
    grids=grids,
    grid_is_fixed=True,
    text_mask="bidirectional_prompt",
    token_types="token_type_ids",
    first_position=1,
    modules_fit=False,
)


@pytest.fixture
def model(monkeypatch):
    """A model of a type that is not known; what a test registers is forgotten after it."""
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    model = copy.deepcopy(tiny_model("paligemma")).double()
    model.config.model_type = model.model.config.model_type = "prefix_vlm"
    return model


def rows(model):
    found = tiny_rows("paligemma", model, BATCH)
    return [
        {key: value.double() if value.is_floating_point() else value for key, value in row.items()}
        for row in found
    ]


def formula(model, row):
    with torch.no_grad(), changing(leaning(row["input_ids"][0].tolist(), IMAGE, 1.15, 0.9, LAYERS)):
        return twin(model)(**row).logits


def test_it_is_refused_until_it_is_registered(model):
    with pytest.raises(la.UnsupportedError, match=r"'prefix_vlm'.*CONTRIBUTING"), la.wrap(model, Lean()):
        pass
    register_family(FAMILY)
    with la.wrap(model, Lean()):
        pass


def test_every_position_is_known(model):
    register_family(FAMILY)
    seen = []

    class Look(la.Intervention):
        def begin(self, context):
            seen.append(context.layout)

    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    for row in rows(model):
        with torch.no_grad(), la.wrap(model, Look()):
            model(**row)
        place = -1
        for position, token in enumerate(row["input_ids"][0].tolist()):
            place += token == IMAGE
            image, rest = divmod(place, side * side)
            want = (image, *divmod(rest, side)) if token == IMAGE else (-1, -1, -1)
            layout = seen[-1]
            assert (
                int(layout.image[0, position]),
                int(layout.row[0, position]),
                int(layout.col[0, position]),
            ) == want


@pytest.mark.parametrize("is_fixed", [True, False])
def test_grids_that_are_a_part_of_an_image_are_refused(model, is_fixed):
    def lines(inputs):
        (block,) = grids(inputs)[0].blocks
        return repeat_over_tokens(ImageGrid((Block(1, block.cols, "base"),)), inputs)

    register_family(dataclasses.replace(FAMILY, grids=lines, grid_is_fixed=is_fixed))
    row = rows(model)[0]
    with la.wrap(model, Lean()):
        for call in (model, lambda **given: model.generate(**given, max_new_tokens=1)):
            with pytest.raises(
                la.LvlmAttnError, match=r"say 3 image\(s\) of 3 tokens each, .* given (1 image|images of 9)"
            ):
                call(**row)


def test_a_method_under_its_mask(model):
    register_family(FAMILY)
    for row in rows(model):
        with torch.no_grad(), la.wrap(model, Lean(layers=LAYERS)):
            got = model(**row).logits
        torch.testing.assert_close(got, formula(model, row), **CLOSE)
        with torch.no_grad():
            assert (got - model(**row).logits).abs().max() > 1e-3
            later = model(**row | {"token_type_ids": torch.ones_like(row["token_type_ids"])}).logits
            assert (later - model(**row).logits).abs().max() > 1e-4  # the mask is not causal


def test_decoding_under_its_mask(model):
    register_family(FAMILY)
    row = rows(model)[1]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with torch.no_grad(), la.wrap(model, Lean(layers=LAYERS)):
        got = model.generate(**row, **options, output_logits=True, return_dict_in_generate=True)
    ids, length = got.sequences[:, :-1], row["input_ids"].shape[1]
    types = torch.ones_like(ids)
    types[:, :length] = row["token_type_ids"]
    longer = row | {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}
    want = formula(model, longer)[:, -4:]
    torch.testing.assert_close(torch.stack(got.logits, 1), want.float(), **CLOSE)
    with torch.no_grad():
        assert (want - model(**longer).logits[:, -4:]).abs().max() > 1e-3


def test_neutral_and_a_batch(model):
    register_family(FAMILY)
    inputs = tiny_inputs("paligemma", model, BATCH)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        bare = model(**inputs).logits
        with la.wrap(model, Lean(image=1, system=1)):
            assert torch.equal(model(**inputs).logits, bare)
        with la.wrap(model, Lean(layers=LAYERS)):
            together = model(**inputs).logits
            for index, row in enumerate(rows(model)):
                kept = inputs["attention_mask"][index].bool()
                torch.testing.assert_close(together[index][kept], model(**row).logits[0], **CLOSE)


def test_a_wrong_mask_is_an_error(model):
    register_family(dataclasses.replace(FAMILY, text_mask="causal", token_types=""))
    with pytest.raises(la.UnsupportedError, match="its family says that it is causal"), torch.no_grad():
        with la.wrap(model, Lean()):
            model(**rows(model)[0])


def test_image_tokens_without_token_types_are_refused(model):
    register_family(FAMILY)
    row = {key: value for key, value in rows(model)[0].items() if key != "token_type_ids"}
    with (
        pytest.raises(la.LvlmAttnError, match="silently attend causally"),
        torch.no_grad(),
        la.wrap(model, Lean()),
    ):
        model(**row)
