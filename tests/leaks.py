"""What one test could leave on a model that later tests share: hooks, attributes, settings, modes, changed weights.

Models are cached across tests, so a wrap that leaves something behind would change the outcome of another test, far
from the cause. `tests/conftest.py` compares every living model before and after each test.
"""

import weakref
from collections.abc import Iterator
from typing import Any

from lvlm_attn.runtime.transformers_private import is_capturing_hook

_NOTED_WHEN_SAVED = ("architectures", "dtype")
_KEPT_BY_TRANSFORMERS = (
    "_previous_max_cache_length",  # of a static cache
    "_output_capturing_hooks_installed",  # of a model that was asked for hidden states or weights
)


class Watched:
    """A model and the places where something could be left, collected once so that a comparison takes microseconds."""

    def __init__(self, model: Any):
        modules = list(model.modules())
        self.model = weakref.ref(model)
        self._hooks = [hooks for m in modules for hooks in (m._forward_pre_hooks, m._forward_hooks)]
        self._attributes = [vars(module) for module in modules]
        self._tensors = [*model.parameters(), *model.buffers()]
        configs = {id(c): c for m in modules if (c := vars(m).get("config")) is not None}
        self._configs = [vars(config) for config in configs.values()]
        self._configs.append(vars(model.generation_config))

    def state(self) -> dict[str, Any]:
        """What can be compared."""
        return {
            "hooks": sum(not is_capturing_hook(hook) for hooks in self._hooks for hook in hooks.values()),
            "attributes": sum(map(len, self._attributes))
            - sum(name in values for values in self._attributes for name in _KEPT_BY_TRANSFORMERS),
            "training modes": sum(values["training"] for values in self._attributes),
            "versions of weights": sum(tensor._version for tensor in self._tensors),
            "settings": {
                (place, key): value
                for place, values in enumerate(self._configs)
                for key, value in values.items()
                if key not in _NOTED_WHEN_SAVED
            },
        }


_LIVING: list[Watched] = []


def watch(model: Any) -> Any:
    """Lets later tests find out whether something was left on a model; returns it."""
    _LIVING.append(Watched(model))
    return model


def states() -> Iterator[tuple[Watched, dict[str, Any]]]:
    """Every model that is still there, and its state."""
    _LIVING[:] = [watched for watched in _LIVING if watched.model() is not None]
    for watched in _LIVING:
        yield watched, watched.state()


def left_behind(before: list[tuple[Watched, dict[str, Any]]]) -> list[str]:
    """What is another than before, one entry for each model and kind of thing."""
    found = []
    for watched, state in before:
        model = watched.model()
        if model is None:
            continue
        now = watched.state()
        if now == state:
            continue
        now |= now.pop("settings")
        state = {key: value for key, value in state.items() if key != "settings"} | state["settings"]
        found += [
            f"{key} of a {type(model).__name__}: {state.get(key)} before, {now.get(key)} after"
            for key in {**state, **now}
            if now.get(key) != state.get(key)
        ]
    return found
