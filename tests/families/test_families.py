"""The registry of families, and the parts of real models."""

import dataclasses
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import transformers
from torch import nn

import lvlm_attn
from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families import (
    ImageInputs,
    family_of,
    image_token_id,
    models,
    parts_of,
    prompt_layout,
    register_family,
)
from lvlm_attn.families.family import named_arguments
from lvlm_attn.layout.grids import Block
from tests.tiny import ALL_NAMES as NAMES
from tests.tiny import IMAGE, tiny_config, tiny_inputs, tiny_model

model_of = cache(tiny_model)


class Wrapper(nn.Module):
    """Stands for an adapter that holds a model, as `peft` does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inside = model
        self.config = model.config

    def get_base_model(self) -> Any:
        return self.inside


def test_every_family_is_known() -> None:
    types = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    assert sorted(set(models()) & set(types)) == sorted(NAMES)
    assert set(models()) - set(types) <= {"molmo2"}  # which transformers before 5.20 lacks
    for name, family in models().items():
        assert family.name == name
        assert family.examples
        assert all("/" in example for example in family.examples)
        assert family.remarks.endswith(".")


def test_models_is_a_copy() -> None:
    models().clear()
    assert models()


def test_function_and_package_share_a_name() -> None:
    assert lvlm_attn.models() == models()
    assert lvlm_attn.families.family_of is family_of  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_model_and_of_its_base(name: str) -> None:
    model = model_of(name)
    parts = parts_of(model)
    text = model.config.text_config
    assert parts.base is getattr(model, "model", model)
    assert parts.text_config is text
    assert len(parts.layers) == text.num_hidden_layers == 4
    for index, (layer, attention, projection) in enumerate(
        zip(parts.layers, parts.attentions, parts.output_projections, strict=True)
    ):
        assert getattr(layer, "self_attn", None) is attention
        assert (index in parts.softmax_layers) == (attention is not None)
        if attention is not None:
            assert attention.layer_idx == index
            assert projection.in_features == text.num_attention_heads * attention.head_dim
            assert not set(map(id, parts.vision.modules())) & {id(attention)}
    inner = parts_of(parts.base)
    assert inner.base is parts.base
    assert [*map(id, inner.layers)] == [*map(id, parts.layers)]
    assert (parts.newline is None) == (
        name not in ("llava_next", "llava_next_video", "llava_onevision", "granite4_vision")
    )


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_parts_are_found_behind_adapters_and_compilation(name: str) -> None:
    model = tiny_model(name)  # compilation leaves attributes on it
    assert parts_of(Wrapper(model)).base is model.model
    assert parts_of(cast(nn.Module, torch.compile(model))).base is model.model


@pytest.mark.parametrize("name", NAMES)
def test_every_text_layer_calls_the_attention_registry(name: str) -> None:
    """All attentions of `parts_of`, and no others, reach a function registered for the text configuration."""
    model = tiny_model(name)
    seen = []

    def probe(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(module)
        return transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)

    transformers.AttentionInterface.register("probe_of_families", probe)
    transformers.AttentionMaskInterface.register(
        "probe_of_families", transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    )
    model.set_attn_implementation({"text_config": "probe_of_families"})
    model(input_ids=torch.tensor([[1, 20, 21]]))
    assert [*map(id, seen)] == [id(part) for part in parts_of(model).attentions if part is not None]


def test_layers_without_softmax_attention_are_skipped_and_named() -> None:
    model = model_of("qwen3_5")
    assert parts_of(model).softmax_layers == (1, 3)
    inputs = tiny_inputs("qwen3_5", model, [(1,)])
    with lvlm_attn.wrap(model, lvlm_attn.VisualSelf(), lvlm_attn.FrozenVisual(layers=(0, 1))) as lvlm:
        model(**inputs)
        report = lvlm.report()
    assert "visual_self:layers=0..3\n  layers 0,2 have no softmax attention and are skipped" in str(report)
    skipped = [item["skipped_layers"] for item in report.to_dict()["interventions"]]
    assert skipped == ["0,2", ""]
    with pytest.raises(
        LvlmAttnError, match=r"VHR: none of the layers \[0,2\] has softmax attention.*\[1,3\]"
    ):
        lvlm_attn.wrap(model, lvlm_attn.VHR(layers=(0, 2))).__enter__()
    assert not model.model.language_model._forward_pre_hooks


def test_a_mask_that_opens_keys_ahead_is_refused_in_a_family_that_says_it_is_causal(monkeypatch: Any) -> None:
    model = model_of("gemma3")
    causal = dataclasses.replace(models()["gemma3"], text_mask="causal")
    monkeypatch.setattr("lvlm_attn.families._FAMILIES", models() | {"gemma3": causal})
    inputs = tiny_inputs("gemma3", model, [(1,), (0,)])
    with (
        lvlm_attn.wrap(model, lvlm_attn.CrossLMM()),
        pytest.raises(UnsupportedError, match="attend to later ones"),
    ):
        model(**inputs)


@pytest.mark.parametrize("name", [name for name in ("gemma3", "paligemma", "molmo2") if name in NAMES])
def test_images_that_would_attend_causally_without_a_word_are_refused(name: str) -> None:
    model, types = model_of(name), models()[name].token_types
    inputs = tiny_inputs(name, model, [(1,)])
    del inputs[types]
    with lvlm_attn.wrap(model, lvlm_attn.VAR()), pytest.raises(LvlmAttnError, match=f"pass {types}"):
        model(**inputs)


def test_every_other_image_text_to_text_type_is_refused_by_name() -> None:
    types = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    reasons = dict.fromkeys(("instructblip", "instructblipvideo", "blip-2"), "generate never calls the model")
    reasons["mllama"] = "not in the sequence"
    assert reasons.keys() <= set(types)
    for name in set(types) - set(models()):
        reason = reasons.get(name, "register_family adds one.*https://.*/CONTRIBUTING")
        with pytest.raises(UnsupportedError, match=rf"{name!r}.*{reason}"):
            family_of(SimpleNamespace(model_type=name))


def test_instructblip_goes_past_its_own_forward_in_generate() -> None:
    """Why it is refused; if this no longer holds, it may become a family."""
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder = transformers.LlamaConfig(
        vocab_size=20, bos_token_id=1, eos_token_id=None, pad_token_id=0, **text
    )
    config = transformers.InstructBlipConfig(
        text_config=decoder,
        vision_config={**text, "image_size": 4, "patch_size": 2},
        qformer_config={**text, "vocab_size": 20},
        num_query_tokens=2,
        image_token_index=3,
    )
    model = transformers.InstructBlipForConditionalGeneration(config).eval()
    seen: list[Any] = []
    model.register_forward_pre_hook(lambda *_: seen.append("the model"))
    model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("input_ids")), with_kwargs=True
    )
    words = {"input_ids": torch.tensor([[3, 3, 1, 5]]), "qformer_input_ids": torch.tensor([[5]])}
    model.generate(pixel_values=torch.zeros(1, 3, 4, 4), **words, max_new_tokens=1, do_sample=False)
    assert seen == [None]
    with pytest.raises(
        UnsupportedError, match=r"'instructblip' \(InstructBlipForConditionalGeneration\) cannot be"
    ):
        lvlm_attn.wrap(model, lvlm_attn.VAR()).__enter__()


class TestRefusals:
    def test_unknown_type_names_the_closest(self) -> None:
        config = SimpleNamespace(model_type="llava_nxt")
        with pytest.raises(
            UnsupportedError, match=r"'llava_nxt'.*Did you mean 'llava_next'\?.*CONTRIBUTING.md"
        ):
            family_of(config)

    def test_text_model(self) -> None:
        config = transformers.LlamaConfig(
            vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        with pytest.raises(
            UnsupportedError, match=r"'llama' \(LlamaForCausalLM\) is not supported.*qwen3_vl"
        ):
            parts_of(transformers.LlamaForCausalLM(config))

    def test_model_without_type(self) -> None:
        with pytest.raises(UnsupportedError, match="None"):
            family_of(nn.Linear(1, 1))

    def test_missing_part_is_named(self) -> None:
        model = tiny_model("llava")
        del model.model.vision_tower
        with pytest.raises(LvlmAttnError, match=r"LlavaModel has no module 'vision_tower'.*LLaVA \(llava\)"):
            parts_of(model)

    def test_taken_name(self) -> None:
        with pytest.raises(LvlmAttnError, match="'llava' is registered already"):
            register_family(models()["llava"])

    def test_no_family(self) -> None:
        with pytest.raises(LvlmAttnError, match="takes a Family, and got 'llava'"):
            register_family("llava")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"name": ""}, "Family: name='' must be the model type"),
            ({"name": None}, "Family: name=None"),
            ({"grids": None}, "Family 'llava': grids=None must be a function of ImageInputs"),
            ({"text_mask": "casual"}, "text_mask='casual' must be one of causal, .* Did you mean 'causal'"),
            ({"text_mask": None}, "text_mask=None must be one of"),
        ],
    )
    def test_fields_of_another_kind(self, fields: dict[str, Any], words: str) -> None:
        with pytest.raises(LvlmAttnError, match=words):
            dataclasses.replace(models()["llava"], **fields)

    def test_function_that_gives_no_known_mask(self) -> None:
        family = dataclasses.replace(models()["llava"], text_mask=lambda config: "open")
        with pytest.raises(LvlmAttnError, match="Family 'llava': text_mask='open' must be one of"):
            family.mask_of(tiny_config("llava"))

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (None, "grids gave None; it must give a list with one ImageGrid for each image"),
            ((grid for grid in ()), "grids gave <generator"),
            ([[Block(5, 5, "base")]], r"grids gave \[Block\(.* among others"),
            ("base", "grids gave 'base'; it"),
        ],
    )
    def test_grids_that_are_none(self, given: Any, words: str) -> None:
        family = dataclasses.replace(models()["llava"], grids=lambda inputs: given)
        ids = torch.full((1, 25), IMAGE)
        with pytest.raises(LvlmAttnError, match=f"Family 'llava': {words}"):
            prompt_layout(family, ImageInputs(tiny_config("llava"), ids))

    def test_missing_image_token(self) -> None:
        with pytest.raises(LvlmAttnError, match=r"image_token_id=None; set it"):
            image_token_id(SimpleNamespace(model_type="llava", image_token_id=None))

    @pytest.mark.parametrize(
        ("vision", "strategy", "message"),
        [
            (transformers.PixtralVisionConfig(), "full", "image encoder 'pixtral'.*is not supported"),
            (transformers.SiglipVisionConfig(), "default", "drops the first patch.*set it to 'full'"),
        ],
    )
    def test_image_encoders_without_a_fixed_grid(self, vision: Any, strategy: str, message: str) -> None:
        config = tiny_config("llava", vision_feature_select_strategy=strategy)
        config.vision_config = vision
        ids = torch.full((1, 4), IMAGE)
        with pytest.raises(UnsupportedError, match=message):
            prompt_layout(family_of(config), ImageInputs(config, ids))


def test_registered_family_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvlm_attn.families._FAMILIES", models())
    mine = dataclasses.replace(models()["llava"], name="my_llava", title="Mine")
    register_family(mine)
    assert family_of(SimpleNamespace(model_type="my_llava")) is mine
    assert models()["my_llava"] is mine


def test_image_token_id_is_an_attribute_of_every_configuration() -> None:
    for name in NAMES:
        assert image_token_id(tiny_config(name)) == IMAGE


def test_positional_arguments_get_their_names() -> None:
    model = model_of("llava_next")
    assert named_arguments(model.model, ("ids", "pixels"), {"image_sizes": 3}) == {
        "input_ids": "ids",
        "pixel_values": "pixels",
        "image_sizes": 3,
    }
