"""Views of recorded attention that help people see, each a pure function with its formula and source.

No view is causal proof: attention says where a model looks, not what it would have said without it. For that, see
`lvlm_attn.maps.occlusion`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, closest, count_of

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps
    from lvlm_attn.maps.layer_key import LayerKey

VAR_TAU = 20.0
"""From which score on VAR takes a position for a sink (arXiv 2503.03321, section 3)."""


def sink_columns(weights: Tensor, visible: Tensor, factor: float = 5.0, share: float = 0.9) -> Tensor:
    """Which keys nearly every query attends to, whatever it is about.

    Key j is a sink of a layer if, of the queries i that may attend to it, at least `share` have
    `mean over heads of w_ij >= factor / n_i`, with n_i the number of keys that query i may attend to: `factor` times
    what an even spread would give it.

    Source: the test is ours; that a sink is a key which receives much from all queries is how Xiao et al. (arXiv
    2309.17453) and Gu et al. (arXiv 2410.10781, section 3, with a threshold on the mean) describe it.

    Args:
        weights: `(batch, heads, rows, keys)`.
        visible: `(batch, rows, keys)`, which keys a row may attend to; all False in rows that are missing.
        factor: how many times the even share.
        share: how many of the queries.

    Returns:
        `(batch, keys)`.

    Example:
        >>> weights = torch.tensor([[[[0.9, 0.05, 0.05], [0.9, 0.0, 0.1]]]])
        >>> sink_columns(weights, torch.ones(1, 2, 3, dtype=torch.bool), factor=2).tolist()
        [[True, False, False]]
    """
    even = 1 / visible.sum(-1, keepdim=True).clamp(min=1)
    is_high = (weights.mean(1) >= factor * even) & visible
    seen = visible.sum(1)
    return (seen > 0) & (is_high.sum(1) >= share * seen)


def without_keys(weights: Tensor, is_removed: Tensor) -> Tensor:
    """`w_ij` with 0 at removed keys; what is left is not scaled up, so that numbers stay comparable.

    Args:
        weights: `(batch, heads, rows, keys)`.
        is_removed: `(batch, keys)`.
    """
    return weights.masked_fill(is_removed[:, None, None, :], 0.0)


def relative(weights: Tensor, others: Tensor, is_row: Tensor) -> Tensor:
    """What is special about each row: `w_ij - (1 / T) sum_t w_tj`, the weight minus its mean over all recorded rows.

    Positive where a token attends more than tokens usually do, negative where less; sinks, which all tokens share,
    cancel.

    Source: ours, for one answer; dividing by the attention of another prompt instead is `contrast`.

    Args:
        weights: `(batch, heads, rows, keys)`.
        others: `(batch, heads, all rows, keys)`, whose mean is taken off.
        is_row: `(batch, all rows)`, False at rows that are missing.
    """
    keep = is_row[:, None, :, None].to(others)
    return weights - (others * keep).sum(2, keepdim=True) / keep.sum(2, keepdim=True).clamp(min=1)


def contrasted(weights: Tensor, neutral: Tensor, lam: float = 1e-8) -> Tensor:
    """`w_ij / (g_j + lam)`, with w and g the means over heads, g of a prompt that asks for nothing in particular.

    Above 1 where this token attends more than the neutral prompt does. Heads are averaged before they are divided: the
    mean of their ratios would be that of the heads which ignore a patch. Layers and tokens are divided each by itself.

    Source: CARVE (Ge et al., arXiv 2509.06461, section 4), whose `lam` this is and which adds up the ratios of layers,
    where maps take their mean; the same ratio, with a generic instruction, in Zhang et al. (arXiv 2502.17422).

    Args:
        weights: `(batch, heads, rows, keys)`.
        neutral: `(batch, heads, keys)`.
        lam: keeps empty keys from dividing by 0.

    Returns:
        `(batch, 1, rows, keys)`.

    Example:
        >>> weights, neutral = torch.tensor([[[[0.1]], [[0.5]]]]), torch.tensor([[[0.1], [0.2]]])
        >>> contrasted(weights, neutral, lam=0.0)  # 0.3 / 0.15, not the mean of 1 and 2.5
        tensor([[[[2.]]]])
    """
    return weights.mean(1, keepdim=True) / (neutral.mean(1, keepdim=True)[:, :, None] + lam)


def rollout(layers: Sequence[Tensor], residual: float = 0.5) -> Tensor:
    """Attention followed through the layers: `R_l = (a I + (1 - a) W_l) R_{l-1}`, with `R_0 = I`.

    Source: Abnar and Zuidema (arXiv 2005.00928), equation 1, where a = 0.5; W is the mean over heads. Rows sum to 1.

    Args:
        layers: `(length, length)` per layer, from the first on; rows of padding are 0.
        residual: a, the share that passes a layer by.

    Returns:
        `(length, length)`.

    Example:
        >>> rollout([torch.tensor([[1.0, 0.0], [0.5, 0.5]])] * 2)
        tensor([[1.0000, 0.0000],
                [0.4375, 0.5625]])
    """
    length = layers[0].shape[0]
    identity = torch.eye(length, dtype=layers[0].dtype)
    rolled = identity
    for weights in layers:
        rolled = residual * rolled + (1 - residual) * (weights @ rolled)
    return rolled


# Views of AttentionMaps.


def visible_keys(maps: AttentionMaps) -> Tensor:
    """`(batch, rows, keys)`: valid keys up to each query; False in rows that are missing."""
    keys = torch.arange(maps.layout.length)
    is_before = keys[None, None] <= maps.rows[..., None]
    return is_before & maps.layout.is_valid[:, None] & (maps.rows >= 0)[..., None]


def find_sinks(maps: AttentionMaps, tau: float | None = None, factor: float = 5.0) -> dict[LayerKey, Tensor]:
    """Which keys are sinks, by layer `(batch, keys)`.

    Where sink scores were recorded (`la.record(sinks=True)`), VAR's test decides: a score of at least `tau`, for which
    None takes VAR's own. Else it is `sink_columns`, over all rows that were recorded.

    Raises:
        LvlmAttnError: without scores, if there are fewer than four rows to tell a sink from what they are about.
    """
    whole = maps.parent or maps
    if maps.sink_scores:
        tau = _tau(maps, tau)
        return {layer: maps.sink_scores[layer] >= tau for layer in maps.layers if layer in maps.sink_scores}
    if int((whole.rows >= 0).sum(1).min()) < 4:
        raise LvlmAttnError(
            f"Sinks cannot be told from {count_of(len(whole), 'row')}; record more rows (rows='prompt'), or their "
            f"scores (la.record(sinks=True))."
        )
    visible = visible_keys(whole)
    return {layer: sink_columns(whole.weights[layer], visible, factor) for layer in maps.layers}


def _tau(maps: AttentionMaps, tau: float | None) -> float:
    return float(maps.meta.get("sink_tau", VAR_TAU)) if tau is None else tau


def _no_sinks(maps: AttentionMaps, tau: float | None = None, factor: float = 5.0) -> AttentionMaps:
    sinks = find_sinks(maps, tau, factor)
    weights = {
        layer: without_keys(value, sinks[layer]) if layer in sinks else value
        for layer, value in maps.weights.items()
    }
    test = (
        f"VAR's sink score >= {_tau(maps, tau):g}"
        if maps.sink_scores
        else f"every query pays >= {factor:g} even shares"
    )
    return _shown(maps, weights, "no_sinks", "attention weight", f"sinks removed ({test})")


def _relative(maps: AttentionMaps) -> AttentionMaps:
    whole = maps.parent or maps
    if int((whole.rows >= 0).sum(1).min()) < 2:
        raise LvlmAttnError("The view 'relative' compares a token with others; record more than one row.")
    is_row = whole.rows >= 0
    weights = {layer: relative(value, whole.weights[layer], is_row) for layer, value in maps.weights.items()}
    note = f"minus the mean over {len(whole)} tokens"
    return _shown(maps, weights, "relative", "attention weight above the mean", note)


def _contrast(maps: AttentionMaps, neutral: AttentionMaps | None = None, lam: float = 1e-8) -> AttentionMaps:
    if neutral is None:
        raise LvlmAttnError(
            "The view 'contrast' needs maps of a neutral prompt; pass neutral=, recorded with the same picture and, "
            "for example, 'Write a general description of the image.'"
        )
    if maps.layers != neutral.layers or maps.heads != neutral.heads or maps.batch != neutral.batch:
        raise LvlmAttnError(
            "The neutral maps hold other samples, layers or heads; record both with the same la.record."
        )
    ours, theirs = maps.layout.is_patch, neutral.layout.is_patch
    if maps.layout.grids != neutral.layout.grids:
        raise LvlmAttnError("The neutral maps are of other pictures; contrast needs the same ones.")
    weights = {}
    for layer, value in maps.weights.items():
        keep = (neutral.rows >= 0)[:, None, :, None].to(value)
        mean = (neutral.weights[layer] * keep).sum(2) / keep.sum(2).clamp(min=1)
        new = torch.zeros_like(value[:, :1])
        for row in range(maps.batch):
            here = value[row : row + 1, :, :, ours[row]]
            new[row : row + 1, :, :, ours[row]] = contrasted(here, mean[row : row + 1, :, theirs[row]], lam)
        weights[layer] = new
    asked: Sequence[Any] = neutral.meta.get("prompts") or ()
    note = "divided by " + (
        f"the neutral prompt “{asked[0]}”" if len(set(asked)) == 1 else "a neutral prompt"
    )
    shown = _shown(maps, weights, "contrast", "ratio to the neutral prompt", note)
    if len(maps.heads) < 2:
        return shown
    return replace(shown, heads=(), extra={}, meta={**shown.meta, "averaged_heads": len(maps.heads)})


def _rollout(maps: AttentionMaps, residual: float = 0.5) -> AttentionMaps:
    whole = maps.parent or maps
    whole._lone("The view 'rollout'")
    length = whole.layout.length
    row_at = {position: row for row, position in enumerate(whole.rows[0].tolist())}
    valid = whole.layout.is_valid[0].nonzero().flatten().tolist()
    if any(position not in row_at for position in valid) or not all(
        isinstance(key, int) for key in whole.layers
    ):
        raise LvlmAttnError(
            "The view 'rollout' follows every position through the layers; record with rows='all', reduce='heads'."
        )
    layers = []
    for layer in whole.layers:
        full = torch.zeros(length, length, dtype=torch.float64)
        full[valid] = whole.weights[layer][0].double().mean(0)[[row_at[position] for position in valid]]
        layers.append(full)
    rolled = rollout(layers, residual)[maps.rows[0]].float()[None, None]
    shown = _shown(maps, {"rollout": rolled}, "rollout", "share of the rollout", "rollout through the layers")
    return replace(shown, heads=(), extra={}, sink_scores={})


VIEWS: dict[str, Callable[..., AttentionMaps]] = {
    "no_sinks": _no_sinks,
    "relative": _relative,
    "contrast": _contrast,
    "rollout": _rollout,
}


def apply_view(maps: AttentionMaps, name: str, **options: Any) -> AttentionMaps:
    """See `AttentionMaps.view`."""
    known = ("raw", *VIEWS)
    if name not in known:
        raise LvlmAttnError(
            f"There is no view {name!r}.{closest(name, known)} Choose one of {', '.join(known)}."
        )
    if name == maps.view_name:
        return maps
    if maps.view_name != "raw":
        raise LvlmAttnError(f"These maps show {maps.view_name!r} already; make {name!r} from the raw ones.")
    return VIEWS[name](maps, **options)


def _shown(maps: AttentionMaps, weights: dict[Any, Tensor], name: str, unit: str, note: str) -> AttentionMaps:
    meta = {**maps.meta, "view": name, "unit": unit, "view_note": note}
    return replace(maps, weights=weights, meta=meta, parent=None)
