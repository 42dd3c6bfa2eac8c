"""What the tiny models share: the vocabulary, the sizes of text and vision models, and how a family is described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PAD, BOS, IMAGE, VIDEO, START, END, BREAK, TAG = 0, 1, 3, 4, 5, 6, 7, 8
VOCAB, FIRST_WORD = 99, 10

Noise = Callable[..., Tensor]


@dataclass
class Picture:
    """The inputs of one image: pixels as the processor shapes them, and its size where the family needs it.

    Attributes:
        pixels: as the family takes them.
        size: what tells the family its size.
        tokens: how many image tokens it takes.
        ids: the tokens it takes in the prompt, with marks and breaks; None for marks of the family and `tokens`.
        blocks: rows and columns of each block of its grid, where the test knows them.
        tiles: row and column of each tile, where the family tells them.
        more: further tensors of the image, one entry each.
    """

    pixels: Tensor
    size: tuple[int, ...] = ()
    tokens: int = 0
    ids: list[int] | None = None
    blocks: list[tuple[int, int]] | None = None
    tiles: list[tuple[int | None, int | None]] | None = None
    more: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Sample:
    """One row before padding.

    Attributes:
        ids: token ids.
        pictures: its images.
        image: for each token the number of the image it belongs to, breaks and tags within it included; None at text.
    """

    ids: list[int]
    pictures: list[Picture]
    image: list[int | None] = field(default_factory=list)


def stacked(rows: list[list[Picture]]) -> dict[str, Tensor]:
    """The pixels of all images one after another, and what else there is of each."""
    flat = [picture for pictures in rows for picture in pictures]
    if not flat:
        return {}
    found = {"pixel_values": torch.cat([picture.pixels for picture in flat])}
    for key in flat[0].more:
        found[key] = torch.cat([picture.more[key] for picture in flat])
    return found


@dataclass(frozen=True)
class Kit:
    """How the tiny model of a family, and images for it, are made.

    Attributes:
        model: name of the class in transformers.
        config: makes the configuration from text settings, vision settings and the rest.
        picture: makes an image from the configuration, a number that chooses its size, and a source of noise.
        images: makes the model's inputs from the images of each row.
        marks: tokens before and behind every image.
        owns_marks: whether the marks before and behind an image belong to it.
        per_token: further inputs per token, made from the padded ids and their mask.
        finish: a last change of the weights, with the generator of their noise.
    """

    model: str
    config: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], Any]
    picture: Callable[[Any, int, Noise], Picture]
    images: Callable[[list[list[Picture]]], dict[str, Tensor]] = stacked
    marks: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    owns_marks: bool = False
    per_token: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None
    finish: Callable[[Any, torch.Generator], None] | None = None


def centred_norms(model: Any, generator: torch.Generator) -> None:
    """Brings norms that multiply by one plus their weight to where those of other families are."""
    for module in model.modules():
        kind = type(module).__name__
        if (
            kind.startswith(("Gemma", "Qwen3_5RMSNorm"))
            and kind.endswith("RMSNorm")
            and hasattr(module, "weight")
        ):
            module.weight.sub_(1)


def token_types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """`mm_token_type_ids`: 1 at image tokens."""
    return {"mm_token_type_ids": (ids == IMAGE).int()}
