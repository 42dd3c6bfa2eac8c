"""CrossLMM: few image tokens in the sequence, all patches within reach of cross-attention.

Source: Yan et al., "CrossLMM: Decoupling Long Video Sequences from LMMs via Dual Cross-Attention Mechanisms"
(arXiv 2505.17020), section 3. No code and no weights were released, so adapters are the user's own training
(`lvlm_attn.toy.adapter.train` shows one); `CrossLMM.reuse` is an adaptation that needs none.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.families.target import Target
from lvlm_attn.hooks.crosslmm import dual
from lvlm_attn.hooks.crosslmm.adapter import CrossLMMAdapter
from lvlm_attn.hooks.crosslmm.pooling import POOLS
from lvlm_attn.hooks.crosslmm.reach import BRANCHES, SCOPES
from lvlm_attn.hooks.crosslmm.track import SOURCES
from lvlm_attn.interventions.base import Intervention, Situation
from lvlm_attn.interventions.checks import (
    MOST_WORDS,
    is_whole,
    need_choice,
    need_flag,
    need_layers,
    need_number,
    need_softmax_everywhere,
    need_words,
)
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers, select_layers
from lvlm_attn.kernels.extra import ExtraKeys
from lvlm_attn.kernels.visibility import Visibility

if TYPE_CHECKING:
    from collections.abc import Callable


RULES = ("R1", "R2")


@dataclass(frozen=True)
class CrossLMM(Intervention):
    """Pools the patches of every image to a small grid, and lets tokens attend to the un-pooled patches beside it.

    The middle patch of a grid cell takes the mean of the cell's embeddings; the other patches keep their places in the
    sequence, so positions and caches stay as they were, but no token attends to them. How much time that saves is up
    to the attention kernel: the masked rows are still computed, though each attends only to itself. Images are pooled
    one by one, and so are the blocks (small picture, tiles) of one image; newlines between tiles stay as they are.

    Text (T2V) and pooled tokens (V2V) then attend to the un-pooled patches, through trained adapters or through the
    layers' own weights:

    - `CrossLMM(weights="adapter.safetensors")` or `CrossLMM(adapter=...)`, as in the paper: every K-th layer hosts
      a gated cross-attention of each kind after its self-attention. Grid, layers and the rest come from the file.
    - `CrossLMM.reuse(...)`, training-free and not in the paper.

    `CrossLMM()` alone is the bare model in another way of computing it: with `w=1`, source `S2` and all layers, text
    attends exactly as it does without pooling. Entering a wrap says so.

    Args:
        weights: a safetensors file (see `lvlm_attn.hooks.crosslmm.weights`), or `"toy"` for the bundled model's.
        adapter: a `lvlm_attn.hooks.crosslmm.adapter.CrossLMMAdapter`, for training.
        grid: cells from top to bottom and from left to right, one number for both.
        rule: `"R2"`, one softmax over the layer's own keys and the patches' keys, as the model was trained for;
            `"R1"`, a softmax over the patches alone, added `lam` times.
        source: where the patches' keys and values come from: `"S2"`, a full pass over the prompt with all patches
            (exact, saves nothing in prefill); `"S1"`, patches that go through the layers and attend only to themselves;
            `"S0"`, the embeddings at every layer.
        w: for `R2`, the weight of the patches against that of the pooled tokens, in [0, 1]: logarithms of w and
            of 1 - w are added to the scores of the two. With 0 there are pooled tokens alone. With 1, `S2` and all
            layers, text attends exactly as it does without pooling.
        lam: for `R1`, the factor on the output of that softmax; 0 is the pooled model.
        layers: where patches are attended to; None for all.
        pool: `"avg_cells"`, the mean of each cell, or `"bilinear"`.
        branches: `"both"`, `"t2v"` (text alone attends to patches) or `"v2v"` (pooled tokens alone).
        v2v_scope: `"global"`, pooled tokens attend to their own image or frame and earlier ones; `"frame"`, their own
            alone.
        causal_images: false lets text and pooled tokens attend to images that stand after them, too.

    Raises:
        LvlmAttnError: if a parameter is out of its range, or given beside `weights` or `adapter`, which fix it.

    Example:
        >>> str(CrossLMM.reuse(grid=(4, 4), w=0.5))
        'crosslmm:grid=[4,4],w=0.5'
    """

    name: ClassVar[str] = "crosslmm"
    needs_image: ClassVar[bool] = True

    weights: str | None = None
    adapter: CrossLMMAdapter | None = field(default=None, compare=False, repr=False)
    grid: tuple[int, int] = (3, 3)
    rule: str = "R2"
    source: str = "S2"
    w: float = 1.0
    lam: float = 0.3
    layers: Layers = None
    pool: str = "avg_cells"
    branches: str = "both"
    v2v_scope: str = "global"
    causal_images: bool = True

    @staticmethod
    def reuse(
        grid: tuple[int, int] | int = (3, 3),
        rule: str = "R2",
        source: str = "S2",
        w: float = 1.0,
        lam: float = 0.3,
        layers: Layers = None,
        **options: Any,
    ) -> CrossLMM:
        """The training-free form, in which the layers' own projections attend to the un-pooled patches.

        Args:
            grid: see `CrossLMM`, as are all others.
            rule: `"R1"` or `"R2"`.
            source: `"S0"`, `"S1"` or `"S2"`.
            w: for `R2`.
            lam: for `R1`.
            layers: where patches are attended to.
            **options: `pool`, `branches`, `v2v_scope`, `causal_images`.

        Example:
            >>> CrossLMM.reuse(rule="R1", source="S1", lam=0.2) == CrossLMM(rule="R1", source="S1", lam=0.2)
            True
        """
        return CrossLMM(
            grid=cast("tuple[int, int]", grid),
            rule=rule,
            source=source,
            w=w,
            lam=lam,
            layers=layers,
            **options,
        )

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", _pair(self.grid))
        need_layers(self)
        for name, known in _CHOICES.items():
            need_choice(self, name, known)
        need_flag(self, "causal_images")
        need_number(self, "w", least=0, most=1)
        need_number(self, "lam", least=0)
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        changed = [
            item.name
            for item in dataclasses.fields(self)
            if item.compare and item.name != "weights" and getattr(self, item.name) != item.default
        ]
        if self.weights is not None and self.adapter is not None:
            raise LvlmAttnError("CrossLMM: weights and adapter are both given; give one of them.")
        if self.weights is not None:
            need_words(self, "weights", remark="give the path of an adapter")
        if self.adapter is not None and not isinstance(self.adapter, CrossLMMAdapter):
            raise LvlmAttnError(
                f"CrossLMM: adapter={shown(self.adapter)} is no "
                f"lvlm_attn.hooks.crosslmm.adapter.CrossLMMAdapter; give the path of a file as weights."
            )
        if (self.weights is not None or self.adapter is not None) and changed:
            raise LvlmAttnError(
                f"CrossLMM: {changed[0]} belongs to CrossLMM.reuse; an adapter brings its own, so leave it out."
            )
        idle = {"R1": "w", "R2": "lam"}[self.rule]
        if idle in changed:
            other = "lam" if idle == "w" else "w"
            raise LvlmAttnError(f"CrossLMM: {idle} has no meaning with rule={self.rule!r}; give {other}.")

    def fit(self, target: Target) -> Self:
        """Loads the adapter, if there is one, and checks it against the model.

        Raises:
            UnsupportedError: if patches cannot be hidden in every layer, if the whole prompt attends to itself, or,
                with an adapter, if the layers do not add their attention to the residual stream as it is.
        """
        need_softmax_everywhere(self, target)
        dual.refuse_shape(target, self.weights is not None or self.adapter is not None)
        if self.weights is None and self.adapter is None:
            layers = select_layers(self.layers, target.layers, self.title)
            if self._is_bare_model(len(layers) == target.layers):
                warnings.warn(f"{self.title}: {_BARE}", stacklevel=2)
            fitted = dataclasses.replace(self, layers=layers if self.layers is not None else None)
            plan = dual.Plan(
                target=target,
                adapter=None,
                hosted=layers if (self.lam if self.rule == "R1" else self.w) > 0 else (),
                grid=self.grid,
                pool=self.pool,
                branches=self.branches,
                v2v_scope=self.v2v_scope,
                causal_images=self.causal_images,
                t2v_rows="all_text",
                source=self.source,
            )
        else:
            fitted = dataclasses.replace(self)
            plan = dual.adapter_plan(target, self.weights, self.adapter)
        object.__setattr__(fitted, "_plan", plan)
        return fitted

    def _is_bare_model(self, has_all_layers: bool) -> bool:
        """Whether text attends exactly as it does without pooling."""
        reads_all = self.rule == "R2" and self.source == "S2" and self.w == 1 and has_all_layers
        return reads_all and self.branches != "v2v" and self.causal_images

    @property
    def plan(self) -> dual.Plan:
        """What `fit` made of the parameters and a model."""
        found = self.__dict__.get("_plan")
        if found is None:
            raise LvlmAttnError("CrossLMM: this object is not on a model; pass it to lvlm_attn.wrap.")
        return cast("dual.Plan", found)

    def layers_at(self, site: str, target: Target) -> Sequence[int]:
        """Pooled-away patches are masked at every layer; patches are attended to at the hosting ones."""
        if site == "visibility":
            return range(target.layers)
        if site not in ("extra_keys", "modules"):
            return ()
        is_used = (site == "modules") == (self.plan.adapter is not None)
        return self.plan.hosted if is_used else ()

    def refuse(self, situation: Situation) -> str | None:
        """A prompt that is processed in pieces cannot be pooled."""
        if situation == Situation.CHUNKED_PREFILL:
            return (
                "CrossLMM pools whole images, so the prompt must be processed in one pass; pass "
                "prefill_chunk_size=None."
            )
        return None

    def edit_embeds(self, context: Layer, embeds: Tensor) -> Tensor | None:
        """Keeps the patches of a prompt and puts pooled ones in their place."""
        return dual.pool_call(self.plan, context.call, embeds, context.memory, context.stats)

    def visibility(self, layer: Layer) -> Visibility | None:
        """Hides the patches that pooling leaves out."""
        return dual.hidden_patches(layer.memory, layer.call, self.plan)

    def extra_keys(self, layer: Layer) -> ExtraKeys | None:
        """Gives the patches' keys and values to text and to pooled tokens."""
        patches = layer.memory.get("patches")
        if patches is None or layer.index not in patches.keys_values:
            return None
        key, value = patches.keys_values[layer.index]
        runs = dual.runs_of(self.plan, layer.call, layer.memory)
        if self.rule == "R1":
            return ExtraKeys(key, value, patches.position, runs.first, runs.stop, gate=self.lam)
        is_pooled = dual.pooled_of(layer.memory, layer.call, self.plan)
        less = math.log1p(-self.w) if self.w < 1 else -math.inf
        own_bias = torch.zeros(is_pooled.shape, device=is_pooled.device).masked_fill(is_pooled, less)
        return ExtraKeys(
            key, value, patches.position, runs.first, runs.stop, bias=math.log(self.w), own_bias=own_bias
        )

    def modules(self, layer: Layer) -> Callable[[Tensor], Tensor | None] | None:
        """Runs the two branches of an adapter after the attention of a hosting layer."""
        if layer.memory.get("patches") is None:
            return None
        return dual.branches_at(self.plan, layer)

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Per hosting layer: patches and pooled tokens per sample with an image, and the gates of an adapter."""
        if "read" not in stats:
            return []
        samples, patches, tokens = stats["read"].tolist()
        counts = {"patches": patches / max(samples, 1), "pooled_tokens": tokens / max(samples, 1)}
        adapter = self.plan.adapter
        if not self.plan.hosted:
            return [{"layer": "none", **counts}]
        if adapter is None and self._is_bare_model(len(self.plan.hosted) == self.plan.target.layers):
            return [{"layer": "all, text as in the bare model", **counts}]
        return [
            {
                "layer": layer,
                **counts,
                **{f"gate_{name}": gate for name, gate in (adapter.gates(layer) if adapter else {}).items()},
            }
            for layer in self.plan.hosted
        ]

    def __str__(self) -> str:
        """The canonical string; an adapter that is no file has none that `parse` reads."""
        return "crosslmm:adapter=<in memory>" if self.adapter is not None else super().__str__()


_BARE = (
    "with w=1, source S2 and all layers text attends as it does without pooling, so the answers are the bare "
    "model's; give weights, or another w, source, layers or rule."
)

_CHOICES: dict[str, tuple[str, ...]] = {
    "rule": RULES,
    "source": SOURCES,
    "pool": POOLS,
    "branches": BRANCHES,
    "v2v_scope": SCOPES,
}


def _pair(grid: Any) -> tuple[int, int]:
    sides = (grid, grid) if is_whole(grid, 1) else grid
    is_pair = isinstance(sides, (tuple, list)) and len(sides) == 2
    if not is_pair or not all(is_whole(side, 1, MOST_WORDS) for side in sides):
        raise LvlmAttnError(
            f"CrossLMM: grid={shown(grid)} must be two numbers from 1 to {MOST_WORDS}, cells from top to bottom and "
            f"from left to right."
        )
    return (int(sides[0]), int(sides[1]))
