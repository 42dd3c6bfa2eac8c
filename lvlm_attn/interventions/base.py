"""The base class of every intervention.

An intervention is an immutable set of parameters. It acts by overriding one or more sites (`interventions.sites`).
Whatever it has to remember lives in the prompt's memory, never in the object, so that one object can serve many
models and prompts at once.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Self, cast

from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.context import State
from lvlm_attn.interventions.layers import Layers, select_layers
from lvlm_attn.interventions.sites import REQUEST_SITES, SITES, AttentionSites, RequestSites, StreamSites
from lvlm_attn.interventions.written import written


class Situation(StrEnum):
    """What an intervention may have to refuse.

    Attributes:
        CHUNKED_PREFILL: the prompt is processed in several passes.
        BEAMS: rows change places between calls.
    """

    CHUNKED_PREFILL = "chunked_prefill"
    BEAMS = "beams"


class Intervention(AttentionSites, StreamSites, RequestSites):
    """Base class of all interventions; subclass it, override one site, and pass an instance to `wrap`.

    A subclass is usually a frozen dataclass, so that its parameters can be written as a string
    (`lvlm_attn.parse`). `layer` is what a site is told: the layer's index, the layout of the prompt, the memory of the
    intervention; see `lvlm_attn.Layer`. CONTRIBUTING has a table of all sites and worked examples.

    Attributes:
        name: what `lvlm_attn.parse` and the command line call it; needed by `lvlm_attn.register`.
        needs_image: whether a batch without any image is an error.
        beams: the number of beams that evaluations and the command line search with.
        conflicts: why other methods, by name, cannot be in the same wrap; one of the two has to say it.
        layers: which layers it acts on (see `lvlm_attn.interventions.layers`); None for `default_layers`.

    Example:
        >>> class Ablate(Intervention):
        ...     def scale_heads(self, layer, heads):
        ...         heads = heads.clone()
        ...         heads[:, :, 3] = 0  # (batch, queries, heads, head_dim)
        ...         return heads
    """

    name: ClassVar[str] = ""
    needs_image: ClassVar[bool] = False
    beams: ClassVar[int] = 1
    conflicts: ClassVar[Mapping[str, str]] = {}
    layers: Layers = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if callable(value) and not name.startswith("_") and not hasattr(Intervention, name):
                hint = closest(name, SITES, least=0.8)
                if hint:
                    raise LvlmAttnError(
                        f"{cls.__name__}.{name} is no site of an intervention, and nothing would call it.{hint} A "
                        f"method that is meant for yourself needs a name less like a site's, or a leading underscore."
                    )

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuses a keyword that is no parameter, with the closest one."""
        names = [item.name for item in parameters(cls) if item.init]
        for key in kwargs:
            if key in undeclared(cls) and key not in names and "__init__" not in vars(cls):
                raise LvlmAttnError(f"{cls.__name__} has no parameter named {key!r}. {no_dataclass(cls)}")
            if names and key not in names:
                raise LvlmAttnError(
                    f"{cls.__name__} has no parameter named {key!r}.{closest(key, names)} It takes {', '.join(names)}."
                )
        return super().__new__(cls)

    def needs_request(self) -> bool:
        """Whether it acts on requests, and so in `lvlm.generate` only; plain `model.generate` is refused then."""
        return any(self.overrides(site) for site in REQUEST_SITES)

    def rows_at_once(self) -> int | None:
        """How many prompts one `lvlm.generate` may hold; None for any number. Evaluations split their batches."""
        return None

    def is_neutral(self) -> bool:
        """Whether these parameters change nothing, so that nothing is installed."""
        return False

    def default_layers(self, target: Target) -> Layers:
        """Which layers it acts on where `layers` is None; None for all."""
        return None

    def fit(self, target: Target) -> Self:
        """Checks the parameters against a model and fills in what depends on it; here, the layers.

        Raises:
            LvlmAttnError: if the parameters do not suit the model. Nothing has been changed by then.
        """
        wanted = self.default_layers(target) if self.layers is None else self.layers
        fitted = copy.copy(self)
        object.__setattr__(fitted, "layers", select_layers(wanted, target.layers, self.title))
        return fitted

    def layers_at(self, site: str, target: Target) -> Sequence[int]:
        """The layers where a site is called."""
        return select_layers(self.layers, target.layers, self.title)

    def refuse(self, situation: Situation) -> str | None:
        """Says why a situation cannot be handled, or None if it can."""
        return None

    def result(self, state: State) -> Any:
        """What the intervention found out, for `lvlm.maps`; None for nothing."""
        return None

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Turns what the intervention counted in `layer.stats` into rows for `report`.

        Without it the report shows what is counted for every intervention: rows changed, weight moved, heads scaled,
        tokens changed.
        """
        return []

    @property
    def title(self) -> str:
        """How messages name the intervention."""
        return type(self).__name__

    def overrides(self, site: str) -> bool:
        """Whether the subclass implements a site, or another method of this class."""
        return getattr(type(self), site) is not getattr(Intervention, site)

    def __str__(self) -> str:
        """The canonical string, which `lvlm_attn.parse` turns back into an equal object."""
        values = {
            item.name: getattr(self, item.name)
            for item in parameters(type(self))
            if item.compare and getattr(self, item.name) != item.default
        }
        return written(self.name or type(self).__name__.lower(), values)


def parameters(kind: type[Intervention]) -> tuple[dataclasses.Field[Any], ...]:
    """The parameters of a kind of intervention: its dataclass fields, none if it is no dataclass."""
    return dataclasses.fields(cast("Any", kind)) if hasattr(kind, "__dataclass_fields__") else ()


def undeclared(kind: type[Intervention]) -> list[str]:
    """What would be parameters of a kind, were it a dataclass itself: its own annotations."""
    if "__dataclass_fields__" in vars(kind):
        return []
    return [name for name, told in inspect.get_annotations(kind).items() if "ClassVar" not in str(told)]


def no_dataclass(kind: type[Intervention]) -> str:
    """How `undeclared` fields become parameters, one sentence; empty where there are none."""
    names = undeclared(kind)
    if not names:
        return ""
    return (
        f"{kind.__name__} is no dataclass; put @dataclass(frozen=True) above it, so that {', '.join(names)} "
        f"{'is a parameter' if len(names) == 1 else 'are parameters'}."
    )
