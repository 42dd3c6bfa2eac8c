"""Puts the page together: template, style, script, what was run, and the weights."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.naming import full_name
from lvlm_attn.maps.picking import rows_of
from lvlm_attn.maps.viewer.describe import images_of, kept_keys, tokens_of
from lvlm_attn.maps.viewer.packing import base64_of, pack, packed_layer, with_mean
from lvlm_attn.maps.views import apply_view, find_sinks

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps, Word

LIMIT = 40 * 10**6
"""Most bytes of a page."""
_SCRIPTS = ("data.js", "views.js", "draw.js", "panels.js", "page.js", "controls.js")
_ROOM = 200_000  # for the page itself


def page(
    runs: Mapping[str, AttentionMaps],
    *,
    neutral: AttentionMaps | None = None,
    limit: int = LIMIT,
    word: Word | None = None,
) -> str:
    """Makes a page of one or two runs of the same prompt.

    Args:
        runs: raw maps of a single sample by name, such as `{"bare": ..., "var": ...}`.
        neutral: maps of a neutral prompt about the same pictures, with the same layers and heads, for the view
            `contrast`.
        limit: most bytes; heads are averaged in groups where they do not fit, and the page says so.
        word: what is chosen when the page opens, as in `maps[word]`; the first word of the answer that says
            something, such as a noun, if not given.

    Returns:
        A whole HTML document. It loads nothing, and its own rules forbid it to.

    Raises:
        LvlmAttnError: if the runs cannot be shown together, or the first has no such word.

    Example:
        >>> Path("map.html").write_text(page({"bare": lvlm.maps}), encoding="utf-8")  # doctest: +SKIP
    """
    _check(runs)
    first = next(iter(runs.values()))
    starts = [-1 if word is None else _start(maps, word, must=maps is first) for maps in runs.values()]
    images = images_of(first, kept_keys(first))
    taken = len(json.dumps(images)) + _ROOM
    room = max((limit - taken) // len(runs), 1)
    blocks: dict[str, str] = {}
    told = [
        _run(f"r{number}", name, maps, neutral, room, blocks)
        for number, (name, maps) in enumerate(runs.items())
    ]
    for one, start in zip(told, starts):
        one["start"] = start
    meta = first.meta
    header = {
        "title": " / ".join(str(item) for item in meta.get("prompts", []) or ["attention maps"]),
        "model": str(meta.get("model", "")),
        "images": images,
        "runs": told,
    }
    return _document(header, blocks)


def write(path: Path, text: str) -> Path:
    """Writes a page.

    Raises:
        LvlmAttnError: if it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LvlmAttnError(f"The page could not be written to {path} ({error.strerror}).") from error
    return path


def inline(text: str, height: int = 720) -> str:
    """A page as a frame within another, as notebooks show it."""
    source = html.escape(text, quote=True)
    style = f"width:100%;height:{height}px;border:1px solid #8886;border-radius:6px"
    return (
        f'<iframe srcdoc="{source}" style="{style}" sandbox="allow-scripts" title="attention maps"></iframe>'
    )


def _start(maps: AttentionMaps, word: Word, must: bool) -> int:
    """The row of a word; -1 where a further run does not have it."""
    try:
        return rows_of(maps, word)[0]
    except LvlmAttnError:
        if must:
            raise
        return -1


def _check(runs: Mapping[str, AttentionMaps]) -> None:
    if not 1 <= len(runs) <= 2:
        raise LvlmAttnError(f"A page shows one run, or two beside each other, not {len(runs)}.")
    for maps in runs.values():
        maps._lone("A page")
        if maps.view_name != "raw":
            raise LvlmAttnError(f"A page makes its views itself; give it raw maps, not {maps.view_name!r}.")
        if not len(maps) or not maps.weights:
            raise LvlmAttnError("There are no rows to show; choose at least one word, token and layer.")
    grids = {maps.layout.grids for maps in runs.values()}
    layers = {(maps.layers, maps.heads) for maps in runs.values()}
    if len(grids) > 1 or len(layers) > 1:
        raise LvlmAttnError(
            "Two runs can be shown together if their pictures, layers and heads are the same."
        )


def _run(
    name: str,
    label: str,
    maps: AttentionMaps,
    neutral: AttentionMaps | None,
    room: int,
    blocks: dict[str, str],
) -> dict[str, Any]:
    keys = kept_keys(maps)
    layers = len(maps.layers)
    if neutral is not None:  # its weights of every head, and the contrast of all layers as one more layer
        room = (room - len(_neutral(maps, neutral, keys, 1))) * (layers + 1) // (layers + 2)
    packed = pack(maps, keys, max(room, 1))
    blocks |= {f"{name}-{place}": text for place, text in enumerate(packed.blocks)}
    blocks[f"{name}-mass"] = packed.masses
    told: dict[str, Any] = {
        "id": name,
        "name": label,
        "full": full_name(maps) if maps.meta.get("interventions") else "",
        "tokens": tokens_of(maps, keys),
        "rows": len(maps),
        "keys": len(keys),
        "layers": ["mean of all", *map(str, maps.layers)],
        "heads": ["mean of all", *packed.heads],
        "group": packed.group,
        "sinks": _sinks(maps, keys),
        "extra": [round(float(value[0].mean()), 6) for value in maps.extra.values()],
        "views": ["raw"],
    }
    if told["sinks"] is not None:
        told["views"].append("no_sinks")
    if len(maps) > 1:
        told["views"].append("relative")
    if neutral is not None:
        blocks[f"{name}-neutral"] = _neutral(maps, neutral, keys, packed.group)
        blocks[f"{name}-contrast"] = _contrast(maps, neutral, keys, packed.group)
        told["views"].append("contrast")
    rolled = _rollout(maps)
    if rolled is not None:
        blocks[f"{name}-rollout"] = pack(rolled, keys, room).blocks[0]
        told["views"].append("rollout")
    return told


def _sinks(maps: AttentionMaps, keys: list[int]) -> list[list[int]] | None:
    """By layer, the mean of all first, the keys that are sinks; for the mean, those of most layers."""
    try:
        found = find_sinks(maps)
    except LvlmAttnError:
        return None
    flags = torch.stack([found[layer][0] for layer in maps.layers if layer in found])[:, keys]
    by_layer = [flags.double().mean(0) > 0.5]
    index = {layer: number for number, layer in enumerate(found)}
    by_layer += [
        flags[index[layer]] if layer in index else torch.zeros_like(flags[0]) for layer in maps.layers
    ]
    return [[int(key) for key in one.nonzero().flatten()] for one in by_layer]


def _neutral(maps: AttentionMaps, neutral: AttentionMaps, keys: list[int], group: int) -> str:
    """fp32 `(layers, heads + 1, keys)`: the neutral prompt's weights at the patches, 0 elsewhere."""
    apply_view(maps, "contrast", neutral=neutral)  # says why, where the two do not fit together
    is_patch = maps.layout.is_patch[0]
    by_layer = []
    for layer in maps.layers:
        mean = neutral.weights[layer][0].mean(1)  # (heads, keys)
        full = torch.zeros(mean.shape[0], maps.layout.length)
        full[:, is_patch] = mean[:, neutral.layout.is_patch[0]]
        by_layer.append(with_mean(full.numpy(), group)[:, keys])
    return base64_of(np.stack(by_layer))


def _contrast(maps: AttentionMaps, neutral: AttentionMaps, keys: list[int], group: int) -> str:
    """The mean over layers of the view `contrast`, of the mean head and of every group, packed as a layer is."""
    found = []
    heads = next(iter(maps.weights.values())).shape[1]
    for start, stop in [(0, heads), *((start, start + group) for start in range(0, heads, group))]:
        ratios = apply_view(_cut(maps, start, stop), "contrast", neutral=_cut(neutral, start, stop)).weights
        total = sum(value[0, 0].double() for value in ratios.values())
        found.append((cast("torch.Tensor", total) / len(ratios)).float().numpy()[:, keys])
    return packed_layer(np.stack(found))


def _cut(maps: AttentionMaps, start: int, stop: int) -> AttentionMaps:
    """Heads by number, also of maps whose heads have no names."""
    weights = {layer: value[:, start:stop] for layer, value in maps.weights.items()}
    return replace(maps, weights=weights, heads=maps.heads[start:stop], parent=None)


def _rollout(maps: AttentionMaps) -> AttentionMaps | None:
    try:
        return apply_view(maps, "rollout")
    except LvlmAttnError:
        return None


def _document(header: Mapping[str, Any], blocks: Mapping[str, str]) -> str:
    files = resources.files("lvlm_attn.maps.viewer")
    script = "\n".join((files / name).read_text("utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    data = "\n".join(
        f'<script type="application/octet-stream" id="{name}">{text}</script>'
        for name, text in blocks.items()
    )
    parts = {
        "title": html.escape(str(header["title"])[:120]),
        "digest": digest,
        "style": (files / "page.css").read_text("utf-8"),
        "header": _safe_json(header),
        "blocks": data,
        "script": script,
    }
    # One pass over the template: what is put in is never searched for marks.
    template = (files / "page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], template)


def _safe_json(value: Any) -> str:
    """JSON that cannot end the element it stands in, whatever text it holds."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
