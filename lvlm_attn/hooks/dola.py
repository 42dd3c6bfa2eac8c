"""DoLa: prefers the tokens whose probability grows from a lower layer to the last.

Source: Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models", ICLR 2024
(arXiv 2309.03883), section 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.checks import need_choice, need_flag, need_layers, need_number, need_whole
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import DEEPEST, Layers, select_layers
from lvlm_attn.interventions.presets import HasPresets, Preset, preset_field

if TYPE_CHECKING:
    pass

CHUNK = 64
"""Positions whose logits of all candidate layers are held at a time."""


_PENALTY = {"repetition_penalty": 1.2}
PRESETS = {
    "code": Preset(
        {"divergence": "code", "final_norm": False, "beta": 0.1},
        "released code; every logit is its own, for the candidates that are chosen",
        _PENALTY,
    ),
    "reasoning": Preset(
        {"layers": "low", "beta": 0.1},
        "released README: the lower candidates, for FACTOR, GSM8K, StrategyQA and Vicuna QA",
        _PENALTY,
    ),
    "truthfulqa": Preset(
        {"layers": "high", "beta": 0.1}, "released README: the upper candidates, for TruthfulQA", _PENALTY
    ),
}
"""Settings by name. The candidates depend on the number of layers alone (see `bucket`)."""


@dataclass(frozen=True)
class DoLa(HasPresets):
    """Decoding by contrasting layers.

    Tokens are predicted from the last layer and, with the same head, from the residual stream after each candidate
    layer, without the final norm between them, as in the released code. At every position the candidate whose
    prediction is farthest from the last one is chosen, and the difference of the log probabilities becomes the
    logits, among the tokens that the last layer holds plausible; all others get minus infinity.

    It works with plain `model.generate` and `model(...)`, greedily, sampling and with beams, on any backend. The
    paper adds `repetition_penalty=1.2`, which is an option of `generate`.

    Args:
        layers: the candidates: `"low"` or `"high"`, every other layer of the lower or upper half (of models with more
            than 40 layers, of the first or last 20), or numbers. Layer j stands for the residual stream after j
            layers, 0 for the embeddings, which `"low"` leaves out where the head shares their weights. An empty
            choice contrasts with nothing and changes nothing.
        beta: a token is plausible if its probability is at least this share of the most probable one's. The paper's
            alpha, 0.1 there.
        mature: the layer to contrast with, counted the same way; -1 for the model's own logits.
        divergence: how far a candidate is: `"jsd"`, the Jensen-Shannon divergence of the paper, or `"code"`, what the
            released code computes, with the divergences taken from the mean to the two predictions. The code also
            takes one candidate for the whole batch, which makes rows depend on each other; here each row has its
            own, which is the same at batch 1.
        final_norm: whether candidates, and a `mature` layer that is not the last, pass the final norm before the
            head. No released code does; without it they are on another scale than the last layer.
        preset: `"auto"`, which is `"reasoning"` here, or a name of `PRESETS`, for parameters that are left out.

    Raises:
        LvlmAttnError: if a parameter is out of its range.

    Example:
        >>> str(DoLa(layers="high"))
        'dola:layers=high'
    """

    name: ClassVar[str] = "dola"

    layers: Layers = "low"
    beta: float = 0.1
    mature: int = -1
    divergence: str = "jsd"
    final_norm: bool = False
    preset: str = preset_field()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __post_init__(self) -> None:
        self.apply_preset()
        need_number(self, "beta", above=0, most=1)
        need_choice(self, "divergence", ("jsd", "code"))
        need_flag(self, "final_norm")
        need_whole(self, "mature", -1, DEEPEST, remark="-1 stands for the model's own logits")
        if self.layers is None:
            raise LvlmAttnError("DoLa: layers=None chooses nothing; write 'low', 'high' or layer numbers.")
        if isinstance(self.layers, (str, tuple, list)) and not (
            self.layers.strip("[] ") if isinstance(self.layers, str) else self.layers
        ):
            object.__setattr__(self, "layers", ())
        else:
            need_layers(self, ("low", "high"))

    def is_neutral(self) -> bool:
        """Whether there is nothing to contrast with."""
        return self.layers == ()

    def fit(self, target: Target) -> Self:
        """Chooses the candidates for a model.

        Raises:
            LvlmAttnError: if a candidate is not below the layer to contrast with, or the model has no head.
        """
        if self.is_neutral():
            return self
        count = target.layers
        mature = count if self.mature == -1 else self.mature
        if mature > count:
            raise LvlmAttnError(
                f"DoLa: mature={mature} is out of range; this model has {count} decoder layers."
            )
        head = output_head(target)
        if self.final_norm:
            final_norm(target)
        if self.layers == "low" or self.layers == "high":
            embeddings = cast("Any", target.parts.language_model).get_input_embeddings()
            is_tied = getattr(head, "weight", None) is embeddings.weight
            found = bucket(self.layers, count, is_tied=is_tied)
            chosen = tuple(j for j in found if j < mature) or (max(mature - 1, 0),)
        else:
            chosen = select_layers(self.layers, count, self.title)
        if mature < 1 or max(chosen) >= mature:
            raise LvlmAttnError(
                f"DoLa: candidate layer {max(chosen)} is not below the layer it is contrasted with ({mature}); choose "
                f"lower candidates."
            )
        return dataclasses.replace(self, layers=chosen, mature=-1 if mature == count else mature)

    def layers_at(self, site: str, target: Target) -> Sequence[int]:
        """The candidates, and the layer to contrast with if it is not the last."""
        chosen = tuple(cast("Iterable[int]", self.layers))
        return chosen if self.mature == -1 else (*chosen, self.mature)

    def observe(self, layer: Layer, hidden: Tensor) -> None:
        """Keeps the residual stream until the logits are there."""
        layer.memory[layer.index] = hidden

    def edit_logits(self, context: Layer, logits: Tensor) -> Tensor:
        """Replaces the logits by the contrast of the layers."""
        memory, target = context.memory, context.call.target
        kept = logits.shape[1]
        streams = {j: memory.pop(j)[:, -kept:] for j in self.layers_at("observe", target)}
        chosen = tuple(cast("Iterable[int]", self.layers))
        head = output_head(target)
        norm = final_norm(target) if self.final_norm else None
        name = target.family.logits_divisor
        divisor = getattr(target.parts.text_config, name) if name else 1

        def predicted(j: int, span: slice) -> Tensor:
            hidden = streams[j][:, span]
            hidden = hidden if norm is None else norm(hidden)
            return raised(head(hidden)).to(logits.device) / divisor

        pieces = []
        stats = context.stats
        for start in range(0, kept, CHUNK):
            span = slice(start, min(start + CHUNK, kept))
            mature = raised(logits[:, span]) if self.mature == -1 else predicted(self.mature, span)
            early = torch.stack([predicted(j, span) for j in chosen])
            piece, index = contrast(mature, early, self.beta, self.divergence)
            pieces.append(piece)
            picked = torch.bincount(index.flatten(), minlength=len(chosen))
            stats["picked"] = stats["picked"] + picked if "picked" in stats else picked
        stats["layers"] = chosen
        return torch.cat(pieces, 1).to(logits.dtype)

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Per candidate layer: the share of positions at which it was chosen."""
        if "picked" not in stats:
            return []
        picked = stats["picked"].double()
        shares = (picked / picked.sum()).tolist()
        return [{"layer": layer, "chosen": share} for layer, share in zip(stats["layers"], shares)]


def bucket(name: str, count: int, *, is_tied: bool = False) -> tuple[int, ...]:
    """The candidate layers of the lower or upper half of a model.

    Args:
        name: `"low"` or `"high"`.
        count: number of decoder layers.
        is_tied: whether the head shares the embeddings' weights; the embeddings then predict the token just given.

    Example:
        >>> bucket("low", 32), bucket("high", 32)
        ((0, 2, 4, 6, 8, 10, 12, 14), (16, 18, 20, 22, 24, 26, 28, 30))
    """
    if name == "low":
        first = min(2, count // 2) if is_tied else 0
        found = range(first, max(count // 2 if count <= 40 else 20, first + 1), 2)
    else:
        found = range(count // 2 if count <= 40 else count - 20, count, 2)
    return tuple(found)


def contrast(mature: Tensor, early: Tensor, beta: float, divergence: str = "jsd") -> tuple[Tensor, Tensor]:
    """Contrasts predictions with the candidate that is farthest from each.

    Args:
        mature: `(..., vocabulary)` logits.
        early: `(candidates, ..., vocabulary)` logits.
        beta: least probability relative to the most probable token.
        divergence: see `DoLa`.

    Returns:
        Logits `(..., vocabulary)`, minus infinity at tokens that are not plausible, and the index of the chosen
        candidate `(...)`.

    Example:
        >>> logits, index = contrast(torch.tensor([2.0, 1.0, -9.0]), torch.zeros(1, 3), beta=0.1)
        >>> bool(logits[2] == -torch.inf), int(index)
        (True, 0)
    """
    late, early = mature.log_softmax(-1), early.log_softmax(-1)
    if len(early) > 1:
        index = distance(late, early, divergence).argmax(0)
        chosen = early.gather(0, index[None, ..., None].expand(1, *early.shape[1:]))[0]
    else:
        index, chosen = torch.zeros(late.shape[:-1], dtype=torch.long, device=late.device), early[0]
    floor = late.amax(-1, keepdim=True) + torch.tensor(beta, dtype=late.dtype).log().item()
    # A token that is plausible and has lost all probability in the lower layer must not give infinity.
    lowest = torch.finfo(late.dtype).min
    difference = late - chosen.clamp(min=lowest)
    return difference.masked_fill(late < floor, -torch.inf), index


def distance(late: Tensor, early: Tensor, divergence: str) -> Tensor:
    """How far log probabilities `(candidates, ..., vocabulary)` are from `(..., vocabulary)`: `(candidates, ...)`."""
    mean = torch.logaddexp(early, late) - torch.log(torch.tensor(2.0, dtype=late.dtype, device=late.device))
    if divergence == "code":
        ahead = mean.exp() * (2 * mean - early - late)
        return 0.5 * ahead.mean(-1)
    one = torch.where(early > -torch.inf, early.exp() * (early - mean), 0).sum(-1)
    other = torch.where(late > -torch.inf, late.exp() * (late - mean), 0).sum(-1)
    return 0.5 * (one + other)


def output_head(target: Target) -> nn.Module:
    """The projection from the residual stream to the vocabulary.

    Raises:
        LvlmAttnError: if the model has none.
    """
    get = getattr(target.model, "get_output_embeddings", None)
    found = get() if callable(get) else None
    if not isinstance(found, nn.Module):
        raise LvlmAttnError(
            f"DoLa needs the projection to the vocabulary, and {type(target.model).__name__} has none; wrap the "
            f"...ForConditionalGeneration model."
        )
    return found


def final_norm(target: Target) -> nn.Module:
    """The norm after the last decoder layer."""
    found = getattr(target.parts.language_model, target.family.final_norm, None)
    if not isinstance(found, nn.Module):
        raise LvlmAttnError(
            f"DoLa finds no final norm in {type(target.parts.language_model).__name__}; pass final_norm=False."
        )
    return found


def raised(logits: Tensor) -> Tensor:
    """Logits in fp32; fp64 stays."""
    return logits if logits.dtype == torch.float64 else logits.float()
