"""Methods and families of other people, from a Python file; `entry_points` finds methods of installed packages."""

from __future__ import annotations

import importlib.util
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families import Family, models, register_family
from lvlm_attn.hooks.catalogue import register
from lvlm_attn.interventions.base import Intervention

BROUGHT: dict[str, str] = {}
"""What each file that was loaded brought, in words."""


def load_plugin(path: str | Path) -> tuple[str, ...]:
    """Runs a Python file and registers the methods and model families it defines, unless it did so itself.

    Args:
        path: the file.

    Returns:
        The names of its methods.

    Raises:
        LvlmAttnError: the file is missing or a folder, fails, or defines neither.

    Example:
        >>> load_plugin("quiet.py")  # doctest: +SKIP
        ('quiet',)
    """
    path = Path(path)
    if path.is_dir():
        raise LvlmAttnError(f"plugin {path} is a folder; name a Python file in it that defines a method.")
    if not path.is_file():
        raise LvlmAttnError(f"plugin {path} does not exist; name a Python file that defines a method.")
    known = models()
    name = f"lvlm_attn_plugin_{sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    is_new = name not in sys.modules
    if is_new:
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        if spec is None or spec.loader is None:
            raise LvlmAttnError(f"plugin {path} is no Python file; its name must end in .py.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            if isinstance(error, LvlmAttnError):
                raise
            raise LvlmAttnError(
                f"plugin {path} failed ({_place(error, path)}); run it with Python."
            ) from error
    defined = list(vars(sys.modules[name]).values())
    kinds = [item for item in defined if _is_own(item, name)]
    families = [item for item in defined if isinstance(item, Family)]
    if is_new and not kinds and not families and known == models():
        del sys.modules[name]  # so that the file is read anew once it has one
        raise LvlmAttnError(
            f"plugin {path} defines no method and no family; derive a class from la.Intervention and give it a "
            f"`name`, or make a Family."
        )
    for kind in kinds:
        register(kind)
    for family in families:
        if models().get(family.name) is not family:
            register_family(family)
    if is_new:
        parts = {
            "method": sorted(kind.name for kind in kinds),
            "family": sorted({family.name for family in families} | models().keys() - known.keys()),
        }
        BROUGHT[str(path)] = "; ".join(f"{what} {', '.join(names)}" for what, names in parts.items() if names)
    return tuple(kind.name for kind in kinds)


def _is_own(item: Any, module: str) -> bool:
    return (
        isinstance(item, type)
        and issubclass(item, Intervention)
        and bool(item.name)
        and item.__module__ == module
    )


def _place(error: BaseException, path: Path) -> str:
    """The error and, where it is known, the line of the file."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {first}" + (f", line {line}" if line else "")
