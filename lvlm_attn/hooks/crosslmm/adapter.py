"""Dual cross-attention: text and pooled image tokens attend to the un-pooled ones through weights of their own.

Source: Yan et al., "CrossLMM: Decoupling Long Video Sequences from LMMs via Dual Cross-Attention Mechanisms"
(arXiv 2505.17020), section 3.2, equations 4 to 10. No code or weights were released. Where the paper is silent or
contradicts itself, this is done: both branches are shaped like the self-attention of their layer, output projection
included, which is the layout whose size matches the paper's count of parameters; keys and values come from the
projected patches; there is no feed-forward block and no position encoding; queries come from the norm before
the layer's feed-forward block, because the models here normalise before and not after a block; gates start at 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.hooks.crosslmm.pooling import POOLS
from lvlm_attn.hooks.crosslmm.reach import SCOPES, TEXT_ROWS
from lvlm_attn.interventions.checks import is_whole

BRANCHES = ("v2v", "t2v")


@dataclass(frozen=True)
class AdapterShape:
    """Sizes and settings of an adapter, as its file's metadata holds them.

    Attributes:
        K: every how many decoder layers one is hosted.
        offset: which of each K layers, counted from 0.
        layers: decoder layers of the model.
        hidden: width of the residual stream.
        n_heads: query heads.
        n_kv: key-value heads.
        head_dim: width of a head.
        qkv_bias: whether the projections of queries, keys and values have a bias.
        o_bias: whether the output projection has one.
        grid: cells from top to bottom and from left to right that every block of patches is pooled to.
        pool: see `lvlm_attn.hooks.crosslmm.pooling.pool_block`.
        v2v_scope: `"global"`, pooled tokens attend to all images that are not after their own; `"frame"`, only
            their own image.
        causal_images: whether nothing attends to an image that stands after it.
        t2v_rows: which text attends to patches; see `lvlm_attn.hooks.crosslmm.reach.text_runs`.
        kv_norm: whether patches are brought to a root mean square of 1 before the key and value projections.
        placement: where the branches act; only `"post_attn"`, after the self-attention of the layer.
        kv_source: what they attend to; only `"projected"`, the patches after the projector.
    """

    K: int
    offset: int
    layers: int
    hidden: int
    n_heads: int
    n_kv: int
    head_dim: int
    qkv_bias: bool = False
    o_bias: bool = False
    grid: tuple[int, int] = (3, 3)
    pool: str = "avg_cells"
    v2v_scope: str = "global"
    causal_images: bool = True
    t2v_rows: str = "all_text"
    kv_norm: bool = False
    placement: str = "post_attn"
    kv_source: str = "projected"

    def __post_init__(self) -> None:
        for name, most in _SIZES.items():
            if not is_whole(getattr(self, name), 1, most):
                self._refuse(name, f"must be a whole number from 1 to {most}")
            object.__setattr__(self, name, int(getattr(self, name)))
        if not is_whole(self.offset, 0, self.K - 1):
            self._refuse("offset", f"must be from 0 to K - 1 = {self.K - 1}")
        object.__setattr__(self, "offset", int(self.offset))
        if not self.hosted:
            raise LvlmAttnError(
                f"CrossLMM adapter: K={self.K} with offset={self.offset} hosts none of {self.layers} layers; "
                f"choose a smaller K or offset."
            )
        is_pair = isinstance(self.grid, tuple) and len(self.grid) == 2
        if not is_pair or not all(is_whole(side, 1, 10_000) for side in self.grid):
            self._refuse("grid", "must be two whole numbers from 1 to 10000")
        object.__setattr__(self, "grid", tuple(int(side) for side in self.grid))
        for name in ("qkv_bias", "o_bias", "causal_images", "kv_norm"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "must be true or false")
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                self._refuse(name, f"is not supported; it is one of {', '.join(known)}")

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise LvlmAttnError(f"CrossLMM adapter: {name}={shown(getattr(self, name))} {why}.")

    @property
    def hosted(self) -> tuple[int, ...]:
        """The decoder layers with branches: those whose index divided by `K` leaves `offset`."""
        return tuple(range(self.offset, self.layers, self.K))


_SIZES = {"K": 9_999, "layers": 9_999, "hidden": 2**20, "n_heads": 2**16, "n_kv": 2**16, "head_dim": 2**16}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "pool": POOLS,
    "v2v_scope": SCOPES,
    "t2v_rows": TEXT_ROWS,
    "placement": ("post_attn",),
    "kv_source": ("projected",),
}


class Branch(nn.Module):
    """One gated cross-attention with grouped key-value heads."""

    def __init__(self, shape: AdapterShape):
        super().__init__()
        inner, shared = shape.n_heads * shape.head_dim, shape.n_kv * shape.head_dim
        self.head_dim = shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, inner, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(shape.hidden, shared, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(shape.hidden, shared, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(inner, shape.hidden, bias=shape.o_bias)
        self.gate = nn.Parameter(torch.zeros(1))

    def keys_values(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(batch, kv_heads, patches, head_dim)` of `(batch, patches, hidden)`."""
        patches = patches.to(self.k_proj.weight)
        return self._heads(self.k_proj(patches)), self._heads(self.v_proj(patches))

    def forward(self, hidden: Tensor, keys_values: tuple[Tensor, Tensor], allowed: Tensor) -> Tensor:
        """What is added to the residual stream.

        Args:
            hidden: `(batch, rows, hidden)`, normalised.
            keys_values: of the patches.
            allowed: `(batch, rows, patches)`, True where a row may attend to a patch.

        Returns:
            `(batch, rows, hidden)`; 0 in rows without any patch.
        """
        query = self._heads(self.q_proj(hidden.to(self.q_proj.weight)))
        key, value = keys_values
        attends = allowed.any(-1)
        # No softmax is left empty: rows without any patch attend to all of them, and are set to 0 after it.
        mask = (allowed | ~attends[..., None])[:, None]
        heads = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, enable_gqa=query.shape[1] != key.shape[1]
        )
        found = self.o_proj(heads.transpose(1, 2).flatten(2))
        return torch.where(attends[..., None], self.gate.tanh() * found, 0)

    def _heads(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)


class CrossLMMAdapter(nn.Module):
    """The branches of all hosted layers.

    Its parameters are named `dcal.{layer}.{v2v or t2v}.{q,k,v,o}_proj.{weight or bias}` and
    `dcal.{layer}.{v2v or t2v}.gate`, of shape (1,); what is added is the hyperbolic tangent of the gate times the
    output of the branch.

    Args:
        shape: sizes and settings.

    Example:
        >>> adapter = CrossLMMAdapter.for_model(model, K=2)  # doctest: +SKIP
        >>> with la.wrap(model, la.CrossLMM(adapter=adapter)):  # doctest: +SKIP
        ...     model(**inputs, labels=labels).loss.backward()  # trains the adapter, if the model is frozen
    """

    def __init__(self, shape: AdapterShape):
        super().__init__()
        self.shape = shape
        self.dcal = nn.ModuleDict(
            {str(layer): nn.ModuleDict({name: Branch(shape) for name in BRANCHES}) for layer in shape.hosted}
        )

    @staticmethod
    def for_model(
        model: nn.Module, K: int = 4, offset: int | None = None, *, init: str = "self_attn", **settings: Any
    ) -> CrossLMMAdapter:
        """A fresh adapter for a model, with gates at 0, so that it changes nothing until it is trained.

        Args:
            model: a model of a known family.
            K: every how many layers one is hosted; the paper's best is 4.
            offset: which of each K; None for the last, so that layers K - 1, 2K - 1, ... are hosts.
            init: `"self_attn"` starts the projections from those of the layer's self-attention, `"random"` as
                `torch.nn.Linear` does. The paper does not say.
            **settings: `grid`, `pool`, `v2v_scope`, `causal_images`, `t2v_rows` and `kv_norm` of `AdapterShape`.

        Raises:
            LvlmAttnError: if a setting is out of its range.
        """
        from lvlm_attn.wrapping import target_of

        if init not in ("self_attn", "random"):
            raise LvlmAttnError(f"CrossLMM adapter: init={init!r} must be 'self_attn' or 'random'.")
        target = target_of(model)
        attention = cast("Any", target.parts.attentions[0])
        shape = AdapterShape(
            K=K,
            offset=K - 1 if offset is None else offset,
            layers=target.layers,
            hidden=target.hidden_size,
            n_heads=target.heads,
            n_kv=target.config.num_key_value_heads,
            head_dim=target.head_dim,
            qkv_bias=attention.q_proj.bias is not None,
            o_bias=attention.o_proj.bias is not None,
            **settings,
        )
        adapter = CrossLMMAdapter(shape)
        if init == "self_attn":
            for layer in shape.hosted:
                own = cast("Any", target.parts.attentions[layer])
                for name in BRANCHES:
                    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
                        state = getattr(own, part).state_dict()
                        cast("Any", adapter.branch(layer, name)).get_submodule(part).load_state_dict(state)
        return adapter

    def branch(self, layer: int, name: str) -> Branch:
        """The branch `"v2v"` or `"t2v"` of a hosted layer."""
        return cast(Branch, cast("nn.ModuleDict", self.dcal[str(layer)])[name])

    def source(self, patches: Tensor) -> Tensor:
        """What the key and value projections get, of projected patches `(batch, patches, hidden)`."""
        if not self.shape.kv_norm:
            return patches
        wide = patches.to(torch.promote_types(patches.dtype, torch.float32))
        return rms_norm(wide, wide.shape[-1:], eps=1e-6).to(patches.dtype)

    def gates(self, layer: int) -> dict[str, float]:
        """The factor on each branch of a hosted layer, in (-1, 1)."""
        return {name: float(self.branch(layer, name).gate.detach().tanh()) for name in BRANCHES}
