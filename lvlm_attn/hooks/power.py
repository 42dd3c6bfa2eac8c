"""Power: blocks of keys at distances that are powers of two.

Source: Chen et al., "PowerAttention: Exponentially Scaling of Receptive Fields for Effective Sparse Attention"
(arXiv 2503.03588), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lvlm_attn.interventions.checks import need_layers, need_whole
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.interventions.modality import Made, counted, once_per_call
from lvlm_attn.interventions.presets import HasPresets, Preset, preset_field
from lvlm_attn.kernels.visibility import ALL, Visibility

PRESETS = {
    "paper": Preset({"block": 256, "window": 5}, "paper, experiments: trained so, for prompts of 32k tokens"),
}
"""Settings by name."""


@dataclass(frozen=True)
class Power(HasPresets):
    """PowerAttention: a token attends to near blocks, the first block, and blocks at a distance of 1, 2, 4, 8, ...

    Positions are counted without padding and cut into blocks. A query attends to a key before it if their blocks are
    less than `window` apart, a power of two apart, or the key is in the first block. The rule acts on all tokens,
    images or not, on the prompt and on every generated token. Over several layers every earlier token can be
    reached: one step for each binary digit 1 of the distance in blocks.

    The source trains with the pattern (blocks of 256 tokens, a window of 5, all layers, for prompts of 32k tokens);
    without training, quality is expected to fall. The default block is small because prompts about images are
    short; where the prompt has no more than `max(window, 3) + 1` blocks nothing changes, bit for bit.

    Args:
        block: tokens per block.
        window: how many blocks are attended to around the query's own, itself included.
        layers: which layers; None for all.
        preset: `"auto"`, or a name of `PRESETS`, for parameters that are left out.

    Raises:
        LvlmAttnError: if a parameter is no whole number of at least 1.

    Example:
        >>> str(Power(block=16, layers="2:"))
        'power:block=16,layers=2:'
    """

    name: ClassVar[str] = "power"

    block: int = 32
    window: int = 5
    layers: Layers = None
    preset: str = preset_field()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __post_init__(self) -> None:
        self.apply_preset()
        need_whole(self, "block", 1, remark="the tokens per block")
        need_whole(self, "window", 1, remark="the blocks attended to, the query's own included")
        need_layers(self)

    def visibility(self, layer: Layer) -> Visibility | None:
        """Tokens attend to blocks at distances that are powers of two."""
        return once_per_call(layer, lambda: self._make(layer))

    def _make(self, layer: Layer) -> Made | None:
        layout = layer.layout
        # All padding of a row comes before this, so its rank is at most its position.
        if (layout.length - 1) // self.block <= first_gap(self.window):
            return None
        number = (layout.is_valid.cumsum(1) - 1).clamp(min=0) // self.block
        is_changed = layout.is_valid
        if not layer.call.attends_ahead:
            is_changed = is_changed & (number > first_gap(self.window))
        visibility = Visibility(
            torch.zeros_like(layout.kind),
            earlier=((ALL,),),
            predicate=is_within_reach(number, self.window),
            touches=is_changed,
        )
        return Made(visibility, (is_changed[:, layer.queries].sum(),))

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Per layer: how many tokens attend to less."""
        return counted(stats, ("rows",))


def first_gap(window: int) -> int:
    """The smallest distance in blocks that is neither inside the window nor a power of two.

    A query whose block has this number or a smaller one attends to all before it, as the first block is always in
    reach.

    Example:
        >>> [first_gap(window) for window in (1, 3, 4, 5, 8)]
        [3, 3, 5, 5, 9]
    """
    distance = max(window, 3)
    return distance if distance & (distance - 1) else distance + 1


def is_within_reach(number: Tensor, window: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A predicate for `Visibility`, from the block number of every position `(batch, length)`."""

    def predicate(query: Tensor, key: Tensor) -> Tensor:
        blocks = number.to(query.device)
        last = blocks.shape[1] - 1
        of_query = blocks.gather(1, query.squeeze(2).clamp(max=last))[..., None]
        of_key = blocks.gather(1, key.squeeze(1).clamp(max=last).expand(query.shape[0], -1))[:, None]
        distance = (of_query - of_key).abs()
        return (distance < window) | (distance & (distance - 1) == 0) | (of_key == 0)

    return predicate
