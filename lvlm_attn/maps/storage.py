"""Attention maps as one file: tensors in safetensors, all else as JSON in its header. Nothing is unpickled."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lvlm_attn._version import __version__
from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.layout.grids import Block, ImageGrid
from lvlm_attn.layout.prompt import PromptLayout
from lvlm_attn.maps.file_check import check_parts
from lvlm_attn.maps.geometry import Frame, Level
from lvlm_attn.maps.onto_image import MapImage
from lvlm_attn.prompts.images import open_image

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps
    from lvlm_attn.maps.layer_key import LayerKey

_NAME, _VERSION = "lvlm_attn.maps", 1
_LAYOUT = ("kind", "image", "block", "row", "col")
_BY_LAYER = ("weights", "extra", "sink_scores")


def save(maps: AttentionMaps, path: Path) -> Path:
    """See `AttentionMaps.save`; the file is written whole or not at all."""
    tensors: dict[str, Tensor] = {"rows": maps.rows, "targets": maps.targets, "ids": maps.ids}
    tensors |= {f"layout.{name}": getattr(maps.layout, name) for name in _LAYOUT}
    for kind in _BY_LAYER:
        tensors |= {f"{kind}.{layer}": value for layer, value in getattr(maps, kind).items()}
    for sample, images in enumerate(maps.images):
        for number, image in enumerate(images):
            if image.picture is not None:
                tensors[f"picture.{sample}.{number}"] = _encoded(image.picture)
    header = {
        "format": _NAME,
        "version": _VERSION,
        "lvlm_attn": __version__,
        "layers": {kind: list(getattr(maps, kind)) for kind in _BY_LAYER},
        "heads": list(maps.heads),
        "grids": [[dataclasses.asdict(grid) for grid in row] for row in maps.layout.grids],
        "unfinished": list(maps.layout.unfinished),
        "pieces": maps.pieces,
        "images": [[_described(image) for image in row] for row in maps.images],
        "meta": dict(maps.meta),
    }
    if path.is_dir():
        raise LvlmAttnError(f"{path} is a folder; give the name of a file to write the maps to.")
    part = path.with_name(f"{path.name}.part")
    try:
        text = json.dumps(header, ensure_ascii=False)
        save_file({key: value.contiguous() for key, value in tensors.items()}, part, {_NAME: text})
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise LvlmAttnError(f"The maps could not be written to {path} ({_first(error)}).") from error
    except TypeError as error:
        raise LvlmAttnError(f"maps.meta holds something that JSON cannot hold ({_first(error)}).") from error
    return path


def load(path: Path, kind: type[AttentionMaps]) -> AttentionMaps:
    """See `AttentionMaps.load`."""
    if not path.is_file():
        raise LvlmAttnError(f"There is no file {path} to read maps from.")
    header = _header(path)
    try:
        with safe_open(path, framework="pt") as file:
            maps = _read(file, header, kind)
        check_parts(maps)
    except Exception as error:  # what is of another kind than expected fails in any way
        raise _damaged(path, error) from error
    return maps


def _header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_NAME)
        header: dict[str, Any] | None = None if text is None else dict(json.loads(text))
    except Exception as error:  # lists within lists end in a RecursionError
        raise _damaged(path, error) from error
    if header is None:
        raise LvlmAttnError(f"{path} holds no attention maps; give a file that maps.save wrote.")
    if header.get("format") != _NAME or header.get("version") != _VERSION:
        raise LvlmAttnError(
            f"{path} holds maps of format version {shown(header.get('version'))}, and this is version {_VERSION}; "
            f"read it with the lvlm_attn that wrote it ({shown(header.get('lvlm_attn'))})."
        )
    return header


def _damaged(path: Path, error: Exception) -> LvlmAttnError:
    return LvlmAttnError(
        f"{path} is damaged or no file of attention maps ({_first(error)}); write it again with maps.save."
    )


def _read(file: Any, header: dict[str, Any], kind: type[AttentionMaps]) -> AttentionMaps:
    get = file.get_tensor
    grids = tuple(tuple(_grid(item) for item in row) for row in header["grids"])
    fields = {name: get(f"layout.{name}") for name in _LAYOUT}
    layout = PromptLayout(**fields, grids=grids, unfinished=tuple(header["unfinished"]))
    names = set(file.keys())
    images = tuple(
        tuple(
            _image(item, get(key) if (key := f"picture.{sample}.{number}") in names else None)
            for number, item in enumerate(row)
        )
        for sample, row in enumerate(header["images"])
    )
    by_layer: dict[str, dict[LayerKey, Tensor]] = {
        name: {layer: get(f"{name}.{layer}").float() for layer in header["layers"][name]}
        for name in _BY_LAYER
    }
    pieces = header["pieces"]
    return kind(
        rows=get("rows"),
        targets=get("targets"),
        ids=get("ids"),
        layout=layout,
        pieces=None if pieces is None else tuple(tuple(map(str, row)) for row in pieces),
        images=images,
        heads=tuple(header["heads"]),
        meta=dict(header["meta"]),
        **cast("dict[str, Any]", by_layer),
    )


def _encoded(picture: Image.Image) -> Tensor:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG")
    return torch.from_numpy(np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy())


def _described(image: MapImage) -> dict[str, Any]:
    levels = None if image.levels is None else [dataclasses.asdict(level) for level in image.levels]
    return {"size": image.size, "levels": levels, "reason": image.reason}


def _image(item: dict[str, Any], encoded: Tensor | None) -> MapImage:
    levels = item["levels"]
    if levels is not None:
        levels = tuple(
            Level(
                Frame(**one["frame"]),
                one["rows"],
                one["cols"],
                tuple(map(tuple, one["blocks"])),
                tuple(one["shape"]) if one.get("shape") is not None else None,
            )
            for one in levels
        )
    picture = None
    if encoded is not None:
        picture = open_image(encoded.numpy().tobytes())
    size = None if item["size"] is None else cast("tuple[int, int]", tuple(map(int, item["size"])))
    return MapImage(size, levels, picture, item["reason"])


def _grid(item: dict[str, Any]) -> ImageGrid:
    blocks = tuple(Block(**block) for block in item["blocks"])
    return ImageGrid(blocks, item["trailing_fillers"], item["leading_fillers"])


def _first(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0][:200] if text else type(error).__name__).rstrip(".")
