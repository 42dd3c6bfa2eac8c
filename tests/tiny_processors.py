"""Real processors for the models of `tests.tiny`, with a small vocabulary, for methods that see words and images.

processor = tiny_processor("llava")
with la.wrap(tiny_model("llava"), method, processor=processor) as lvlm:
    lvlm.generate(images=[picture((20, 14))], prompts=["is there a dog ?"], max_new_tokens=3)
"""

from functools import cache
from typing import Any

import numpy as np
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.tiny import BOS, END, FIRST_WORD, IMAGE, PAD, QWEN, START, VIDEO, VOCAB

NAMES = ("llava", "llava_next", "qwen2_5_vl")
MORE_NAMES = (*NAMES, "llava_onevision", "internvl", "vipllava", "qwen2_vl", "qwen3_vl")
QUESTIONS = ["is there a dog ?", "what is left of the old green cat in the image ?", "how many are there ?"]
_SPECIAL = {PAD: "<pad>", BOS: "<s>", IMAGE: "<image>", VIDEO: "<video>", START: "<img>", END: "</img>"}
_WORDS = (
    "is there a dog ? what left of the old green cat in image how many are USER: ASSISTANT: Write general description "
    "image. Answer question using single word or phrase. describe it briefly"
)


@cache
def tokenizer() -> Any:
    """One token per word; words it does not know are told apart by nothing."""
    words = list(dict.fromkeys(_WORDS.split()))
    names = {number: f"w{number}" for number in range(VOCAB)} | _SPECIAL
    names |= {FIRST_WORD + place: word for place, word in enumerate(words)}
    table = Tokenizer(models.WordLevel({name: number for number, name in names.items()}, unk_token="w98"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    extra = {
        "image_token": "<image>",
        "video_token": "<video>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<image>",
        "vision_bos_token": "<img>",
        "vision_eos_token": "</img>",
    }
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=table,
        pad_token="<pad>",
        bos_token="<s>",
        padding_side="left",
        extra_special_tokens=extra,
    )


def without_video(kind: Any, *args: Any, **options: Any) -> Any:
    def unchecked(self: Any, name: str, argument: Any) -> Any:
        return type(argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": unchecked})(
        *args, None, **options
    )


@cache
def tiny_processor(name: str) -> Any:
    """The processor of the family, with the sizes of `tests.tiny`."""
    made = _processor(name)
    marks = ("<img> ", " </img>") if name in QWEN else ("", "")
    made.chat_template = (
        "<s> USER: {% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}"
        + f"{marks[0]}<image>{marks[1]} "
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:"
    )
    return made


def _processor(name: str) -> Any:
    words = tokenizer()
    clip: dict[str, Any] = {
        "patch_size": 2,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    if name in ("llava", "vipllava"):
        images = transformers.CLIPImageProcessor(
            size={"shortest_edge": 10}, crop_size={"height": 10, "width": 10}
        )
        return transformers.LlavaProcessor(images, words, **clip)
    if name == "llava_next":
        images = transformers.LlavaNextImageProcessor(
            size={"shortest_edge": 8},
            crop_size={"height": 8, "width": 8},
            image_grid_pinpoints=[[8, 16], [16, 8], [16, 16], [24, 8], [8, 24]],
        )
        return transformers.LlavaNextProcessor(images, words, **clip)
    if name == "llava_onevision":
        tiles = [[6 * rows, 6 * cols] for rows in range(1, 7) for cols in range(1, 7)]
        images = transformers.LlavaOnevisionImageProcessor(
            size={"height": 6, "width": 6}, image_grid_pinpoints=tiles
        )
        kind = transformers.LlavaOnevisionProcessor
        return without_video(kind, images, words, num_image_tokens=9, vision_feature_select_strategy="full")
    if name == "internvl":
        images = transformers.GotOcr2ImageProcessor(
            size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=4
        )
        return without_video(transformers.InternVLProcessor, images, words, image_seq_length=16)
    kind = {
        "qwen2_vl": transformers.Qwen2VLProcessor,
        "qwen2_5_vl": transformers.Qwen2_5_VLProcessor,
        "qwen3_vl": transformers.Qwen3VLProcessor,
    }[name]
    images = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 1024})
    return without_video(kind, images, words)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of (width, height) pixels of smooth noise."""
    rng = np.random.default_rng([seed, *size])
    small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


PICTURES = [picture((20, 14)), picture((12, 30), 1), picture((26, 26), 2)]
