"""The processors of families after the first eight, with the settings of their published models, and configurations."""

from __future__ import annotations

from functools import cache
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

IMAGE, START, END, BREAK = "<image>", "<start>", "<end>", "<break>"
_TILES = [f"TILE_{number}" for number in range(1, 20)]
_TAGS = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
_OVIS = ["<IMG_START>", "<IMG_ATOM>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
_FAKE, _GLOBAL = "<fake_token_around_image>", "<global-img>"
WORDS = ["<pad>", "<s>", "</s>", IMAGE, "<video>", START, END, BREAK, "look", "\n", "\n\n"]
_LLAMA4 = [
    "<|patch|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|image|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
]
_LFM2 = [
    "<|img_thumbnail|>",
    *(f"<|img_row_{row}_col_{col}|>" for row in range(1, 11) for col in range(1, 11)),
]
_MOLMO2 = [
    "<im_patch>",
    "<im_col>",
    "<im_start>",
    "<low_res_im_start>",
    "<frame_start>",
    "<im_end>",
    "<frame_end>",
    "<im_low>",
    "<|video|>",
]
MORE = [
    *_LLAMA4,
    *_MOLMO2,
    *_LFM2,
    _FAKE,
    _GLOBAL,
    "<end_of_utterance>",
    "TILE_GLOBAL",
    *_TILES,
    *_TAGS,
    *_OVIS,
]
SIZES = [(1, 150), (333, 500), (641, 479), (97, 1203), (1080, 1919), (150, 1)]


@cache
def tokenizer() -> Any:
    """A word for every marker; special ones are found without blanks around them."""
    words = [*WORDS, *MORE]
    table = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="look"))
    table.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    table.add_special_tokens([word for word in words if word not in ("look", "\n\n")])
    extra = {
        "image_token": IMAGE,
        "video_token": "<video>",
        "boi_token": START,
        "eoi_token": END,
        "img_line_break_token": BREAK,
        "image_start_token": START,
        "image_end_token": END,
        "image_thumbnail_token": "<|img_thumbnail|>",
        "audio_token": "<end_of_utterance>",
        "boa_token": START,
        "eoa_token": END,
    }
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=table,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        extra_special_tokens=extra,
    )


def id_of(word: str) -> int:
    """The id of a word."""
    return int(tokenizer().convert_tokens_to_ids(word))


def _without_video(kind: Any, *parts: Any, **options: Any) -> Any:
    return _with_unchecked(kind)(*parts, None, **options)


def _with_unchecked(kind: Any) -> Any:
    """A kind of processor whose parts may be missing."""

    def unchecked(self: Any, name: str, argument: Any) -> Any:
        return type(argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": unchecked})


def _idefics3() -> Any:
    return transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessor(), tokenizer(), image_seq_len=169
    )


def _smolvlm() -> Any:
    images = transformers.SmolVLMImageProcessor(
        size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
    )
    return _without_video(transformers.SmolVLMProcessor, images, tokenizer(), image_seq_len=64)


def _mistral3() -> Any:
    images = transformers.PixtralImageProcessor(size={"longest_edge": 1540}, patch_size=14)
    return transformers.PixtralProcessor(
        images,
        tokenizer(),
        patch_size=14,
        spatial_merge_size=2,
        image_token=IMAGE,
        image_break_token=BREAK,
        image_end_token=END,
    )


def _aya_vision() -> Any:
    images = transformers.GotOcr2ImageProcessor(
        size={"height": 364, "width": 364}, crop_to_patches=True, min_patches=1, max_patches=12
    )
    return transformers.AyaVisionProcessor(
        images,
        tokenizer(),
        patch_size=14,
        img_size=364,
        downsample_factor=2,
        image_token="<video>",  # the word that stands for an image before it is written out
        img_patch_token=IMAGE,
        start_of_img_token=START,
        end_of_img_token=END,
    )


def _ovis2() -> Any:
    images = transformers.Ovis2ImageProcessor(size={"height": 448, "width": 448}, crop_to_patches=True)
    return transformers.Ovis2Processor(images, tokenizer(), image_seq_length=256)


def _gemma3() -> Any:
    return transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(), tokenizer(), image_seq_length=256
    )


def _paligemma() -> Any:
    images = transformers.SiglipImageProcessor(size={"height": 224, "width": 224})
    images.image_seq_length = 256
    return transformers.PaliGemmaProcessor(images, tokenizer())


def _janus() -> Any:
    return transformers.JanusProcessor(transformers.JanusImageProcessor(), tokenizer(), num_image_tokens=576)


def _glm4v() -> Any:
    return _without_video(transformers.Glm4vProcessor, transformers.Glm4vImageProcessor(), tokenizer())


def _glm46v() -> Any:
    return _without_video(transformers.Glm46VProcessor, transformers.Glm46VImageProcessor(), tokenizer())


def _qwen3_5() -> Any:
    images = transformers.Qwen2VLImageProcessor(patch_size=16)
    return _without_video(transformers.Qwen3VLProcessor, images, tokenizer())


def _cohere2_vision() -> Any:
    images = transformers.Cohere2VisionImageProcessor(size={"height": 512, "width": 512}, patch_size=16)
    return transformers.Cohere2VisionProcessor(images, tokenizer())


_GRANITE_SIZES = [[384 * rows, 384 * cols] for rows in range(1, 5) for cols in range(1, 5)]


def _llava_next_video() -> Any:
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    made = _with_unchecked(transformers.LlavaNextVideoProcessor)
    return made(
        None,
        images,
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _granite4_vision() -> Any:
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 384},
        crop_size={"height": 384, "width": 384},
        image_grid_pinpoints=_GRANITE_SIZES,
    )
    return transformers.Granite4VisionProcessor(
        images,
        tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        downsample_rate="3/8",
    )


def _gemma4() -> Any:
    made = _with_unchecked(transformers.Gemma4Processor)
    return made(None, transformers.Gemma4ImageProcessor(), tokenizer(), None)


def _llama4() -> Any:
    return transformers.Llama4Processor(transformers.Llama4ImageProcessor(), tokenizer(), patch_size=14)


def _lfm2_vl() -> Any:
    return transformers.Lfm2VlProcessor(transformers.Lfm2VlImageProcessor(), tokenizer())


def _molmo2() -> Any:
    """Column tokens after the rows of the second view alone, as the published models have it."""
    made = _with_unchecked(transformers.Molmo2Processor)
    return made(transformers.Molmo2ImageProcessor(), None, tokenizer(), use_single_crop_col_tokens=False)


MAKERS = {
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "mistral3": _mistral3,
    "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision,
    "ovis2": _ovis2,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "janus": _janus,
    "glm4v": _glm4v,
    "glm46v": _glm46v,
    "qwen3_5": _qwen3_5,
    "llava_next_video": _llava_next_video,
    "granite4_vision": _granite4_vision,
    "gemma4": _gemma4,
    "llama4": _llama4,
    "lfm2_vl": _lfm2_vl,
    "molmo2": _molmo2,
}
if not hasattr(transformers, "Molmo2Processor"):  # transformers before 5.20
    del MAKERS["molmo2"]
NEEDS_TORCHVISION = ("mistral3", "cohere2_vision", "llama4", "lfm2_vl", "molmo2")
"""These processors cannot be loaded without torchvision; their rule stands in, see `tests.families.counts`."""
PLACEHOLDER = {"aya_vision": "<video>", "gemma3": START, "llama4": "<|image|>"}
"""The word that stands for an image in a prompt before it is written out, where it is not the image token."""


@cache
def config(name: str) -> Any:
    """The configuration of the family's published models, with the ids of the small vocabulary."""
    made = {
        "smolvlm": lambda: transformers.SmolVLMConfig(
            vision_config={"image_size": 512, "patch_size": 16}, scale_factor=4
        ),
        "idefics3": lambda: transformers.Idefics3Config(
            vision_config={"image_size": 364, "patch_size": 14}, scale_factor=2
        ),
        "mistral3": transformers.Mistral3Config,
        "aya_vision": lambda: transformers.AyaVisionConfig(
            vision_config={"model_type": "siglip_vision_model", "image_size": 364, "patch_size": 14}
        ),
        "cohere2_vision": lambda: transformers.Cohere2VisionConfig(
            vision_config={"model_type": "siglip_vision_model", "image_size": 512, "patch_size": 16}
        ),
        "ovis2": lambda: transformers.Ovis2Config(
            vision_config={"image_size": 448, "patch_size": 14, "hidden_stride": 2},
            visual_indicator_token_ids=[id_of(word) for word in _OVIS if word != "<IMG_ATOM>"],
        ),
        "gemma3": transformers.Gemma3Config,
        "paligemma": lambda: transformers.PaliGemmaConfig(
            vision_config={"model_type": "siglip_vision_model", "image_size": 224, "patch_size": 14}
        ),
        "janus": transformers.JanusConfig,
        "glm4v": transformers.Glm4vConfig,
        "glm46v": transformers.Glm46VConfig,
        "qwen3_5": transformers.Qwen3_5Config,
        "llava_next_video": transformers.LlavaNextVideoConfig,
        "granite4_vision": lambda: transformers.Granite4VisionConfig(
            vision_config={"image_size": 384, "patch_size": 16},
            downsample_rate="3/8",
            image_grid_pinpoints=_GRANITE_SIZES,
        ),
        "gemma4": lambda: transformers.Gemma4Config(
            text_config={"use_bidirectional_attention": "vision"}, vision_config={}, audio_config=None
        ),
        "llama4": lambda: transformers.Llama4Config(
            vision_config={"image_size": 336, "patch_size": 14}, eoi_token_index=id_of("<|image_end|>")
        ),
        "lfm2_vl": transformers.Lfm2VlConfig,
        "molmo2": lambda: transformers.Molmo2Config(image_end_token_id=id_of("<im_end>")),
    }[name]()
    if name != "molmo2":  # which has one id for both
        made.video_token_id = id_of("<video>")
    words = {"ovis2": "<IMG_ATOM>", "llama4": "<|patch|>", "molmo2": "<im_patch>"}
    made.image_token_id = id_of(words.get(name, IMAGE))
    return made
