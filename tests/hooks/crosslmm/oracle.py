"""CrossLMM by hand: one unpadded sample, in float64, on the shortened sequence, without a cache.

Hidden patches are not there at all; what is left keeps its positions. Only linear maps, MLPs and the cosines of the
rotary embedding are taken from the model. Softmaxes are over whole matrices with masks made by plain rules.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.oracle import Stream, norm, read


@dataclass
class Rule:
    """What is read, where; `kind` is `none`, `R1`, `R2` or `adapter`."""

    kind: str = "none"
    grid: tuple[int, int] = (2, 2)
    source: str = "S2"
    w: float = 1.0
    lam: float = 0.3
    layers: tuple[int, ...] = (0, 1, 2, 3)
    scope: str = "global"
    branches: str = "both"
    rows: str = "all_text"
    causal_images: bool = True
    weights: dict[str, Tensor] | None = None
    kv_norm: bool = False


@dataclass
class Answer:
    """Logits `(kept, vocabulary)` at the positions `kept`, and which of these stand for cells."""

    logits: Tensor
    kept: list[int]
    pooled: list[int]


def blocks(name: str, model: Any, stream: Stream, row: dict[str, Tensor]) -> list[list[list[list[int]]]]:
    """Per image, per block, the positions as rows of a rectangle."""
    runs: list[list[int]] = []
    for position in stream.is_image.nonzero().flatten().tolist():
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    found = []
    for number, run in enumerate(runs):
        if name == "llava":
            found.append([square(run, 5, 5)])
        elif name == "llava_next":
            tail = run[16:]
            height = sum(1 for position in tail if not stream.is_patch[position])
            width = len(tail) // height
            found.append([square(run[:16], 4, 4), [line[:-1] for line in square(tail, height, width)]])
        else:
            _, height, width = (int(side) for side in row["image_grid_thw"][number])
            found.append([square(run, height // 2, width // 2)])
    return found


def square(places: list[int], height: int, width: int) -> list[list[int]]:
    assert len(places) == height * width
    return [places[i * width : (i + 1) * width] for i in range(height)]


def cut(size: int, count: int) -> list[range]:
    count = min(size, count)
    return [range(math.floor(i * size / count), math.ceil((i + 1) * size / count)) for i in range(count)]


# Long because an oracle is compared with the paper from top to bottom.
@torch.no_grad()
def answer(
    name: str, model: Any, row: dict[str, Tensor], rule: Rule, generated: tuple[int, ...] = ()
) -> Answer:
    """Runs one sample."""
    assert model.dtype == torch.float64
    stream = read(model, row, generated)
    pictures = blocks(name, model, stream, row)
    embeds, pooled, hidden, image_of = stream.embeds.clone(), [], set(), {}
    for number, picture in enumerate(pictures):
        for block in picture:
            inside = [position for line in block for position in line]
            image_of.update(dict.fromkeys(inside, number))
            hidden.update(inside)
            for down in cut(len(block), rule.grid[0]):
                for across in cut(len(block[0]), rule.grid[1]):
                    middle = block[(down[0] + down[-1]) // 2][(across[0] + across[-1]) // 2]
                    members = [block[i][j] for i in down for j in across]
                    embeds[middle] = sum(stream.embeds[place] for place in members) / len(members)
                    pooled.append(middle)
    hidden -= set(pooled)
    patches = sorted(image_of)
    kept = [position for position in range(len(embeds)) if position not in hidden]
    may_read = torch.zeros(len(kept), len(patches), dtype=torch.bool)
    last = stream.prompt_length - 1
    for i, position in enumerate(kept):
        for j, patch in enumerate(patches):
            if position in image_of:
                own, other = image_of[position], image_of[patch]
                is_near = other == own if rule.scope == "frame" else other <= own or not rule.causal_images
                may_read[i, j] = is_near and rule.branches != "t2v"
            elif rule.rows == "all_text" or position >= last:
                may_read[i, j] = (patch < position or not rule.causal_images) and rule.branches != "v2v"
    decoder = model.model.language_model
    cos, sin = (part[0].double() for part in decoder.rotary_emb(embeds[None], stream.positions))
    elsewhere = sources(decoder, stream, patches, cos, sin, rule) if patches else []
    is_image = torch.tensor([position in image_of for position in kept])
    x = embeds[kept]
    for index, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        q, k, v = project(attention, norm(layer.input_layernorm, x), cos[kept], sin[kept])
        scores = dots(q, k)
        scores = scores.masked_fill(torch.ones(len(kept), len(kept)).triu(1).bool(), -torch.inf)
        is_host = index in rule.layers and bool(patches)
        heads = mix(scores, v)
        if is_host and rule.kind in ("R1", "R2"):
            keys, values = elsewhere[index]
            beside = dots(q, keys).masked_fill(~may_read, -torch.inf)
            is_reader = may_read.any(1)
            if rule.kind == "R1":
                extra = mix(beside.masked_fill(~is_reader[None, :, None], 0), values)
                heads = heads + rule.lam * extra * is_reader[:, None, None]
            elif rule.w > 0:
                own = scores.clone()
                own[:, :, is_image] += math.log(1 - rule.w) if rule.w < 1 else -math.inf
                joint = torch.cat((own, beside + math.log(rule.w)), 2)[:, is_reader]
                heads[is_reader] = mix(joint, torch.cat((v, values)))
        x = x + attention.o_proj(heads.flatten(1))
        if is_host and rule.kind == "adapter":
            x = x + branches(
                rule,
                index,
                norm(layer.post_attention_layernorm, x),
                stream.embeds[patches],
                may_read,
                is_image,
            )
        x = x + layer.mlp(norm(layer.post_attention_layernorm, x))
    return Answer(model.lm_head(norm(decoder.norm, x)), kept, sorted(pooled))


def branches(
    rule: Rule, index: int, h: Tensor, patches: Tensor, may_read: Tensor, is_image: Tensor
) -> Tensor:
    """Both cross-attentions of a layer, from the tensors of an adapter's file."""
    if rule.kv_norm:
        patches = patches / torch.sqrt((patches * patches).mean(-1, keepdim=True) + 1e-6)
    total = torch.zeros_like(h)
    for kind, is_row in (("v2v", is_image), ("t2v", ~is_image)):

        def linear(part: str, states: Tensor, kind: str = kind) -> Tensor:
            weight = rule.weights[f"dcal.{index}.{kind}.{part}.weight"]
            bias = rule.weights.get(f"dcal.{index}.{kind}.{part}.bias")
            return states @ weight.T + (0 if bias is None else bias)

        width = 8
        q = linear("q_proj", h).view(len(h), -1, width)
        k = linear("k_proj", patches).view(len(patches), -1, width)
        v = linear("v_proj", patches).view(len(patches), -1, width)
        gate = math.tanh(float(rule.weights[f"dcal.{index}.{kind}.gate"]))
        for i in range(len(h)):
            if is_row[i] and may_read[i].any():
                seen = may_read[i]
                found = mix(dots(q[i : i + 1], k[seen]), v[seen])
                total[i] += gate * linear("o_proj", found.flatten(1))[0]
    return total


def sources(
    decoder: Any, stream: Stream, patches: list[int], cos: Tensor, sin: Tensor, rule: Rule
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of the patches at every layer."""
    found = []
    x = stream.embeds if rule.source == "S2" else stream.embeds[patches]
    at = slice(None) if rule.source == "S2" else patches
    for layer in decoder.layers:
        h = norm(layer.input_layernorm, x)
        q, k, v = project(layer.self_attn, h, cos[at], sin[at])
        found.append((k[patches], v[patches]) if rule.source == "S2" else (k, v))
        if rule.source == "S0":
            continue
        heads = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        if rule.source == "S2":
            scores = dots(q, k).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
            heads = mix(scores, v)
        x = x + layer.self_attn.o_proj(heads.flatten(1))
        x = x + layer.mlp(norm(layer.post_attention_layernorm, x))
    return found


def project(attention: Any, h: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values, `(length, heads, head_dim)`."""
    q, k, v = (
        part(h).view(len(h), -1, attention.head_dim)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    half = attention.head_dim // 2

    def turned(states: Tensor) -> Tensor:
        swapped = torch.cat((-states[..., half:], states[..., :half]), -1)
        return states * cos[:, None] + swapped * sin[:, None]

    return turned(q), turned(k), v


def dots(q: Tensor, k: Tensor) -> Tensor:
    """Scores `(heads, queries, keys)`."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return torch.einsum("qhd,khd->hqk", q, k) / q.shape[2] ** 0.5


def mix(scores: Tensor, v: Tensor) -> Tensor:
    """Head outputs `(queries, heads, head_dim)` of scores `(heads, queries, keys)`."""
    v = v.repeat_interleave(scores.shape[0] // v.shape[1], 1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
