"""The bundled toy: a trained, tiny LLaVA and the emoji world whose pictures it describes.

``load`` gives the model and its processor; ``scenes`` gives pictures whose objects are known. Importing this package
imports neither torch nor the artwork; calling its functions does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvlm_attn.toy.bundle import load
    from lvlm_attn.toy.scene import Scene, SceneObject, scenes
    from lvlm_attn.toy.sprites import vocabulary
    from lvlm_attn.toy.world import contexts

__all__ = ["Scene", "SceneObject", "contexts", "load", "scenes", "vocabulary"]

_HOMES = (
    ("Scene", "lvlm_attn.toy.scene"),
    ("SceneObject", "lvlm_attn.toy.scene"),
    ("contexts", "lvlm_attn.toy.world"),
    ("load", "lvlm_attn.toy.bundle"),
    ("scenes", "lvlm_attn.toy.scene"),
    ("vocabulary", "lvlm_attn.toy.sprites"),
)


def __getattr__(name: str) -> Any:
    import importlib

    home = dict(_HOMES).get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
