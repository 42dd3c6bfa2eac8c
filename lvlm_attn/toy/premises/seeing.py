"""Premises 4 and 5: views are familiar, and attention finds the object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from lvlm_attn.hooks.vcd import kept_signal
from lvlm_attn.maps.crops import refine
from lvlm_attn.toy.premises.asking import Asked, Row, accuracy, batches
from lvlm_attn.toy.scene import Scene, SceneObject

_SMALL = 0.04  # share of the picture that the box of a small object takes at most
_MARGIN = 0.08  # of the picture, around a crop
_MOST_ZOOM = 3.2


def measure_views(model: Any, processor: Any, asked: Sequence[Asked]) -> list[Row]:
    """Accuracy about small objects: the whole picture, a crop around the right place, the rest black, and noise.

    As many questions are about an object that is not there, and seen through the same view.
    """
    pairs: list[tuple[Asked, SceneObject]] = []
    absent = {item.scene.id: item for item in asked if not item.is_there}
    for scene in {item.scene.id: item.scene for item in asked}.values():
        for item in scene.objects:
            is_single = sum(other.name == item.name for other in scene.objects) == 1
            if _area(item) <= _SMALL and is_single and scene.id in absent:
                pairs += [(Asked(scene, item.name, True), item), (absent[scene.id], item)]
    questions = [question for question, _ in pairs]

    def view(zoomed: bool) -> float:
        images = iter([looked_at(question.scene, item, zoomed) for question, item in pairs])
        return accuracy(model, processor, questions, lambda _: next(images))

    whole = accuracy(model, processor, questions)
    crop, dark = view(True), view(False)
    noise = accuracy(model, processor, questions, lambda item: add_noise(item.scene.image, 300))
    return [
        Row(
            "Views: a crop is no worse than the picture",
            f"small objects ({len(questions)} questions): whole picture {whole:.1%}, right crop {crop:.1%}, "
            f"rest black {dark:.1%}, noise at step 300 {noise:.1%}",
            "crop at least whole",
            crop >= whole,
        )
    ]


def looked_at(scene: Scene, item: SceneObject, zoomed: bool) -> Image.Image:
    """The picture with all but an object's surroundings black, cropped to them and enlarged if asked for."""
    image = scene.image
    size = image.width
    x0, y0, x1, y1 = item.box
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    half = max((x1 - x0) / 2, (y1 - y0) / 2) + _MARGIN * size
    half = max(half, size / _MOST_ZOOM / 2)
    kept = np.zeros((size, size), dtype=bool)
    kept[max(0, int(y - half)) : int(y + half) + 1, max(0, int(x - half)) : int(x + half) + 1] = True
    if zoomed:
        return refine(image, kept, _MOST_ZOOM, pad_to_square=True)[0]
    return Image.fromarray(np.asarray(image) * kept[:, :, None].astype(np.uint8))


def add_noise(image: Image.Image, step: int) -> Image.Image:
    """The picture with noise of VCD's schedule, cut to what pixels can hold."""
    kept = kept_signal()[step]
    values = np.asarray(image, dtype=np.float64) / 127.5 - 1
    noise = np.random.default_rng(0).normal(size=values.shape)
    mixed = kept**0.5 * values + (1 - kept) ** 0.5 * noise
    return Image.fromarray(np.clip((mixed + 1) * 127.5, 0, 255).round().astype(np.uint8))


def measure_pointing(model: Any, processor: Any, asked: Sequence[Asked]) -> list[Row]:
    """How often the patch that the last prompt token attends to most lies on the object asked about."""
    present = [item for item in asked if item.is_there]
    side = round(model.config.image_seq_length**0.5)
    inside = torch.from_numpy(np.stack([_on_object(item, side) for item in present]))
    model.set_attn_implementation("eager")
    hits: list[torch.Tensor] = []
    for inputs in batches(processor, [item.scene.image for item in present], [item.text for item in present]):
        with torch.no_grad():
            attentions = model(**inputs, output_attentions=True).attentions
        is_image = inputs["input_ids"] == model.config.image_token_id
        seen = torch.stack([rows[:, :, -1] for rows in attentions], 1)  # (batch, layers, heads, keys)
        on_patches = torch.stack([row[..., mask] for row, mask in zip(seen, is_image)])
        hits.append(on_patches.argmax(-1))
    model.set_attn_implementation("sdpa")
    best = torch.cat(hits)
    found = torch.gather(inside, 1, best.flatten(1)).view(best.shape).float().mean(0)
    layer, head = divmod(int(found.argmax()), found.shape[1])
    chance = float(inside.float().mean())
    top = float(found.max())
    return [
        Row(
            "Attention localises",
            f"layer {layer}, head {head} points at the object in {top:.0%} of {len(present)} questions; "
            f"{int((found >= 2 * chance).sum())} of {found.numel()} heads reach twice chance, {chance:.0%}",
            "at least twice chance",
            top >= 2 * chance,
        )
    ]


def _on_object(item: Asked, side: int) -> np.ndarray[Any, Any]:
    """(patches,) True where a patch lies on an object of the name that is asked about."""
    grid = np.zeros((side, side), dtype=bool)
    size = item.scene.image.width / side
    for other in item.scene.objects:
        if other.name == item.name:
            x0, y0, x1, y1 = other.box
            grid[int(y0 // size) : -int(-y1 // size), int(x0 // size) : -int(-x1 // size)] = True
    return grid.ravel()


def _area(item: SceneObject) -> float:
    x0, y0, x1, y1 = item.box
    return (x1 - x0) * (y1 - y0) / 144**2
