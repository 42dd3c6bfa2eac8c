"""The steps of CrossLMM in one prompt: keep the patches, pool, mask, say who attends to what, attend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families.devices import execution_device
from lvlm_attn.families.target import Target
from lvlm_attn.hooks.crosslmm.adapter import BRANCHES, CrossLMMAdapter
from lvlm_attn.hooks.crosslmm.pooling import pool_features, pooled_positions
from lvlm_attn.hooks.crosslmm.reach import Runs, join, pooled_runs, text_runs
from lvlm_attn.hooks.crosslmm.reuse import Patches
from lvlm_attn.hooks.crosslmm.track import image_keys, spread
from lvlm_attn.hooks.crosslmm.weights import check_fits, find_weights, load_adapter
from lvlm_attn.interventions.context import Call, Layer
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.visibility import ALL, Visibility

Memory = dict[Any, Any]

# Groups of positions: text after an image (and generated tokens), pooled tokens, hidden patches, all else.
_HIDDEN = 2
_ELSE = 3
_NOT_HIDDEN = (ALL, ALL, 0, ALL)
_TABLE = (_NOT_HIDDEN, _NOT_HIDDEN, (0, 0, 0, 0), (ALL,) * 4)


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything about one CrossLMM on one model; see `lvlm_attn.hooks.crosslmm.method.CrossLMM` for the settings.

    Attributes:
        target: the model.
        adapter: trained branches, or None to reuse the layers' own weights.
        hosted: the layers where patches are attended to.
        grid: cells of a block.
        pool: how a cell becomes a token.
        branches: which of text and pooled tokens attend to patches.
        v2v_scope: what pooled tokens attend to.
        causal_images: whether nothing attends to an image after it.
        t2v_rows: which text attends to patches.
        source: where keys and values of patches come from without an adapter.
    """

    target: Target
    adapter: CrossLMMAdapter | None
    hosted: tuple[int, ...]
    grid: tuple[int, int]
    pool: str
    branches: str
    v2v_scope: str
    causal_images: bool
    t2v_rows: str
    source: str


def adapter_plan(target: Target, weights: str | None, adapter: CrossLMMAdapter | None) -> Plan:
    """The plan of an adapter, read from a file or given.

    Raises:
        LvlmAttnError: if it is no adapter, or one for a model of another shape.
    """
    if weights is not None:
        path = find_weights(weights)
        adapter = load_adapter(path, cast("Any", target.model).dtype)
        check_fits(adapter.shape, target, f"in {str(path)!r}")
        _spread_out(adapter, target)
    assert adapter is not None
    shape = adapter.shape
    check_fits(shape, target, "given")
    missing = [
        layer
        for layer in shape.hosted
        if not isinstance(getattr(target.parts.layers[layer], _NORM, None), nn.Module)
    ]
    if missing:
        raise UnsupportedError(
            f"CrossLMM: layer {missing[0]} of this {target.family.title} has no {_NORM}, where the branches get "
            f"their queries; use CrossLMM.reuse."
        )
    return Plan(
        target,
        adapter,
        shape.hosted,
        shape.grid,
        shape.pool,
        "both",
        shape.v2v_scope,
        shape.causal_images,
        shape.t2v_rows,
        "",
    )


def refuse_shape(target: Target, has_adapter: bool) -> None:
    """Refuses models in which attending to patches means something else.

    Raises:
        UnsupportedError: naming the family and the reason.
    """
    title = target.family.title
    if not target.family.has_grid:
        raise UnsupportedError(
            f"CrossLMM pools cells of rows and columns, and those of {title}'s image tokens are not known; use VMTC or "
            f"another method without a grid."
        )
    if target.family.late_features:
        raise UnsupportedError(
            f"CrossLMM: {title} adds image features in several layers, where pooled tokens would go without; use a "
            f"method that keeps all image tokens."
        )
    mask = target.family.mask_of(cast("Any", target.parts.base).config)
    if mask == "chunked":
        raise UnsupportedError(
            f"CrossLMM: {title} attends within chunks, which patches from elsewhere would get around; use a model that "
            f"attends to the whole prompt."
        )
    if mask == "bidirectional_prompt":
        raise UnsupportedError(
            f"CrossLMM: in {title} text before an image attends to it too, and which pooled or un-pooled patches it "
            f"would attend to then is not defined; use a model that attends causally or within images."
        )
    if mask == "bidirectional_vision":
        raise UnsupportedError(
            f"CrossLMM: in {title} the markers before an image attend to its patches and to those of later images, and "
            f"which pooled or un-pooled patches they would attend to then is not defined; use a model that attends "
            f"causally or within images."
        )
    if has_adapter and not target.family.modules_fit:
        raise UnsupportedError(
            f"CrossLMM: layers of {title} norm, scale or run their attention beside the feed-forward block before "
            f"they add it, so the branches of an adapter have no place after it; use CrossLMM.reuse."
        )


_NORM = "post_attention_layernorm"


def _spread_out(adapter: CrossLMMAdapter, target: Target) -> None:
    """Puts the branches where their layers are."""
    for layer in adapter.shape.hosted:
        place = execution_device(target.parts.layers[layer])
        adapter.dcal[str(layer)].to(place)


def pool_call(plan: Plan, call: Call, embeds: Tensor, memory: Memory, stats: Memory) -> Tensor | None:
    """Keeps the patches of a call, then pools them.

    Args:
        plan: what to do.
        call: the call.
        embeds: `(batch, queries, hidden)`, images in place.
        memory: of the prompt; gets `"patches"`.
        stats: of the wrap; gets `"read"`: samples with an image, patches and pooled tokens.

    Returns:
        Embeddings with pooled ones at the places that stand for a cell, or None where there is no patch.

    Raises:
        UnsupportedError: if an image comes after the first turn and keys are to come from a full pass.
    """
    if not call.is_prompt:
        return None
    layout, span = call.layout, slice(call.start, call.length)
    is_patch = layout.is_patch[:, span]
    rows = Rows.of(is_patch) if bool(is_patch.any()) else None
    if rows is None:
        return None
    if call.start and plan.source == "S2" and plan.hosted:
        raise UnsupportedError(
            "CrossLMM: source='S2' processes the whole prompt in one pass, and this image comes in a later turn; use "
            "source='S1', or begin with an empty cache."
        )
    features, keys = None, {}
    if plan.adapter is not None:
        index = rows.index.to(embeds.device)[..., None].expand(-1, -1, embeds.shape[2])
        features = plan.adapter.source(embeds.gather(1, index))
    elif plan.hosted:
        keys = image_keys(plan.target, call, embeds, rows, plan.source, plan.hosted)
    found = Patches(rows.is_touched, rows.index + call.start, features, keys)
    before = memory.get("patches")
    memory.clear()
    memory["patches"] = found if before is None else before.joined(found)
    is_pooled = pooled_of(memory, call, plan)[:, span]
    counts = torch.stack((is_patch.any(1).sum(), is_patch.sum(), is_pooled.sum()))
    stats["read"] = stats["read"] + counts if "read" in stats else counts
    _pool_deepstack(plan, call)
    return pool_features(embeds, layout, call.start, plan.grid, plan.pool)


def _pool_deepstack(plan: Plan, call: Call) -> None:
    """Pools the features that some families add after their first layers, too."""
    given, mask = call.inputs.get("deepstack_visual_embeds"), call.inputs.get("visual_pos_masks")
    if given is None or mask is None:
        return
    call.inputs["deepstack_visual_embeds"] = [
        pool_features(spread(item, mask), call.layout, call.start, plan.grid, plan.pool)[mask.to(item.device)]
        for item in given
    ]


def pooled_of(memory: Memory, call: Call, plan: Plan) -> Tensor:
    """`(batch, positions)` of the prompt so far, True where pooled tokens stand."""
    known = memory.get("pooled")
    if known is None or known[0] is not call.prompt:
        known = memory["pooled"] = (call.prompt, pooled_positions(call.prompt, plan.grid))
    return cast(Tensor, known[1])


def hidden_patches(memory: Memory, call: Call, plan: Plan) -> Visibility | None:
    """The mask under which nobody attends to patches that pooling left out, and these attend only to themselves."""
    known = memory.get("visibility")
    if known is None or known[0] is not call.prompt:
        known = memory["visibility"] = (call.prompt, _visibility(pooled_of(memory, call, plan), call))
    return cast("Visibility | None", known[1])


def _visibility(is_pooled: Tensor, call: Call) -> Visibility | None:
    layout = call.prompt
    is_hidden = layout.is_patch & ~is_pooled
    if not bool(is_hidden.any()):
        return None
    # Queries with no masked patch before them lose nothing, so they need not be computed again.
    is_behind = layout.is_valid & (is_hidden.cumsum(1) > 0)
    group = torch.where(is_behind, is_pooled.long(), _ELSE)
    group = torch.where(is_pooled, 1, group)
    return Visibility(torch.where(is_hidden, _HIDDEN, group), _TABLE)


def runs_of(plan: Plan, call: Call, memory: Memory) -> Runs:
    """What every query of a call attends to, worked out once per call."""
    if not _is_of(call, memory.get("runs")):
        memory["runs"] = (call.prompt, call.start, call.queries, _runs(plan, call, memory))
    return cast(Runs, memory["runs"][-1])


def _is_of(call: Call, known: tuple[Any, ...] | None) -> bool:
    """Whether something was worked out for this call. The call itself is not kept, for it holds embeddings."""
    return known is not None and known[0] is call.prompt and known[1:3] == (call.start, call.queries)


def _runs(plan: Plan, call: Call, memory: Memory) -> Runs:
    text, vision = (plan.branches in ("both", name) for name in ("t2v", "v2v"))
    if not call.is_prompt:
        total = memory["patches"].is_real.sum(1, keepdim=True).expand(-1, call.queries)
        return Runs(torch.zeros_like(total), total * text)
    layout, start, queries = call.layout, call.start, call.queries
    nothing = torch.zeros(layout.batch, queries, dtype=torch.long, device=layout.device)
    runs = Runs(nothing, nothing)
    if text:
        runs = text_runs(layout, start, queries, plan.t2v_rows, plan.causal_images)
    if vision:
        is_pooled = torch.zeros_like(layout.is_patch)
        known = pooled_of(memory, call, plan)[:, : layout.length]
        is_pooled[:, : known.shape[1]] = known
        own = pooled_runs(layout, is_pooled, start, queries, plan.v2v_scope, plan.causal_images)
        runs = join(runs, own)
    return runs


def branches_at(plan: Plan, layer: Layer) -> Callable[[Tensor], Tensor | None]:
    """What the two branches of a hosting layer add to the residual stream `(batch, queries, hidden)`."""
    memory, call = layer.memory, layer.call
    patches, adapter = cast(Patches, memory["patches"]), cast(CrossLMMAdapter, plan.adapter)
    norm = cast("nn.Module", getattr(plan.target.parts.layers[layer.index], _NORM))

    def add(hidden: Tensor) -> Tensor | None:
        total: Tensor | None = None
        for name in BRANCHES:
            runs, rows = _readers(plan, call, memory, name, hidden.device)
            if rows is None:
                continue
            branch = adapter.branch(layer.index, name)
            kept = ("keys", layer.index, name)
            if kept not in memory:
                memory[kept] = branch.keys_values(cast(Tensor, patches.features).to(hidden.device))
            index = rows.index[..., None].expand(-1, -1, hidden.shape[2])
            column = torch.arange(patches.is_real.shape[1], device=hidden.device)
            first, stop = (
                end.to(hidden.device).gather(1, rows.index)[..., None] for end in (runs.first, runs.stop)
            )
            allowed = (column >= first) & (column < stop)
            found = branch(norm(hidden.gather(1, index)), memory[kept], allowed).to(hidden.dtype)
            found = torch.where(rows.is_touched[..., None], found, 0)
            added = torch.zeros_like(hidden).scatter(1, index, found)
            total = added if total is None else total + added
        return total

    return add


def _readers(
    plan: Plan, call: Call, memory: Memory, name: str, device: torch.device
) -> tuple[Runs, Rows | None]:
    """The queries that attend through a branch, packed once per call."""
    runs = runs_of(plan, call, memory)
    kept = ("rows", name, device)
    if not _is_of(call, memory.get(kept)):
        is_vision = torch.zeros_like(runs.attends)
        if call.is_prompt:
            is_vision = call.layout.is_patch[:, call.start : call.length]
        attends = runs.attends & (is_vision if name == "v2v" else ~is_vision)
        rows = Rows.of(attends.to(device)) if bool(attends.any()) else None
        memory[kept] = (call.prompt, call.start, call.queries, rows)
    return runs, cast("Rows | None", memory[kept][-1])
