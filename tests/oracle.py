"""VAR and VHR from their papers, one unpadded sample at a time, in float64 and without a cache.

Nothing here uses the package. The decoder is walked by hand: only linear maps, MLPs and the cosines of the
rotary embedding are taken from the model. Heads and rows are plain loops. Decoding is the same walk over the
prompt and the generated tokens together: prompt tokens do not see later ones, so their sinks and heads come
out as they were before the first token was generated.

    twin = copy.deepcopy(model).double()
    truth = oracle(twin, row, generated, VarRule(...), VhrRule(...))
    truth.logits[prompt_length - 1]  # (vocabulary,), scores of the first generated token

Sources: Kang et al., ICLR 2025 (arXiv 2503.03321); He et al., ACL 2025 (arXiv 2412.13949).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

IMAGE = 3


@dataclass(frozen=True)
class VarRule:
    """What VAR does, in the paper's convention of rho."""

    layers: tuple[int, ...]
    sink_dims: tuple[int, ...]
    tau: float
    rho: float = 0.5
    removed_fraction: float = 0.4
    mass_floor: float = 0.2
    require_visual_sink: bool = True


@dataclass(frozen=True)
class VhrRule:
    """What VHR does."""

    layers: tuple[int, ...]
    alpha: float = 2.0
    outlier_filter: bool = True
    std_guard: bool = True
    vhd_power: int = 2


@dataclass
class Stream:
    """What enters the decoder: embeddings `(length, hidden)` and their places."""

    embeds: Tensor
    positions: Tensor
    is_image: Tensor
    is_patch: Tensor
    prompt_length: int
    later_prompts: tuple[int, ...] = ()
    deepstack: list[Tensor] = field(default_factory=list)


@dataclass
class Truth:
    """The result and how it came about.

    Attributes:
        logits: `(length, vocabulary)`.
        sinks: positions of the sinks, per layer.
        rows: changed `(head, row)`, per layer.
        candidates: how many `(head, row)` could have been changed.
        heads: scaled heads, per layer.
        divergence: per layer, one per head; before the outlier rule.
        outliers: heads that the outlier rule dropped, per layer.
        outputs: `(heads, head_dim)` at the last prompt token before scaling, per layer.
    """

    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    sinks: dict[int, set[int]] = field(default_factory=dict)
    rows: dict[int, set[tuple[int, int]]] = field(default_factory=dict)
    candidates: int = 0
    heads: dict[int, set[int]] = field(default_factory=dict)
    divergence: dict[int, list[float]] = field(default_factory=dict)
    outliers: dict[int, set[int]] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)


class _Stop(Exception):
    pass


@torch.no_grad()
def oracle(
    model: Any,
    row: dict[str, Tensor],
    generated: Sequence[int] = (),
    var: VarRule | None = None,
    vhr: VhrRule | None = None,
    later_prompts: Sequence[int] = (),
) -> Truth:
    """Runs one sample and the tokens generated after it through a float64 model.

    `later_prompts` are the positions of `generated` that were read as the prompt of a later turn.
    """
    assert model.dtype == torch.float64
    stream = replace(read(model, row, generated), later_prompts=tuple(later_prompts))
    text: dict[int, Tensor] = {}
    if vhr is not None and bool(stream.is_image.any()):
        # A prompt without its images is an ordinary prompt for the unmodified model.
        text = walk(model, without_images(stream)).outputs
    return walk(model, stream, var, vhr if text else None, text)


def read(model: Any, row: dict[str, Tensor], generated: Sequence[int] = ()) -> Stream:
    """Stops the model where its decoder starts, and takes what the decoder would get."""
    ids = torch.cat([row["input_ids"], torch.tensor([list(generated)], dtype=torch.long)], dim=1)
    inputs = dict(row, input_ids=ids, attention_mask=torch.ones_like(ids))
    if "mm_token_type_ids" in row:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    if "pixel_values" in row:
        inputs["pixel_values"] = row["pixel_values"].double()
    caught: dict[str, Any] = {}

    def catch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        caught.update(kwargs)
        raise _Stop

    handle = model.model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(**inputs, use_cache=False)
    except _Stop:
        pass
    finally:
        handle.remove()
    embeds = caught["inputs_embeds"][0]
    is_image = ids[0] == IMAGE
    is_patch = is_image.clone()
    if hasattr(model.model, "image_newline"):
        # A newline shows no place of the image: it is the one learned vector, wherever it stands.
        is_patch &= (embeds != model.model.image_newline).any(-1)
    positions = caught.get("position_ids")
    if positions is None:
        positions = torch.arange(ids.shape[1])[None]
        if "mm_token_type_ids" in row:
            positions = positions.expand(3, 1, -1)
    if positions.dim() == 3 and positions.shape[0] == 4:
        positions = positions[1:]
    deepstack = caught.get("deepstack_visual_embeds") or []
    return Stream(embeds, positions, is_image, is_patch, row["input_ids"].shape[1], deepstack=list(deepstack))


def without_images(stream: Stream) -> Stream:
    """Drops all image tokens; the rest moves together and is numbered anew."""
    kept = ~stream.is_image
    count = int(kept.sum())
    positions = torch.arange(count)
    positions = positions.expand(3, 1, -1) if stream.positions.dim() == 3 else positions[None]
    none = torch.zeros(count, dtype=torch.bool)
    left = int(kept[: stream.prompt_length].sum())
    return Stream(stream.embeds[kept], positions, none, none, left)


def walk(
    model: Any,
    stream: Stream,
    var: VarRule | None = None,
    vhr: VhrRule | None = None,
    text: dict[int, Tensor] | None = None,
) -> Truth:
    """Every layer in turn."""
    decoder = model.model.language_model
    truth = Truth()
    x = stream.embeds
    cos, sin = (part[0].double() for part in decoder.rotary_emb(x[None], stream.positions))
    for index, layer in enumerate(decoder.layers):
        x = _enter(layer, x)
        heads = _attend(
            layer.self_attn, norm(layer.input_layernorm, x), cos, sin, index, x, stream, var, truth
        )
        last = heads[stream.prompt_length - 1]
        truth.outputs[index] = last.clone()
        if vhr is not None and text and index in vhr.layers:
            for head in _choose(last, text[index], vhr, index, truth):
                heads[:, head] = heads[:, head] * vhr.alpha
        x = x + layer.self_attn.o_proj(heads.reshape(len(x), -1))
        x = x + layer.mlp(norm(layer.post_attention_layernorm, x))
        if index < len(stream.deepstack):
            x = x.clone()
            x[stream.is_image] += stream.deepstack[index].double()
    truth.logits = model.lm_head(norm(decoder.norm, x))
    return truth


def norm(module: Any, x: Tensor) -> Tensor:
    """Root-mean-square normalisation without a detour through float32."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + module.variance_epsilon) * module.weight


def _enter(layer: Any, x: Tensor) -> Tensor:
    """Applies what a test does to the input of a layer; see `oracle_setup.massive_at`."""
    change = getattr(layer, "oracle_input", None)
    return x if change is None else change(x[None])[0]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos[:, None] + torch.cat((-x[..., half:], x[..., :half]), -1) * sin[:, None]


def _attend(
    attention: Any,
    h: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: int,
    x: Tensor,
    stream: Stream,
    var: VarRule | None,
    truth: Truth,
) -> Tensor:
    """Head outputs `(length, heads, head_dim)`."""
    length, width = len(h), attention.head_dim
    q = attention.q_proj(h).view(length, -1, width)
    k = attention.k_proj(h).view(length, -1, width)
    v = attention.v_proj(h).view(length, -1, width)
    if hasattr(attention, "q_norm"):
        q, k = norm(attention.q_norm, q), norm(attention.k_norm, k)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    sinks: set[int] = set()
    if var is not None and index in var.layers:
        sinks = truth.sinks[index] = {
            position
            for position in sinks_of(x, var)
            if position < stream.prompt_length or position in stream.later_prompts
        }
        truth.rows[index] = set()
    out = torch.empty_like(q)
    for head in range(q.shape[1]):
        shared = head // (q.shape[1] // k.shape[1])
        scores = q[:, head] @ k[:, shared].T / width**0.5
        future = torch.ones(length, length).triu(1).bool()
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        if var is not None and index in var.layers:
            for row in _queries(stream):
                truth.candidates += 1
                new = redistributed(weights[row], sinks, stream.is_patch, var)
                if new is not None:
                    truth.rows[index].add((head, row))
                    weights[row] = new
        out[:, head] = weights @ v[:, shared]
    return out


def sinks_of(x: Tensor, var: VarRule) -> set[int]:
    """Positions whose massive activation is large beside their root mean square."""
    found = set()
    for position, vector in enumerate(x):
        rms = ((vector * vector).mean() + 1e-6).sqrt()
        if max(abs(float(vector[dim])) for dim in var.sink_dims) / float(rms) >= var.tau:
            found.add(position)
    return found


def _queries(stream: Stream) -> list[int]:
    """Text after the first image, and what is generated."""
    images = stream.is_image.nonzero().flatten().tolist()
    if not images:
        return []
    return [row for row in range(images[0], len(stream.is_image)) if not stream.is_image[row]]


def redistributed(row: Tensor, sinks: set[int], is_patch: Tensor, var: VarRule) -> Tensor | None:
    """One row of weights after redistribution, or None if it is left alone."""
    patches = [j for j in range(len(row)) if is_patch[j]]
    if var.require_visual_sink and not any(j in sinks for j in patches):
        return None
    plain = [j for j in patches if j not in sinks]
    mass = sum(float(row[j]) for j in patches)
    gain = sum(float(row[j]) for j in plain)
    if mass < var.mass_floor or gain == 0 or gain / mass < var.rho:
        return None
    budget = var.removed_fraction * sum(float(row[j]) for j in sinks)
    new = row.clone()
    for j in sinks:
        new[j] = row[j] * (1 - var.removed_fraction)
    for j in plain:
        new[j] = row[j] + budget * row[j] / gain
    return new


def _choose(image: Tensor, text: Tensor, vhr: VhrRule, index: int, truth: Truth) -> set[int]:
    """The heads of one layer to scale, from `(heads, head_dim)` with and without the image."""
    distance = [float(((a - b) ** 2).sum()) for a, b in zip(image, text)]
    divergence = [d if vhr.vhd_power == 2 else d**0.5 for d in distance]
    loudness = [float((b**2).sum()) for b in text]
    truth.divergence[index] = list(divergence)
    truth.outliers[index] = outliers(divergence, loudness, vhr)
    kept = [0.0 if h in truth.outliers[index] else value for h, value in enumerate(divergence)]
    median = sorted(kept)[(len(kept) - 1) // 2]
    truth.heads[index] = {h for h, value in enumerate(kept) if value > median}
    return truth.heads[index]


def outliers(divergence: list[float], loudness: list[float], vhr: VhrRule) -> set[int]:
    """Heads that grow loud when the image goes."""
    if not vhr.outlier_filter or (vhr.std_guard and spread(divergence)[1] <= 1):
        return set()
    (d_mean, d_std), (t_mean, t_std) = spread(divergence), spread(loudness)
    return {
        h for h, (d, t) in enumerate(zip(divergence, loudness)) if d > d_mean + d_std and t > t_mean + t_std
    }


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and unbiased standard deviation."""
    mean = sum(values) / len(values)
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
