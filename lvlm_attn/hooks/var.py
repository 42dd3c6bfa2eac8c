"""VAR: moves attention from sinks to the patches of the image, in the heads that attend to the image.

Source: Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025
(arXiv 2503.03321), sections 3 to 5. Where the paper and its released code differ, the docstring of `VAR` says
what is done here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.checks import need_flag, need_layers, need_number, need_wholes
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.interventions.presets import HasPresets, Preset, Published, preset_field
from lvlm_attn.interventions.sites import in_prompts
from lvlm_attn.kernels.host import reading_is_free
from lvlm_attn.kernels.spec import KeyClass, Redistribution
from lvlm_attn.measures.sinks import KNOWN, find_sink_dims, known_sink_dims, sink_score

_MOVED = "p = 0.6 as the share that is removed, which is the paper's wording"
_TASK = f"the paper's rho for this kind of task, as notes on the paper give it; {_MOVED}"
PRESETS = {
    "paper": Preset(
        {"removed_fraction": 0.6}, f"notes on the paper, whose tables were not at hand; {_MOVED}"
    ),
    "code": Preset(
        {"removed_fraction": 0.4, "layers": "2:"},
        "released code: its p = 0.6 is the share that stays, and its switch for the last layer has no effect",
    ),
    "general": Preset({"removed_fraction": 0.6, "rho": 0.8}, _TASK),
    "hallucination": Preset({"removed_fraction": 0.6, "rho": 0.5}, _TASK),
    "vision": Preset({"removed_fraction": 0.6, "rho": 0.9}, _TASK),
}
"""Settings by name; the last three are for general vision-language tasks, hallucination and vision-centric tasks."""

BY_MODEL = KNOWN


@dataclass(frozen=True)
class VAR(HasPresets):
    """Visual attention redistribution.

    Tokens with a massive activation in a few fixed dimensions are sinks: they draw attention and say nothing
    about the image. In every head and text query that attends to the image, a share of the weight on all sinks
    (the beginning of the text among them) goes to the patches that are no sinks, in proportion to the weight
    they have. Rows keep their sum. Sinks are found in the prompt, per layer, from the input of the layer.

    Prompt queries after the first image and every generated token are treated; image tokens, text before the
    image, and samples without an image stay bit-identical. The released code adds 1e-6 to every weight before it
    compares shares, and takes a score above `tau` where the paper and this class take one of at least `tau`.

    Args:
        rho: least share of a row's image weight on patches that are no sinks. The paper's convention; the
            released code tests the sink share against a number of the same name, 1 - rho. 0.5 is its setting.
        removed_fraction: share of the sinks' weight that is moved. The paper calls it p; the released code's
            p is the share that stays. 0.4 is what the released code moves.
        tau: least sink score; None is the paper's 20. The score cannot exceed the square root of the hidden size,
            so with hidden sizes up to 400 None becomes `0.3125 * sqrt(hidden_size)`, the same point of the range
            as 20 is for 4096.
        mass_floor: least weight of a row on patches; 0.2 in paper and code.
        sink_dims: dimensions of the massive activations. None takes the known ones of the base model, or
            finds them (`lvlm_attn.find_sinks`).
        layers: which layers; None leaves out the first two and the last (of models with up to three, none).
        preset: `"auto"`, or a name of `PRESETS`, for parameters that are left out. `lvlm-attn methods var` lists
            them, and the models whose sink dimensions are known.
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
    tau: float | None = None
    mass_floor: float = 0.2
    sink_dims: Sequence[int] | None = None
    layers: Layers = None
    preset: str = preset_field()
    require_visual_sink: bool = True

    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    by_model: ClassVar[Sequence[Published]] = BY_MODEL

    def __post_init__(self) -> None:
        self.apply_preset()
        need_number(self, "rho", least=0, most=1)
        need_number(self, "removed_fraction", least=0, most=1)
        if self.tau is not None:
            need_number(self, "tau", least=0, most=1000)
        need_number(self, "mass_floor", least=0, most=1)
        if self.sink_dims is not None:
            need_wholes(self, "sink_dims", example="(1415, 2533)", remark="leave it out to have them found")
            object.__setattr__(self, "sink_dims", tuple(sorted(set(self.sink_dims))))
        need_flag(self, "require_visual_sink")
        need_layers(self)

    def is_neutral(self) -> bool:
        """Whether no weight is ever moved."""
        return self.removed_fraction == 0

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
        most = math.sqrt(size)
        tau = (20.0 if most >= 20 else 0.3125 * most) if self.tau is None else self.tau
        if tau > most:
            raise LvlmAttnError(
                f"VAR: tau={tau:g} can never be reached; with {size} dimensions a sink score is at most "
                f"{most:.4g}, so leave tau out or take a smaller one."
            )
        return dataclasses.replace(fitted, sink_dims=dims, tau=tau)

    @in_prompts
    def observe(self, layer: Layer, hidden: Tensor) -> None:
        """Finds the sinks among the prompt tokens that enter a layer."""
        if not layer.is_prompt:
            return
        layout = layer.layout
        is_sink = sink_score(hidden, cast("tuple[int, ...]", self.sink_dims)) >= cast(float, self.tau)
        is_sink &= layout.is_prompt[:, layer.queries].to(hidden.device)
        before = layer.memory.get(("is_sink", layer.index))
        if before is not None:
            gap = layer.queries.start - before.shape[1]
            is_sink = torch.cat((torch.nn.functional.pad(before, (0, gap)), is_sink), 1)
        is_patch = layout.is_patch.to(hidden.device)[:, : is_sink.shape[1]]
        has_sink = (is_sink & is_patch if self.require_visual_sink else is_sink).any(1)
        layer.memory["is_sink", layer.index] = is_sink
        layer.memory["has_sink", layer.index] = has_sink
        layer.memory.pop(("decoding", layer.index), None)
        layer.memory.pop("samples", None)
        key_class = (is_patch * int(KeyClass.PATCH) + is_sink * int(KeyClass.TEXT_SINK)).to(torch.int8)
        layer.memory["class", layer.index] = (key_class, {})
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
        if layer.is_prompt or layer.call.queries > 1:
            return self._redistribution(layer)
        # The same at every token of an answer, and so the same object, for which paths prepare once.
        key = ("decoding", layer.index)
        if key not in layer.memory:
            layer.memory[key] = self._redistribution(layer)
        return cast("Redistribution | None", layer.memory[key])

    def _redistribution(self, layer: Layer) -> Redistribution | None:
        has_sink = layer.memory["has_sink", layer.index]
        samples = _samples_with_sinks(layer, has_sink)
        if samples == 0:
            return None
        is_touched = layer.call.text_queries(has_sink.device)
        if samples != has_sink.shape[0]:
            is_touched = layer.call.part_of(is_touched, has_sink)
        key_class, kept = layer.memory["class", layer.index]
        return Redistribution(key_class, is_touched, self.removed_fraction, self.rho, self.mass_floor, kept)

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


def _samples_with_sinks(layer: Layer, has_sink: Tensor) -> int | None:
    """In how many samples a layer has sinks; None in a prefill on a device where that would have to be waited for.

    Once the prompt is processed, the numbers of all layers are read together.
    """
    if reading_is_free(has_sink.device):
        return int(has_sink.sum())
    if layer.is_prompt:
        return None
    if "samples" not in layer.memory:
        found = {key[1]: value for key, value in layer.memory.items() if key[0] == "has_sink"}
        counts = torch.stack([value.sum().to(has_sink.device) for value in found.values()]).tolist()
        layer.memory["samples"] = dict(zip(found, counts))
    return cast(int, layer.memory["samples"][layer.index])


def _add(stats: dict[Any, Any], key: Any, value: Tensor) -> None:
    stats[key] = stats[key] + value if key in stats else value
