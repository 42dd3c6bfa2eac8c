"""Methods of other people, from a Python file; `entry_points` finds those of installed packages."""

from __future__ import annotations

import importlib.util
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.hooks.catalogue import register
from lvlm_attn.interventions.base import Intervention


def load_plugin(path: str | Path) -> tuple[str, ...]:
    """Runs a Python file and registers the methods it defines, those it does not register itself among them.

    Args:
        path: the file.

    Returns:
        The names of its methods.

    Raises:
        LvlmAttnError: the file is missing, fails, or defines no method.

    Example:
        >>> load_plugin("quiet.py")  # doctest: +SKIP
        ('quiet',)
    """
    path = Path(path)
    if not path.is_file():
        raise LvlmAttnError(f"plugin {path} does not exist; name a Python file that defines a method.")
    name = f"lvlm_attn_plugin_{sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
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
    kinds = [item for item in vars(sys.modules[name]).values() if _is_own(item, name)]
    if not kinds:
        del sys.modules[name]  # so that the file is read anew once it has one
        raise LvlmAttnError(
            f"plugin {path} defines no method; derive a class from la.Intervention and give it a `name`."
        )
    for kind in kinds:
        register(kind)
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
