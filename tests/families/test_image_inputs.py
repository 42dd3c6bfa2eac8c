"""The layout is the same whether a forward shows the sizes of the images or `generate` hides them."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import lvlm_attn as la
from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families import ImageInputs, family_of, models, prompt_layout
from lvlm_attn.layout.prompt import PromptLayout
from tests.families.image_inputs import Call, caught, layout_of
from tests.tiny import ALL_NAMES as NAMES
from tests.tiny import IMAGE, QWEN, VIDEO, tiny_inputs, tiny_model, tiny_rows, tiny_samples

BATCH = [(1,), (0,), (2,), (1, 0, 3)]
# Before they encoded images ahead of the prefill, versions of transformers lost them when they cut a prompt into
# chunks, and repeated them in the wrong order for beams over rows of several images.
ENCODES_FIRST = hasattr(transformers.generation.utils, "_slice_mm_encoder_output")
needs_encoding_first = pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers cannot chunk images")
pytestmark = pytest.mark.filterwarnings("ignore:.*right-padding.*")

FIXED = [name for name in NAMES if models()[name].grid_is_fixed]
SIZED = (
    "llava_next",
    "llava_next_video",
    "granite4_vision",
    "mistral3",
)  # pixels and sizes that older versions repeat apart
MARKED = [name for name in NAMES if models()[name].marks_between]

model_of = cache(tiny_model)


def generate(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    return model.generate(**inputs, max_new_tokens=2, do_sample=False, **options)


def assert_same(a: PromptLayout, b: PromptLayout) -> None:
    for x, y in zip(a.tensors, b.tensors):
        assert torch.equal(x, y)
    assert a.grids == b.grids


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_forward_generate_and_beams_agree(name: str, side: Any) -> None:
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH, side)
    plain = layout_of(model, lambda: model(**inputs))
    assert_same(layout_of(model, lambda: generate(model, inputs)), plain)
    # transformers does not repeat Llama 4's features for beams, and Granite's picture by picture instead of row by row.
    if name not in ("llama4", "granite4_vision") and (ENCODES_FIRST or name not in SIZED):
        assert_same(layout_of(model, lambda: generate(model, inputs, num_beams=3)), plain.repeat(3))
    assert plain.has_image.tolist() == [True, False, True, True]
    assert torch.equal(plain.is_pad, inputs["attention_mask"] == 0)
    is_image, has_marks = inputs["input_ids"] == IMAGE, models()[name].marks_between
    found = plain.is_patch | plain.is_filler
    assert torch.equal(found & is_image if has_marks else found, is_image)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_equal_the_rows_alone(name: str) -> None:
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH, "left", seed=3)
    batch = layout_of(model, lambda: generate(model, inputs))
    for row, single in enumerate(tiny_rows(name, model, BATCH, seed=3)):
        alone = layout_of(model, lambda single=single: generate(model, single))  # type: ignore[misc]
        for whole, part in zip(batch.tensors, alone.tensors):
            assert torch.equal(whole[row, -part.shape[1] :], part[0])
        assert batch.grids[row] == alone.grids[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_image_has_the_tokens_the_model_gave_it(name: str) -> None:
    model = model_of(name)
    samples = tiny_samples(name, model, [(2,)] * 4 + [(1,)] * 8)
    inputs = tiny_inputs(name, model, [(2,)] * 4 + [(1,)] * 8)
    layout = layout_of(model, lambda: model(**inputs))
    for sample, grids in zip(samples, layout.grids):
        assert [picture.tokens for picture in sample.pictures] == [grid.tokens for grid in grids]
        for picture, grid in zip(sample.pictures, grids):
            assert picture.blocks is None or picture.blocks == [(b.rows, b.cols) for b in grid.blocks]
            assert picture.tiles is None or picture.tiles == [
                (b.tile_row, b.tile_col) for b in grid.blocks if b.kind == "tile"
            ]


@needs_encoding_first
@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("chunk", [1, 7, 30])
def test_chunked_prefill_is_followed_into_fixed_grids(name: str, chunk: int) -> None:
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    calls = caught(model, lambda: generate(model, inputs, prefill_chunk_size=chunk))
    assert_same(chunks_joined(model, calls, inputs), layout_of(model, lambda: model(**inputs)))


@needs_encoding_first
# Granite 4 Vision cannot be read in chunks by transformers itself.
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FIXED) - set(MARKED) - {"granite4_vision"}))
@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_chunked_prefill_that_cuts_other_grids_is_refused(name: str, chunk: int) -> None:
    model = model_of(name)
    batch = [(1, 3, 4), (0,), (1, 9, 2)]
    inputs = tiny_inputs(name, model, batch)
    calls = caught(model, lambda: generate(model, inputs, prefill_chunk_size=chunk))
    with pytest.raises(UnsupportedError, match="prefill_chunk_size=None"):
        chunks_joined(model, calls, inputs)


@needs_encoding_first
@pytest.mark.parametrize("name", QWEN)
def test_chunked_prefill_between_images_is_followed(name: str) -> None:
    model = model_of(name)
    inputs = tiny_inputs(name, model, [(1, 5, 20)])
    calls = caught(model, lambda: generate(model, inputs, prefill_chunk_size=20))
    assert_same(chunks_joined(model, calls, inputs), layout_of(model, lambda: model(**inputs)))


@needs_encoding_first
@pytest.mark.parametrize("name", sorted(set(MARKED) - {"ovis2", "llama4"}))  # which cannot read chunks
def test_chunked_prefill_of_marked_images_is_refused(name: str) -> None:
    model = model_of(name)
    inputs = tiny_inputs(name, model, [(1, 5, 20)])
    with (
        la.wrap(model, la.VAR()),
        pytest.raises(UnsupportedError, match=r"between its markers.*prefill_chunk"),
    ):
        generate(model, inputs, prefill_chunk_size=5)


def chunks_joined(model: Any, calls: list[Call], inputs: dict[str, Tensor]) -> PromptLayout:
    layout: PromptLayout | None = None
    for call in calls:
        if layout is not None and layout.length == inputs["input_ids"].shape[1]:
            break
        layout = prompt_layout(family_of(model), replace(call.image_inputs, after=layout), call.mask)
    assert layout is not None
    return layout


@pytest.mark.parametrize("name", NAMES)
def test_second_turn_with_another_image_reuses_the_cache(name: str) -> None:
    model = model_of(name)
    first = tiny_rows(name, model, [(1,)])[0]
    second = tiny_rows(name, model, [(1,)], seed=7)[0]
    calls = caught(model, lambda: model(**first, use_cache=True))
    before = prompt_layout(family_of(model), calls[0].image_inputs, calls[0].mask)
    mask = torch.cat((first["attention_mask"], second["attention_mask"]), 1)
    image_inputs = ImageInputs(
        config=model.config,
        input_ids=second["input_ids"],
        call={k: v for k, v in second.items() if k not in ("input_ids", "attention_mask")},
        newline=getattr(getattr(model, "model", model), "image_newline", None),
        after=before,
    )
    both = prompt_layout(family_of(model), image_inputs, mask)
    alone = prompt_layout(family_of(model), replace(image_inputs, after=None), second["attention_mask"])
    assert_same(both, before.join(alone))
    assert int(both.image.max()) == 1


class TestQwenPositions:
    """Transformers gives image tokens plain positions without a word where `mm_token_type_ids` is missing."""

    @pytest.mark.parametrize("name", QWEN)
    def test_generate_without_token_types_is_refused(self, name: str) -> None:
        model = model_of(name)
        inputs = tiny_inputs(name, model, [(1,)])
        del inputs["mm_token_type_ids"]
        with pytest.raises(LvlmAttnError, match=r"plain text positions.*pass mm_token_type_ids"):
            layout_of(model, lambda: generate(model, inputs))

    def test_forward_without_token_types_is_refused(self) -> None:
        model = tiny_model("qwen2_5_vl")  # a fresh one: it keeps the offsets of the last prompt
        inputs = tiny_inputs("qwen2_5_vl", model, [(1,)])
        del inputs["mm_token_type_ids"]
        with pytest.raises(LvlmAttnError, match=r"plain text positions.*pass mm_token_type_ids"):
            layout_of(model, lambda: model(**inputs))

    @pytest.mark.parametrize("name", QWEN)
    def test_positions_of_another_size_are_refused(self, name: str) -> None:
        model = model_of(name)
        inputs = tiny_inputs(name, model, [(1,)])
        call = caught(model, lambda: model(**inputs))[0]
        swapped = {**call.image_inputs.call, "image_grid_thw": inputs["image_grid_thw"][:, [0, 2, 1]]}
        with pytest.raises(LvlmAttnError, match="image_grid_thw says"):
            prompt_layout(family_of(model), replace(call.image_inputs, call=swapped), call.mask)

    @pytest.mark.parametrize("name", QWEN)
    def test_before_a_forward_the_processor_outputs_are_enough(self, name: str) -> None:
        model = model_of(name)
        inputs = tiny_inputs(name, model, BATCH)
        image_inputs = ImageInputs(model.config, inputs["input_ids"], inputs)
        early = prompt_layout(family_of(model), image_inputs, inputs["attention_mask"])
        assert_same(early, layout_of(model, lambda: model(**inputs)))

    def test_several_frames(self) -> None:
        config = model_of("qwen2_vl").config
        ids = torch.tensor([[7] + [IMAGE] * 12 + [8]])
        call = {"image_grid_thw": torch.tensor([[2, 4, 6]]), "mm_token_type_ids": (ids == IMAGE).int()}
        layout = prompt_layout(family_of(config), ImageInputs(config, ids, call))
        assert layout.block[0, 1:-1].tolist() == [0] * 6 + [1] * 6
        assert layout.row[0, 1:-1].tolist() == [0, 0, 0, 1, 1, 1] * 2
        assert {block.kind for block in layout.grids[0][0].blocks} == {"frame"}


class TestRefusals:
    def test_tokens_of_a_video_in_a_family_without(self) -> None:
        model = model_of("gemma4")
        ids = torch.tensor([[7, VIDEO, VIDEO, 8]])
        with pytest.raises(UnsupportedError, match=r"holds a video.*gemma4.; pass single frames"):
            prompt_layout(family_of(model), ImageInputs(model.config, ids))

    @pytest.mark.parametrize("name", [name for name in NAMES if models()[name].videos is None])
    def test_pixels_of_a_video_in_a_family_without(self, name: str) -> None:
        model = model_of(name)
        call = {"pixel_values_videos": torch.zeros(1, 2, 3, 8, 8)}
        with pytest.raises(UnsupportedError, match=f"holds a video.*'{name}'; pass single frames"):
            prompt_layout(family_of(model), ImageInputs(model.config, torch.tensor([[7, 8]]), call))

    def test_embeddings_instead_of_ids(self) -> None:
        model = model_of("llava")
        embeds = torch.zeros(1, 3, model.config.text_config.hidden_size)
        with pytest.raises(UnsupportedError, match="pass the ids"):
            layout_of_embeds(model, embeds)

    def test_tiles_that_do_not_fit_the_tokens(self) -> None:
        model = model_of("internvl")
        inputs = tiny_inputs("internvl", model, [(1,)])
        call = {"pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)}
        with pytest.raises(LvlmAttnError, match="1 tiles in 1 images, but 2 tiles are given"):
            prompt_layout(family_of(model), ImageInputs(model.config, inputs["input_ids"], call))

    def test_anyres_without_any_features(self) -> None:
        model = model_of("llava_next")
        ids = tiny_inputs("llava_next", model, [(1,)])["input_ids"]
        with pytest.raises(LvlmAttnError, match="neither image_sizes nor image features"):
            prompt_layout(family_of(model), ImageInputs(model.config, ids))

    @pytest.mark.parametrize("name", NAMES)
    def test_image_tokens_without_images(self, name: str) -> None:
        model = model_of(name)
        inputs = tiny_inputs(name, model, [(1,)])
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        image_inputs = ImageInputs(model.config, inputs["input_ids"], inputs_embeds=embeds)
        with pytest.raises(LvlmAttnError, match="no image features stand there; pass pixel_values"):
            prompt_layout(family_of(model), image_inputs)

    def test_prompt_without_images_needs_nothing_more(self) -> None:
        model = model_of("llava_next")
        layout = prompt_layout(family_of(model), ImageInputs(model.config, torch.tensor([[1, 50, 51]])))
        assert not layout.has_image.any()

    def test_mismatch_names_the_row(self) -> None:
        model = model_of("llava")
        inputs = tiny_inputs("llava", model, [(1,), (1,)])
        ids = inputs["input_ids"].clone()
        ids[1, (ids[1] == IMAGE).nonzero()[0]] = 50
        with pytest.raises(LvlmAttnError, match=r"Row 1 .* takes 25 \(base 5x5\) and only 24 are left"):
            prompt_layout(family_of(model), ImageInputs(model.config, ids, {}))


def layout_of_embeds(model: Any, embeds: Tensor) -> PromptLayout:
    image_inputs = ImageInputs(model.config, None, {"inputs_embeds": embeds})  # type: ignore[arg-type]
    return prompt_layout(family_of(model), image_inputs)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_merged_embeddings_tell_the_grid_too(name: str) -> None:
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    merged: dict[str, Tensor] = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: merged.update(embeds=kwargs["inputs_embeds"]), with_kwargs=True
    )
    plain = layout_of(model, lambda: model(**inputs))
    hook.remove()
    image_inputs = ImageInputs(
        model.config, inputs["input_ids"], newline=model.model.image_newline, inputs_embeds=merged["embeds"]
    )
    assert_same(prompt_layout(family_of(model), image_inputs, inputs["attention_mask"]), plain)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_half_precision_newlines_are_found(name: str) -> None:
    model = tiny_model(name, dtype=torch.bfloat16)
    inputs = tiny_inputs(name, model, BATCH)
    generated = layout_of(model, lambda: generate(model, inputs))
    assert_same(generated, layout_of(model, lambda: model(**inputs)))
