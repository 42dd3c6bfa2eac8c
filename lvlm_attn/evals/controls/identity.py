"""The identity control: all the machinery of a method, and none of its effect.

Hooks, recomputed rows, a second view in the batch and a decoding loop of one's own can change last digits, and beams
change answers by themselves. What remains of a gain against this control is due to what the method does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from lvlm_attn.interventions.base import Intervention
from lvlm_attn.kernels.spec import Amplification

if TYPE_CHECKING:
    from lvlm_attn.families.target import Target
    from lvlm_attn.interventions.context import Layer
    from lvlm_attn.prompts.request import Request


class Identity(Intervention):
    """Goes the way of another intervention and leaves everything as it is; made by :func:`identity_of`."""

    _stands_for: ClassVar[Mapping[str, str]] = {}
    """The sites of this class, and those of the original that they stand for."""

    def __init__(self, original: Intervention) -> None:
        self._original = original
        self.layers = original.layers

    def fit(self, target: Target) -> Self:
        """Acts where the original acts."""
        fitted = copy.copy(self)
        fitted._original = self._original.fit(target)
        fitted.layers = fitted._original.layers
        return fitted

    def layers_at(self, site: str, target: Target) -> Sequence[int]:
        """The layers of the original's site."""
        return self._original.layers_at(self._stands_for.get(site, site), target)

    def rows_at_once(self) -> int | None:
        """As many as the original."""
        return self._original.rows_at_once()

    def __str__(self) -> str:
        """Names the original, so that runs of other methods do not mix."""
        return f"identity({self._original})"


def identity_of(interventions: Sequence[Intervention]) -> tuple[Intervention, ...]:
    """An identity for each intervention, at the sites that it overrides.

    Attention edits become edits by 0 of the rows after an image; head scaling, embeddings and logits are copied; a
    view is the prompt itself once more, and joining views gives the logits of the prompt. A search with beams
    becomes transformers' own with as many beams.

    Example:
        >>> [str(item) for item in identity_of([VHR()])]  # doctest: +SKIP
        ['identity(vhr)']
    """
    found = []
    for item in interventions:
        sites: dict[str, Any] = {"beams": item.beams}
        stands_for = {}
        for names, mirror, site in _MIRRORS:
            of_original = [name for name in names if item.overrides(name)]
            if of_original:
                sites[site] = mirror
                stands_for[site] = of_original[0]
        found.append(type("Identity", (Identity,), {**sites, "_stands_for": stands_for})(item))
    return tuple(found)


def _reweigh(self: Identity, layer: Layer) -> Amplification:
    def zero() -> Amplification:
        layout = layer.layout
        rows = (layout.after_image & layout.is_text)[:, layer.queries]
        return Amplification(rows, gain=layout.is_patch.float() * 0.0)

    made: Amplification = layer.shared("identity", zero)
    return made


def _scale_heads(self: Identity, layer: Layer, heads: Tensor) -> Tensor:
    return heads.clone()


def _edit_embeds(self: Identity, context: Layer, embeds: Tensor) -> Tensor:
    return embeds.clone()


def _edit_logits(self: Identity, context: Layer, logits: Tensor) -> Tensor:
    return logits.clone()


def _views(self: Identity, request: Request) -> Sequence[Request]:
    return tuple(request for _ in self._original.views(request))


def _fuse(self: Identity, main: Tensor, views: Sequence[Tensor], step: int) -> Tensor:
    return main


_MIRRORS: tuple[tuple[tuple[str, ...], Callable[..., Any], str], ...] = (
    (("reweigh", "edit_weights", "visibility", "extra_keys"), _reweigh, "reweigh"),
    (("scale_heads",), _scale_heads, "scale_heads"),
    (("edit_embeds",), _edit_embeds, "edit_embeds"),
    (("edit_logits",), _edit_logits, "edit_logits"),
    (("views",), _views, "views"),
    (("fuse",), _fuse, "fuse"),
)
"""Sites of an original, and what stands for them at which site."""
