"""Tiny random models of every supported family, and prompts for them.

The models have the real architectures of transformers with few, narrow layers, grouped-query attention and
weights large enough that attention is far from uniform. The prompts are token ids made by hand around images
of unequal sizes; how many tokens an image takes is what the model's own `get_image_features` says.

    model = tiny_model("llava_next")
    inputs = tiny_inputs("llava_next", model, [(1,), (0,), (2,)], side="left")
    model.generate(**inputs, max_new_tokens=4, do_sample=False)
    rows = tiny_rows("llava_next", model, [(1,), (0,), (2,)])  # the same samples one by one, unpadded
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import Tensor

PAD, BOS, IMAGE, VIDEO, START, END = 0, 1, 3, 4, 5, 6
VOCAB, FIRST_WORD = 99, 10

NAMES = (
    "llava",
    "llava_next",
    "llava_onevision",
    "vipllava",
    "internvl",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
)
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

# Height and width in pixels (for Qwen: in patches), odd and thin ones among them. Every row draws from these.
SIZES: dict[str, list[tuple[int, int]]] = {
    "llava_next": [(13, 7), (8, 8), (5, 21), (30, 1), (9, 17), (1, 40)],
    "llava_onevision": [(11, 5), (6, 6), (24, 24), (1, 36), (7, 18), (35, 1), (30, 13)],
    "qwen": [(4, 6), (2, 2), (6, 2), (2, 10), (8, 4)],
}
TILES = [1, 3, 5]  # InternVL: one tile, or some tiles and their thumbnail


def tiny_model(
    name: str,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 32,
    attn: str = "sdpa",
    **changes: Any,
) -> Any:
    """A `...ForConditionalGeneration` model of the family in eval mode; `changes` go into its
    configuration."""
    config = tiny_config(name, layers=layers, heads=heads, kv_heads=kv_heads, hidden=hidden, **changes)
    config._attn_implementation = attn
    classes = {
        "llava": transformers.LlavaForConditionalGeneration,
        "llava_next": transformers.LlavaNextForConditionalGeneration,
        "llava_onevision": transformers.LlavaOnevisionForConditionalGeneration,
        "vipllava": transformers.VipLlavaForConditionalGeneration,
        "internvl": transformers.InternVLForConditionalGeneration,
        "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
        "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
        "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
    }
    model = classes[name](config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if path.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.copy_(
                    2 + 0.1 * noise
                )  # they set the scale of the scores, whatever the projections are
            elif parameter.dim() == 1 and path.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)  # norms
            elif parameter.dim() < 2:
                parameter.copy_(0.1 * noise)  # biases; image_newline is set below
            elif "embed" in path:
                parameter.copy_(0.7 * noise)
            else:
                gain = 2.0 if "q_proj" in path or "k_proj" in path else 1.2
                parameter.copy_(gain / math.sqrt(parameter.shape[1:].numel()) * noise)
        if hasattr(model.model, "image_newline"):
            model.model.image_newline.copy_(torch.randn(hidden, generator=generator))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.suppress_tokens = list(range(FIRST_WORD))
    return model.to(dtype).eval()


def tiny_config(
    name: str, *, layers: int = 4, heads: int = 4, kv_heads: int = 2, hidden: int = 32, **changes: Any
) -> Any:
    """The configuration of `tiny_model`."""
    text: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "bos_token_id": BOS,
        "eos_token_id": None,
        "pad_token_id": PAD,
        "tie_word_embeddings": False,
    }
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 2,
    }
    common: dict[str, Any] = {"tie_word_embeddings": False}
    if name in QWEN:
        return _qwen_config(name, text, hidden // heads, common | changes)
    if name == "internvl":
        return transformers.InternVLConfig(
            text_config=transformers.Qwen2Config(**text),
            vision_config=transformers.InternVLVisionConfig(
                **vision | {"image_size": [16, 16], "patch_size": [2, 2]}
            ),
            image_token_id=IMAGE,
            image_seq_length=16,
            **common | changes,
        )
    common |= {"image_token_index": IMAGE, "vision_feature_layer": -1}
    if name == "llava_onevision":
        tiles = [[6 * rows, 6 * cols] for rows in range(1, 7) for cols in range(1, 7)]
        common |= {"image_grid_pinpoints": tiles, "video_token_index": VIDEO}
        return transformers.LlavaOnevisionConfig(
            text_config=transformers.Qwen2Config(**text),
            vision_config=transformers.SiglipVisionConfig(**vision, image_size=6, vision_use_head=False),
            **common | changes,
        )
    clip = transformers.CLIPVisionConfig(**vision, image_size=8 if name == "llava_next" else 10)
    if name == "llava":
        return transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**text), vision_config=clip, **common | changes
        )
    if name == "vipllava":
        del common["vision_feature_layer"]
        config = transformers.VipLlavaConfig(
            text_config=transformers.LlamaConfig(**text), vision_config=clip, **common | changes
        )
        config.vision_feature_layers = [
            -1,
            -2,
        ]  # newer versions of transformers keep it as vision_feature_layer
        return config
    common["image_grid_pinpoints"] = [[8, 16], [16, 8], [16, 16], [24, 8], [8, 24]]
    return transformers.LlavaNextConfig(
        text_config=transformers.MistralConfig(**text, sliding_window=None),
        vision_config=clip,
        **common | changes,
    )


def _qwen_config(name: str, text: dict[str, Any], head_dim: int, rest: dict[str, Any]) -> Any:
    quarter = head_dim // 8
    sections = [head_dim // 2 - 2 * quarter, quarter, quarter]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "in_channels": 3, "patch_size": 4}
    hidden = text["hidden_size"]
    rest |= {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }
    if name == "qwen2_vl":
        return transformers.Qwen2VLConfig(
            text_config=text | {"rope_parameters": rope},
            vision_config=vision | {"embed_dim": 16, "hidden_size": hidden, "mlp_ratio": 2},
            **rest,
        )
    vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": hidden}
    if name == "qwen2_5_vl":
        return transformers.Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope},
            vision_config=vision | {"window_size": 16, "fullatt_block_indexes": [1]},
            **rest,
        )
    return transformers.Qwen3VLConfig(
        text_config=text | {"rope_parameters": rope | {"mrope_interleaved": True}, "head_dim": head_dim},
        vision_config=vision | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **rest,
    )


@dataclass
class Picture:
    """The inputs of one image: pixels as the processor shapes them, and its size where the family needs
    it."""

    pixels: Tensor
    size: tuple[int, ...] = ()
    tokens: int = 0


@dataclass
class Sample:
    """One row before padding."""

    ids: list[int]
    pictures: list[Picture]


Spec = int | tuple[int, ...]


def tiny_inputs(
    name: str,
    model: Any,
    batch: Sequence[Spec],
    side: Literal["left", "right"] = "left",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Keyword arguments for the model, one row for each entry of `batch`.

    An entry is a number of images, or a tuple `(images, words_before, words_after)` of which the last two may
    be left out. Images differ in size between rows where the family allows it, and so do the numbers of
    words.
    """
    return _collate(name, model, tiny_samples(name, model, batch, seed), side)


def tiny_rows(name: str, model: Any, batch: Sequence[Spec], seed: int = 0) -> list[dict[str, Tensor]]:
    """The rows of `tiny_inputs` one by one and unpadded: the same ids and pixels."""
    return [_collate(name, model, [sample], "left") for sample in tiny_samples(name, model, batch, seed)]


def tiny_samples(name: str, model: Any, batch: Sequence[Spec], seed: int = 0) -> list[Sample]:
    """The samples that `tiny_inputs` pads and `tiny_rows` does not."""
    return [_sample(name, model, spec, row, seed) for row, spec in enumerate(batch)]


def _sample(name: str, model: Any, spec: Spec, row: int, seed: int) -> Sample:
    images, *words = (spec,) if isinstance(spec, int) else spec
    generator = torch.Generator().manual_seed(1000 * seed + row)
    before = words[0] if words else 2 + row % 3
    after = words[1] if len(words) > 1 else 4 + (2 * row) % 5

    def text(count: int) -> list[int]:
        words = torch.randint(FIRST_WORD, VOCAB, (count,), generator=generator)
        return [int(word) for word in words]

    pictures = [_picture(name, model.config, seed + 2 * row + k, generator) for k in range(images)]
    if pictures:
        _count_tokens(name, model, pictures)
    ids = [BOS, *text(before)]
    marks = ([START], [END]) if name in (*QWEN, "internvl") else ([], [])
    for number, picture in enumerate(pictures):
        ids += text(2) if number else []
        ids += marks[0] + [IMAGE] * picture.tokens + marks[1]
    return Sample(ids + text(after), pictures)


def _picture(name: str, config: Any, number: int, generator: torch.Generator) -> Picture:
    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if name in ("llava", "vipllava"):
        return Picture(noise(1, 3, 10, 10))
    if name == "internvl":
        return Picture(noise(TILES[number % len(TILES)], 3, 16, 16))
    if name in QWEN:
        height, width = SIZES["qwen"][number % len(SIZES["qwen"])]
        return Picture(noise(height * width, 3 * 2 * 4 * 4), (1, height, width))
    size = SIZES[name][number % len(SIZES[name])]
    edge = config.vision_config.image_size
    best = transformers.image_processing_utils.select_best_resolution(size, config.image_grid_pinpoints)
    return Picture(noise(1 + (best[0] // edge) * (best[1] // edge), 3, edge, edge), size)


def _count_tokens(name: str, model: Any, pictures: list[Picture]) -> None:
    """Asks the model how many features each image gives."""
    inputs = _images(name, model, [pictures])
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.no_grad():
        features = model.model.get_image_features(**inputs, return_dict=True).pooler_output
    if name == "internvl":
        for picture in pictures:
            picture.tokens = len(picture.pixels) * features.shape[1]
        return
    for picture, feature in zip(pictures, features, strict=True):
        picture.tokens = len(feature)


def _images(name: str, model: Any, rows: list[list[Picture]]) -> dict[str, Tensor]:
    flat = [picture for pictures in rows for picture in pictures]
    if not flat:
        return {}
    if name in ("llava", "vipllava", "internvl", *QWEN):
        inputs = {"pixel_values": torch.cat([picture.pixels for picture in flat])}
        if name in QWEN:
            inputs["image_grid_thw"] = torch.tensor([picture.size for picture in flat])
        return inputs
    tiles = max(len(picture.pixels) for picture in flat)
    pixels = [torch.nn.functional.pad(p.pixels, (0, 0) * 3 + (0, tiles - len(p.pixels))) for p in flat]
    inputs = {"pixel_values": torch.stack(pixels), "image_sizes": torch.tensor([p.size for p in flat])}
    if name == "llava_onevision":
        inputs["batch_num_images"] = torch.tensor([len(pictures) for pictures in rows])
    return inputs


def _collate(name: str, model: Any, samples: list[Sample], side: str) -> dict[str, Tensor]:
    length = max(len(sample.ids) for sample in samples)

    def padded(values: list[int], fill: int) -> list[int]:
        rest = [fill] * (length - len(values))
        return rest + values if side == "left" else values + rest

    ids = torch.tensor([padded(sample.ids, PAD) for sample in samples])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.tensor([padded([1] * len(sample.ids), 0) for sample in samples]),
        **_images(name, model, [sample.pictures for sample in samples]),
    }
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    if name in QWEN:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return inputs
