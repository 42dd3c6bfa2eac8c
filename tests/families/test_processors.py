"""Grids against the token counts and the outputs of each family's own processor, at real sizes."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lvlm_attn.families import ImageInputs, family_of, prompt_layout
from lvlm_attn.families.anyres import grid_of_size
from lvlm_attn.layout.grids import ImageGrid
from tests.tiny import NAMES, QWEN

SIZES = [(1, 150), (333, 500), (641, 479), (97, 1203), (1080, 1919), (150, 1)]
IMAGE_TOKEN, START_TOKEN, END_TOKEN = "<image>", "<img>", "</img>"
WORDS = ["<pad>", "<s>", "</s>", IMAGE_TOKEN, "<video>", START_TOKEN, END_TOKEN, "look"]


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="look"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    extra = {
        "image_token": IMAGE_TOKEN,
        "video_token": "<video>",
        "start_image_token": START_TOKEN,
        "end_image_token": END_TOKEN,
        "context_image_token": IMAGE_TOKEN,
        "vision_bos_token": START_TOKEN,
        "vision_eos_token": END_TOKEN,
    }
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", padding_side="left", extra_special_tokens=extra
    )


def without_video(processor_class: Any, *args: Any, **options: Any) -> Any:
    """A processor without its video part, which transformers builds only where torchvision is there."""

    def unchecked(self: Any, name: str, argument: Any) -> Any:
        return type(argument)

    made = type(processor_class.__name__, (processor_class,), {"check_argument_for_proper_class": unchecked})
    return made(*args, None, **options)


@cache
def processor(name: str) -> Any:
    """The processor of the family with the settings of its published models."""
    words = tokenizer()
    square = {"height": 336, "width": 336}
    if name in ("llava", "vipllava"):
        images = transformers.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=square)
        return transformers.LlavaProcessor(
            images,
            words,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    if name == "llava_next":
        images = transformers.LlavaNextImageProcessor(size={"shortest_edge": 336}, crop_size=square)
        return transformers.LlavaNextProcessor(
            images,
            words,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    if name == "llava_onevision":
        images = transformers.LlavaOnevisionImageProcessor()
        return without_video(
            transformers.LlavaOnevisionProcessor,
            images,
            words,
            num_image_tokens=729,
            vision_feature_select_strategy="full",
        )
    if name == "internvl":
        images = transformers.GotOcr2ImageProcessor(
            size={"height": 448, "width": 448}, crop_to_patches=True, min_patches=1, max_patches=12
        )
        return without_video(transformers.InternVLProcessor, images, words)
    classes = {
        "qwen2_vl": transformers.Qwen2VLProcessor,
        "qwen2_5_vl": transformers.Qwen2_5_VLProcessor,
        "qwen3_vl": transformers.Qwen3VLProcessor,
    }
    images = Qwen2VLImageProcessorPil(patch_size=16 if name == "qwen3_vl" else 14)
    return without_video(classes[name], images, words)


@cache
def config(name: str) -> Any:
    """The configuration of the family's published models, with the ids of the small vocabulary."""
    ids = {"image_token_id": 3, "video_token_id": 4}
    classes = {
        "llava": transformers.LlavaConfig,
        "vipllava": transformers.VipLlavaConfig,
        "llava_next": transformers.LlavaNextConfig,
        "llava_onevision": transformers.LlavaOnevisionConfig,
        "internvl": transformers.InternVLConfig,
        "qwen2_vl": transformers.Qwen2VLConfig,
        "qwen2_5_vl": transformers.Qwen2_5_VLConfig,
        "qwen3_vl": transformers.Qwen3VLConfig,
    }
    made = classes[name]()
    for key, value in ids.items():
        setattr(made, key, value)
    return made


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(sum(size)).integers(0, 255, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def processed(name: str, sizes: list[list[tuple[int, int]]]) -> Any:
    """What the processor makes of rows of pictures of the given heights and widths."""
    one = f" {IMAGE_TOKEN} "
    if name in QWEN:
        one = f" {START_TOKEN}{one}{END_TOKEN} "
    texts = ["look" + one * len(row) + "look look" for row in sizes]
    images = [[picture(size) for size in row] for row in sizes]
    return processor(name)(images=images, text=texts, return_tensors="pt", padding=True)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_odd_sizes(name: str) -> None:
    counts = processor(name)._get_num_multimodal_tokens(image_sizes=SIZES)["num_image_tokens"]
    markers = (
        2 if name == "internvl" else 0
    )  # its processor counts the markers around an image, which are text
    assert [grid.tokens + markers for grid in grids_of(name)] == counts


def grids_of(name: str) -> list[ImageGrid]:
    if name in ("llava_next", "llava_onevision"):
        tiles = 9 if name == "llava_onevision" else None
        return [grid_of_size(size, config(name), tiles) for size in SIZES]
    inputs = processed(name, [[size] for size in SIZES])
    image_inputs = ImageInputs(config(name), inputs["input_ids"], inputs)
    return family_of(config(name)).grids(image_inputs)


@pytest.mark.parametrize("name", NAMES)
def test_layout_of_processed_prompts(name: str) -> None:
    sizes = [[(333, 500)], [], [(97, 1203), (641, 479)]]
    inputs = processed(name, sizes)
    image_inputs = ImageInputs(config(name), inputs["input_ids"], inputs)
    layout = prompt_layout(family_of(config(name)), image_inputs, inputs["attention_mask"])
    assert [len(row) for row in layout.grids] == [1, 0, 2]
    assert torch.equal(layout.is_patch | layout.is_filler, inputs["input_ids"] == 3)
    assert layout.is_pad[1].sum() > 0
