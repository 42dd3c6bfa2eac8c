"""Settings that the authors of a method publish, by name, and what they publish for single models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from lvlm_attn.errors import LvlmAttnError, closest, shown
from lvlm_attn.interventions.base import Intervention, parameters

AUTO = "auto"
"""The preset that takes what is published for the wrapped model, and the defaults elsewhere."""


@dataclass(frozen=True)
class Preset:
    """Settings that belong together.

    Attributes:
        settings: values by parameter.
        source: where they are from.
        generate: options of `generate` that the source sets with them; the caller passes them.
    """

    settings: Mapping[str, Any]
    source: str
    generate: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """What is published for one model, and taken by itself where a parameter is left out.

    Attributes:
        model: its name.
        settings: values by parameter.
        source: where they are from.
        key: what the model is known by; the method that has the table says how.
    """

    model: str
    settings: Mapping[str, Any]
    source: str
    key: tuple[Any, ...] = ()


class HasPresets(Intervention):
    """An intervention with settings by name, chosen by its parameter `preset`.

    A subclass lists them as `presets`, and as `by_model` what is published for single models; it declares
    `preset: str = preset_field()` and calls `apply_preset` first in `__post_init__`. A preset sets what was left out:
    what is written wins, also where it equals the default. The string of an object holds the values, not the name.

    Example:
        >>> from lvlm_attn import VAR
        >>> VAR(preset="general").rho, VAR(rho=0.5, preset="general").rho
        (0.8, 0.5)
    """

    presets: ClassVar[Mapping[str, Preset]] = {}
    by_model: ClassVar[Sequence[Published]] = ()
    preset: str

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remembers which parameters are written."""
        made = super().__new__(cls, *args, **kwargs)
        names = [item.name for item in parameters(cls) if item.init]
        made.__dict__["_written"] = frozenset((*names[: len(args)], *kwargs))
        return made

    def apply_preset(self) -> None:
        """Sets the parameters that were left out.

        Raises:
            LvlmAttnError: if there is no preset of that name.
        """
        name = AUTO if self.preset is None else self.preset
        is_name = isinstance(name, str)
        if is_name and name == AUTO:
            object.__setattr__(self, "preset", AUTO)
            return
        chosen = self.presets.get(name) if is_name else None
        if chosen is None:
            near = closest(name, self.presets) if is_name else ""
            raise LvlmAttnError(
                f"{self.title} has no preset {shown(self.preset)}.{near} "
                f"Choose {', '.join((AUTO, *self.presets))}, or leave it out."
            )
        for key, value in chosen.settings.items():
            if key not in self.__dict__["_written"]:
                object.__setattr__(self, key, value)


def preset_field() -> Any:
    """The parameter `preset` of a method."""
    return dataclasses.field(default=AUTO, compare=False)
