"""VAR: moves attention from sinks to the patches of the image, in the heads that look at the image.

Source: Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025
(arXiv 2503.03321), sections 3 to 5. Where the paper and its released code differ, the docstring of `VAR` says
what is done here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.checks import need_number
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers, canonical_layers
from lvlm_attn.kernels.spec import KeyClass, Redistribution, class_indicator
from lvlm_attn.measures.sinks import find_sink_dims, known_sink_dims, sink_score

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"removed_fraction": 0.6},
    "code": {"removed_fraction": 0.4, "layers": "2:"},
    "general": {"removed_fraction": 0.6, "rho": 0.8},
    "hallucination": {"removed_fraction": 0.6, "rho": 0.5},
    "vision": {"removed_fraction": 0.6, "rho": 0.9},
}
"""Settings by name. `paper` takes 0.6 of the sinks' weight; `code` is what the released code computes: 0.4, and
the last layer too. `general`, `hallucination` and `vision` are the paper's `rho` for general vision-language
tasks (0.8), hallucination (0.5) and vision-centric tasks (0.9)."""


@dataclass(frozen=True)
class VAR(Intervention):
    """Visual attention redistribution.

    Tokens with a massive activation in a few fixed dimensions are sinks: they draw attention and say nothing
    about the image. In every head and text query that looks at the image, a share of the weight on all sinks
    (the beginning of the text among them) goes to the patches that are no sinks, in proportion to the weight
    they have. Rows keep their sum. Sinks are found in the prompt, per layer, from the input of the layer.

    Prompt queries after the first image and every generated token are treated; image tokens, text before the
    image, and samples without an image keep their bits.

    Args:
        rho: least share of a row's image weight on patches that are no sinks. The paper's convention; the
            released code tests the sink share against a number of the same name, 1 - rho.
        removed_fraction: share of the sinks' weight that is moved. The paper calls it p; the released code's
            p is the share that stays.
        tau: least sink score. It cannot exceed the square root of the hidden size, so with hidden sizes up to
            400 the default becomes `0.3125 * sqrt(hidden_size)`, the same point of the range as 20 is for 4096.
        mass_floor: least weight of a row on patches.
        sink_dims: dimensions of the massive activations. None takes the known ones of the base model, or
            finds them (`lvlm_attn.find_sinks`).
        layers: which layers; None leaves out the first two and the last (of models with up to three, none).
        preset: a named setting (`PRESETS`) for parameters that are left at their defaults.
        require_visual_sink: leave a layer alone where no patch of the sample is a sink, as the released code
            does. False is the paper's formula read literally.

    Raises:
        LvlmAttnError: if a parameter is out of its range or the preset is unknown.

    Example:
        >>> str(VAR(rho=0.8, preset="paper"))
        'var:rho=0.8,removed_fraction=0.6'
    """

    name: ClassVar[str] = "var"
    needs_image: ClassVar[bool] = True

    rho: float = 0.5
    removed_fraction: float = 0.4
    tau: float = 20.0
    mass_floor: float = 0.2
    sink_dims: Sequence[int] | None = None
    layers: Layers = None
    preset: str | None = dataclasses.field(default=None, compare=False)
    require_visual_sink: bool = True

    def __post_init__(self) -> None:
        if self.preset is not None:
            if self.preset not in PRESETS:
                raise LvlmAttnError(
                    f"VAR has no preset {self.preset!r}.{closest(str(self.preset), PRESETS)} "
                    f"Choose {', '.join(PRESETS)}, or leave it out."
                )
            for key, value in PRESETS[self.preset].items():
                if getattr(self, key) == getattr(type(self), key):
                    object.__setattr__(self, key, value)
        need_number(self, "rho", least=0)
        need_number(self, "removed_fraction", least=0, most=1)
        need_number(self, "tau", least=0)
        need_number(self, "mass_floor", least=0, most=1)
        if self.sink_dims is not None:
            dims = (self.sink_dims,) if isinstance(self.sink_dims, (int, str)) else tuple(self.sink_dims)
            if not all(isinstance(dim, int) and not isinstance(dim, bool) for dim in dims):
                raise LvlmAttnError(
                    f"VAR: sink_dims={self.sink_dims!r} must be whole numbers, as in (1415, 2533); leave it out to "
                    f"have them found."
                )
            object.__setattr__(self, "sink_dims", tuple(sorted(set(dims))))
        if not isinstance(self.require_visual_sink, bool):
            raise LvlmAttnError(
                f"VAR: require_visual_sink={self.require_visual_sink!r} must be true or false."
            )
        object.__setattr__(self, "layers", canonical_layers(self.layers))

    def is_neutral(self) -> bool:
        """Whether no weight is ever moved."""
        return self.removed_fraction == 0 or self.rho > 1 or self.sink_dims == ()

    def default_layers(self, target: Target) -> Layers:
        """All but the first two and the last."""
        return "2:-1" if target.layers > 3 else None

    def fit(self, target: Target) -> Self:
        """Chooses the layers and the sink dimensions for a model."""
        fitted = super().fit(target)
        size = target.hidden_size
        outside = [dim for dim in self.sink_dims or () if not 0 <= dim < size]
        if outside:
            raise LvlmAttnError(
                f"VAR: sink dimension {outside[0]} is out of range; the residual stream of this model has {size} "
                f"dimensions, numbered 0 to {size - 1}."
            )
        dims = self.sink_dims
        if dims is None and not self.is_neutral():
            dims = known_sink_dims(target.config)
            if dims is None:
                dims = find_sink_dims(target).dims
        tau = self.tau
        if tau == VAR.tau and tau > math.sqrt(size):
            tau = 0.3125 * math.sqrt(size)
        return dataclasses.replace(fitted, sink_dims=dims, tau=tau, preset=None)

    def observe(self, layer: Layer, hidden: Tensor) -> None:
        """Finds the sinks among the prompt tokens that enter a layer."""
        if not layer.is_prompt:
            return
        layout = layer.layout
        dims = torch.tensor(self.sink_dims, device=hidden.device)
        is_sink = sink_score(hidden, dims) >= self.tau
        is_sink &= layout.is_prompt[:, layer.queries].to(hidden.device)
        before = layer.memory.get(("is_sink", layer.index))
        if before is not None:
            gap = layer.queries.start - before.shape[1]
            is_sink = torch.cat((torch.nn.functional.pad(before, (0, gap)), is_sink), 1)
        is_patch = layout.is_patch.to(hidden.device)[:, : is_sink.shape[1]]
        has_sink = (is_sink & is_patch if self.require_visual_sink else is_sink).any(1)
        active = int(has_sink.sum())
        layer.memory["is_sink", layer.index] = is_sink
        key_class = (is_patch * int(KeyClass.PATCH) + is_sink * int(KeyClass.TEXT_SINK)).to(torch.int8)
        # Decoding reads the indicator at every step, so it is made once.
        layer.memory["class", layer.index] = (key_class, class_indicator(key_class, torch.float32))
        layer.memory["active", layer.index] = (active, has_sink)
        _add(
            layer.stats,
            ("sinks", layer.index),
            torch.stack(
                (
                    (is_sink & is_patch).sum(),
                    (is_sink & ~is_patch).sum(),
                    layout.has_image.sum().to(hidden.device),
                )
            ),
        )

    def reweigh(self, layer: Layer) -> Redistribution | None:
        """Moves weight from the sinks of a layer to its other patches."""
        active, has_sink = layer.memory["active", layer.index]
        if active == 0:
            return None
        is_touched = layer.call.text_queries(has_sink.device)
        if active < has_sink.shape[0]:
            is_touched = is_touched & has_sink[:, None]
        key_class, indicator = layer.memory["class", layer.index]
        return Redistribution(
            key_class, is_touched, self.removed_fraction, self.rho, self.mass_floor, indicator
        )

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Per layer: sinks per sample, the share of heads and rows that were changed, and the weight moved."""
        rows = []
        for layer in sorted(key[1] for key in stats if isinstance(key, tuple)):
            visual, text, samples = stats["sinks", layer].tolist()
            changed, possible, moved = stats[layer].tolist() if layer in stats else (0.0, 0.0, 0.0)
            rows.append(
                {
                    "layer": layer,
                    "patch_sinks": visual / max(samples, 1),
                    "text_sinks": text / max(samples, 1),
                    "rows_changed": changed / max(possible, 1),
                    "mass_moved": moved / max(changed, 1),
                }
            )
        return rows


def _add(stats: dict[Any, Any], key: Any, value: Tensor) -> None:
    stats[key] = stats[key] + value if key in stats else value
