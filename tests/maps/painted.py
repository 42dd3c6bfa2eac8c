"""Pictures painted in one place, and which image token's embedding that changes: nothing here knows where patches lie.

Every family's own processor, with the sizes of `tests.tiny`, and the image side of its tiny model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.utils import is_torchvision_available

from lvlm_attn.families import ImageInputs, family_of, parts_of, prompt_layout
from lvlm_attn.families.family import features_of
from lvlm_attn.layout.prompt import PromptLayout
from tests.families.more_processors import END, IMAGE, NEEDS_TORCHVISION, PLACEHOLDER, START
from tests.families.more_processors import config as published_config
from tests.families.more_processors import tokenizer as more_tokenizer
from tests.tiny import ALL_NAMES, tiny_model
from tests.tiny_processors import MORE_NAMES, tiny_processor, without_video

_TILES = {"size": {"height": 12, "width": 12}, "crop_to_patches": True, "min_patches": 1, "max_patches": 6}
_SIZES = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 2048}}


def _unchecked(kind: Any, *parts: Any, **options: Any) -> Any:
    return without_video(kind, *parts, **options)


def _llava_next_video(words: Any) -> Any:
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 8},
        crop_size={"height": 8, "width": 8},
        image_grid_pinpoints=[[8, 16], [16, 8], [16, 16], [24, 8], [8, 24]],
    )
    made = type(
        "Processor", (transformers.LlavaNextVideoProcessor,), {"check_argument_for_proper_class": _any_kind}
    )
    clip = {"patch_size": 2, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return made(None, images, words, **clip)


def _any_kind(self: Any, name: str, argument: Any) -> Any:
    return type(argument)


def _paligemma(words: Any) -> Any:
    images = transformers.SiglipImageProcessor(size={"height": 6, "width": 6})
    images.image_seq_length = 9
    return transformers.PaliGemmaProcessor(images, words)


def _aya(words: Any) -> Any:
    return transformers.AyaVisionProcessor(
        transformers.GotOcr2ImageProcessor(**_TILES),
        words,
        patch_size=2,
        img_size=12,
        downsample_factor=2,
        image_token="<video>",
        img_patch_token=IMAGE,
        start_of_img_token=START,
        end_of_img_token=END,
    )


def _idefics3(words: Any) -> Any:
    images = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 48}, max_image_size={"longest_edge": 12}
    )
    return transformers.Idefics3Processor(images, words, image_seq_len=9)


def _smolvlm(words: Any) -> Any:
    pytest.importorskip("num2words")
    images = transformers.SmolVLMImageProcessor(
        size={"longest_edge": 48}, max_image_size={"longest_edge": 12}
    )
    return _unchecked(transformers.SmolVLMProcessor, images, words, image_seq_len=9)


def _gemma3(words: Any) -> Any:
    images = transformers.Gemma3ImageProcessor(size={"height": 12, "width": 12})
    return transformers.Gemma3Processor(images, words, image_seq_length=9)


def _janus(words: Any) -> Any:
    images = transformers.JanusImageProcessor(size={"height": 8, "width": 8}, min_size=2)
    return transformers.JanusProcessor(images, words, num_image_tokens=16)


def _mistral3(words: Any) -> Any:
    images = transformers.PixtralImageProcessor(size={"longest_edge": 150}, patch_size=2)
    return transformers.PixtralProcessor(images, words, patch_size=2, spatial_merge_size=2, image_token=IMAGE)


def _ovis2(words: Any) -> Any:
    images = transformers.Ovis2ImageProcessor(
        size={"height": 12, "width": 12}, crop_to_patches=True, max_patches=6
    )
    return transformers.Ovis2Processor(images, words, image_seq_length=9)


def _granite4_vision(words: Any) -> Any:
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 8},
        crop_size={"height": 8, "width": 8},
        image_grid_pinpoints=[[8, 16], [16, 8], [16, 16], [24, 8], [8, 24]],
    )
    clip = {"patch_size": 2, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return transformers.Granite4VisionProcessor(images, words, downsample_rate="1/2", **clip)


def _gemma4(words: Any) -> Any:
    images = transformers.Gemma4ImageProcessor(patch_size=2, pooling_kernel_size=2, max_soft_tokens=70)
    made = type("Processor", (transformers.Gemma4Processor,), {"check_argument_for_proper_class": _any_kind})
    return made(None, images, words, None)


def _cohere2_vision(words: Any) -> Any:
    images = transformers.Cohere2VisionImageProcessor(
        size={"height": 12, "width": 12}, max_patches=6, patch_size=3
    )
    return transformers.Cohere2VisionProcessor(images, words)


def _llama4(words: Any) -> Any:
    images = transformers.Llama4ImageProcessor(size={"height": 12, "width": 12}, max_patches=6)
    return transformers.Llama4Processor(images, words, patch_size=2)


def _lfm2_vl(words: Any) -> Any:
    images = transformers.Lfm2VlImageProcessor(
        encoder_patch_size=2, min_image_tokens=4, max_image_tokens=64, tile_size=16, max_tiles=6
    )
    return transformers.Lfm2VlProcessor(images, words)


def _molmo2(words: Any) -> Any:
    images = transformers.Molmo2ImageProcessor(
        size={"height": 12, "width": 12}, patch_size=2, overlap_margins=[2, 1], max_crops=6
    )
    made = type("Processor", (transformers.Molmo2Processor,), {"check_argument_for_proper_class": _any_kind})
    return made(images, None, words, use_single_crop_col_tokens=False)


_MORE = {
    "molmo2": _molmo2,
    "gemma4": _gemma4,
    "cohere2_vision": _cohere2_vision,
    "llama4": _llama4,
    "lfm2_vl": _lfm2_vl,
    "ovis2": _ovis2,
    "granite4_vision": _granite4_vision,
    "llava_next_video": _llava_next_video,
    "paligemma": _paligemma,
    "aya_vision": _aya,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
    "janus": _janus,
    "mistral3": _mistral3,
    "glm4v": lambda words: _unchecked(
        transformers.Glm4vProcessor, transformers.Glm4vImageProcessor(**_SIZES), words
    ),
    "glm46v": lambda words: _unchecked(
        transformers.Glm46VProcessor, transformers.Glm46VImageProcessor(**_SIZES), words
    ),
    "qwen3_5": lambda words: _unchecked(
        transformers.Qwen3VLProcessor, transformers.Qwen2VLImageProcessor(**_SIZES), words
    ),
}


@cache
def processor(name: str) -> Any:
    """The family's processor with the sizes of its tiny model."""
    if name not in ALL_NAMES:
        pytest.skip("this version of transformers has no such family")
    if name in NEEDS_TORCHVISION and not is_torchvision_available():
        pytest.skip("its image processor needs torchvision")
    return tiny_processor(name) if name in MORE_NAMES else _MORE[name](more_tokenizer())


@cache
def model(name: str) -> Any:
    """The tiny model without attention between patches: its random one mixes the whole picture into every embedding."""
    made = tiny_model(name)
    for module in parts_of(made).vision.modules():
        if type(module).__name__.endswith("Attention"):
            module.register_forward_hook(_silence)
    return made


def _silence(module: Any, args: Any, output: Any) -> Any:
    return (
        (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)
    )


_TAKEN = (
    "pixel_values",
    "image_sizes",
    "image_grid_thw",
    "image_position_ids",
    "pixel_attention_mask",
    "spatial_shapes",
    "batch_num_images",
    "image_token_pooling",
    "image_grids",
)


@dataclass
class Seen:
    """A picture as a model gets it.

    Attributes:
        layout: of a prompt with the picture.
        config: the configuration that reads the prompt's ids.
        features: `(image tokens, hidden)`, their embeddings in the order of the sequence.
        positions: where the image tokens stand.
    """

    layout: PromptLayout
    config: Any
    features: Tensor
    positions: list[int]


def seen(name: str, picture: Image.Image) -> Seen:
    """Processes a picture and encodes it."""
    made = processor(name)
    image = PLACEHOLDER.get(name, "<image>")
    mark = f" <img> {image} </img> " if name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl") else f" {image} "
    images: Any = [picture] if name == "aya_vision" else [[picture]]
    inputs = made(images=images, text=[f"look{mark}look"], return_tensors="pt")
    config = _with_ids(name)
    layout = prompt_layout(family_of(config), ImageInputs(config, inputs["input_ids"], inputs))
    given = {key: inputs[key] for key in _TAKEN if key in inputs}
    with torch.no_grad():
        given["pixel_values"] = given["pixel_values"].float()  # bfloat16 in Llama 4
        encoder = model(name) if name == "llama4" else model(name).model
        output = encoder.get_image_features(**given, return_dict=True)
    added = getattr(output, "deepstack_features", None) if name == "granite4_vision" else None
    kinds = [features_of(output)] if added is None else [own for _, own in added]  # what each layer adds
    features = torch.cat([_one_after_another(own) for own in kinds], dim=-1)
    positions = (inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist()
    assert len(positions) == len(features)
    return Seen(layout, config, features, positions)


def _one_after_another(features: Any) -> Tensor:
    """`(image tokens, hidden)` of features by image or by tile."""
    parts = [features] if torch.is_tensor(features) else list(features)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _with_ids(name: str) -> Any:
    """The configuration of the tiny model with the ids of the processor's words."""
    config = copy.deepcopy(model(name).config)
    if name in MORE_NAMES:
        config.image_token_id = 3
        return config
    published = published_config(name)
    for key in ("image_token_id", "visual_indicator_token_ids", "eoi_token_id", "image_end_token_id"):
        if hasattr(published, key):
            setattr(config, key, getattr(published, key))
    return config


def canvas(size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """A picture `(height, width, 3)` of coarse noise, which is still noise when it is made small."""
    rng = np.random.default_rng(sum(size))
    scale = 16 / max(size)
    wide, high = (max(round(side * scale), 1) for side in size)
    small = Image.fromarray(rng.integers(0, 256, (high, wide, 3), dtype=np.uint8))
    return np.asarray(small.resize(size, Image.Resampling.NEAREST))


def change(
    name: str, size: tuple[int, int], is_painted: np.ndarray[Any, Any]
) -> tuple[Seen, dict[int, float]]:
    """How far the embedding of each image token moves when a part of the picture is painted over.

    Args:
        name: the family.
        size: width and height of the picture.
        is_painted: `(height, width)`.

    Returns:
        The picture before it is painted, and the distance by position.
    """
    plain = canvas(size)
    painted = np.where(is_painted[..., None], plain + np.uint8(128), plain)  # every value as far as it goes
    before, after = (seen(name, Image.fromarray(pixels)) for pixels in (plain, painted))
    moved = (after.features - before.features).norm(dim=-1).tolist()
    return before, dict(zip(before.positions, moved))
