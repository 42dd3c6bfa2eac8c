"""Tiny random models of every supported family, and prompts for them.

The models have the real architectures of transformers with few, narrow layers, grouped-query attention and
weights large enough that attention is far from uniform. The prompts are token ids made by hand around images
of unequal sizes; how many tokens an image takes is what the model's own `get_image_features` says.

    model = tiny_model("llava_next")
    inputs = tiny_inputs("llava_next", model, [(1,), (0,), (2,)], side="left")
    model.generate(**inputs, max_new_tokens=4, do_sample=False)
    rows = tiny_rows("llava_next", model, [(1,), (0,), (2,)])  # the same samples one by one, unpadded

`NAMES` are eight families of every kind of grid, on which the large matrices of tests run; `ALL_NAMES` are all of
them, on which every test runs that is cheap.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import transformers
from torch import Tensor

from tests.leaks import watch
from tests.tiny import first, late, molmo, rotary, squares, tiled
from tests.tiny.first import QWEN, SIZES, TILES
from tests.tiny.parts import BOS, END, FIRST_WORD, IMAGE, PAD, START, VIDEO, VOCAB, Kit, Picture, Sample

__all__ = [
    "ALL_NAMES",
    "BOS",
    "END",
    "FIRST_WORD",
    "IMAGE",
    "KITS",
    "NAMES",
    "PAD",
    "QWEN",
    "SIZES",
    "START",
    "TILES",
    "VIDEO",
    "VOCAB",
    "Kit",
    "Picture",
    "Sample",
    "tiny_config",
    "tiny_inputs",
    "tiny_model",
    "tiny_rows",
    "tiny_samples",
]

NAMES = tuple(first.KITS)
_ALL: dict[str, Kit] = {**first.KITS, **tiled.KITS, **squares.KITS, **rotary.KITS, **late.KITS, **molmo.KITS}
# Transformers before 5.20 has no Molmo 2.
KITS = {name: kit for name, kit in _ALL.items() if hasattr(transformers, kit.model)}
ALL_NAMES = tuple(KITS)


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
    kit = KITS[name]
    model = getattr(transformers, kit.model)(config)
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
        if hasattr(getattr(model, "model", None), "image_newline"):
            model.model.image_newline.copy_(torch.randn(hidden, generator=generator))
        if kit.finish is not None:
            kit.finish(model, generator)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.suppress_tokens = list(range(FIRST_WORD))
    return watch(model.to(dtype).eval())


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
    return KITS[name].config(text, vision, {"tie_word_embeddings": False, **changes})


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

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    kit = KITS[name]
    pictures = [kit.picture(model.config, seed + 2 * row + k, noise) for k in range(images)]
    if pictures and not pictures[0].tokens:
        _count_tokens(name, model, pictures)
    ids = [BOS, *text(before)]
    image: list[int | None] = [None] * len(ids)
    for number, picture in enumerate(pictures):
        if number:
            ids += text(2)
            image += [None] * 2
        own = [*kit.marks[0], *[IMAGE] * picture.tokens, *kit.marks[1]]
        own = own if picture.ids is None else picture.ids
        ids += own
        first, last = own.index(IMAGE), len(own) - own[::-1].index(IMAGE)
        if kit.owns_marks:
            first, last = 0, len(own)
        image += [number if first <= place < last else None for place in range(len(own))]
    return Sample(ids + text(after), pictures, image + [None] * after)


def _count_tokens(name: str, model: Any, pictures: list[Picture]) -> None:
    """Asks the model how many features each image gives."""
    inputs = KITS[name].images([pictures])
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.no_grad():
        output = model.model.get_image_features(**inputs, return_dict=True)
    features = output.deepstack_features[0][1] if name == "granite4_vision" else output.pooler_output
    if name == "internvl":
        for picture in pictures:
            picture.tokens = len(picture.pixels) * features.shape[1]
        return
    for picture, feature in zip(pictures, features, strict=True):
        picture.tokens = len(feature)


def _collate(name: str, model: Any, samples: list[Sample], side: str) -> dict[str, Tensor]:
    length = max(len(sample.ids) for sample in samples)

    def padded(values: list[int], fill: int) -> list[int]:
        rest = [fill] * (length - len(values))
        return rest + values if side == "left" else values + rest

    kit = KITS[name]
    ids = torch.tensor([padded(sample.ids, PAD) for sample in samples])
    mask = torch.tensor([padded([1] * len(sample.ids), 0) for sample in samples])
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        **kit.images([sample.pictures for sample in samples]),
    }
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return inputs | (kit.per_token(ids, mask) if kit.per_token is not None else {})
