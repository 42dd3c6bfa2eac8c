"""The processors of families with videos, at their published settings and with a small vocabulary."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

VIDEO_TEXT = {"glm4v": "<|begin_of_video|> <video> <|end_of_video|>"}
WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<image>",
    "<video>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "look",
]
VIDEO_TEXT["glm46v"] = VIDEO_TEXT["glm4v"]


def id_of(word: str) -> int:
    """The id of a word of the small vocabulary."""
    return WORDS.index(word)


@cache
def tokenizer() -> Any:
    """Words of `WORDS`; all others read "look"."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="look"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    extra = {"image_token": "<image>", "video_token": "<video>"}
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", padding_side="left", extra_special_tokens=extra
    )
    made.add_special_tokens({"additional_special_tokens": WORDS[5:11]})
    return made


@cache
def processor(name: str) -> Any:
    """The processor of a family; it needs torchvision."""
    words = tokenizer()
    if name == "llava_next_video":
        return transformers.LlavaNextVideoProcessor(
            transformers.LlavaNextVideoVideoProcessor(
                size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
            ),
            transformers.LlavaNextImageProcessor(),
            words,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    if name == "llava_onevision":
        return transformers.LlavaOnevisionProcessor(
            transformers.LlavaOnevisionImageProcessor(),
            words,
            transformers.LlavaOnevisionVideoProcessor(),
            num_image_tokens=729,
            vision_feature_select_strategy="full",
        )
    parts = {
        "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
        "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
        "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
        "qwen3_5": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
        "glm4v": ("Glm4vProcessor", "Glm4vVideoProcessor"),
        "glm46v": ("Glm46VProcessor", "Glm46VVideoProcessor"),
    }
    whole, videos = (getattr(transformers, part) for part in parts[name])
    if name.startswith("glm"):
        kind = transformers.Glm4vImageProcessor if name == "glm4v" else transformers.Glm46VImageProcessor
        return whole(kind(), words, videos())
    size = 16 if name.startswith("qwen3") else 14
    return whole(Qwen2VLImageProcessorPil(patch_size=size), words, videos())


@cache
def config(name: str) -> Any:
    """The configuration of the published models, with the ids of the small vocabulary."""
    kinds = {
        "llava_next_video": transformers.LlavaNextVideoConfig,
        "llava_onevision": transformers.LlavaOnevisionConfig,
        "qwen2_vl": transformers.Qwen2VLConfig,
        "qwen2_5_vl": transformers.Qwen2_5_VLConfig,
        "qwen3_vl": transformers.Qwen3VLConfig,
        "qwen3_5": transformers.Qwen3_5Config,
        "glm4v": transformers.Glm4vConfig,
        "glm46v": transformers.Glm46VConfig,
    }
    made = kinds[name]()
    made.image_token_id, made.video_token_id = id_of("<image>"), id_of("<video>")
    return made


def processed(name: str, rows: list[list[tuple[int, tuple[int, int]]]]) -> Any:
    """What the processor makes of rows of videos of so many frames and of the given heights and widths."""
    video = VIDEO_TEXT.get(name, "<video>")
    texts = ["look " + f"{video} look " * len(row) + "look" for row in rows]
    clips = [np.zeros((frames, *size, 3), dtype=np.uint8) for row in rows for frames, size in row]
    told = [
        {
            "total_num_frames": len(one),
            "fps": 2.0,
            "duration": len(one) / 2,
            "frames_indices": [*range(len(one))],
        }
        for one in clips
    ]
    return processor(name)(
        text=texts,
        videos=clips,
        video_metadata=told,
        do_sample_frames=False,
        return_tensors="pt",
        padding=True,
    )
