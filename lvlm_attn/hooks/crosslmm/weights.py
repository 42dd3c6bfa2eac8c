"""Adapters in files: safetensors, with sizes and settings as metadata."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.hooks.crosslmm.adapter import AdapterShape, CrossLMMAdapter

if TYPE_CHECKING:
    from lvlm_attn.families.target import Target

FOLDER = Path(__file__).resolve().parent / "weights"
"""Adapters that come with the package, by the name of their model."""

_REQUIRED = ("K", "offset", "placement", "grid", "pool", "kv_source", "hidden", "n_heads", "n_kv", "head_dim")


def find_weights(weights: str) -> Path:
    """The file of an adapter: a path, or the name of one that comes with the package, such as `"toy"`.

    Raises:
        LvlmAttnError: if there is no such file.
    """
    path = Path(weights).expanduser()
    bundled = FOLDER / f"{weights}.safetensors"
    if path.is_file():
        return path
    if path.name == weights and bundled.is_file():
        return bundled
    known = ", ".join(sorted(item.stem for item in FOLDER.glob("*.safetensors"))) or "none"
    raise LvlmAttnError(
        f"CrossLMM: weights={weights!r} is no file; give the path of a .safetensors adapter, or the name of one that "
        f"comes with the package ({known})."
    )


def save_adapter(adapter: CrossLMMAdapter, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes an adapter with its sizes and settings.

    Args:
        adapter: what to write.
        path: the file; its folder is made when absent.
        dtype: of the numbers in the file; None keeps what the adapter has.

    Example:
        >>> save_adapter(adapter, "adapter.safetensors", torch.float16)  # doctest: +SKIP
        >>> la.wrap(model, la.CrossLMM(weights="adapter.safetensors"))  # doctest: +SKIP
    """
    state = {
        name: value.detach().cpu().to(dtype or value.dtype) for name, value in adapter.state_dict().items()
    }
    metadata = {name: json.dumps(value) for name, value in dataclasses.asdict(adapter.shape).items()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata)


def read_shape(path: str | Path) -> AdapterShape:
    """Sizes and settings of the adapter in a file.

    Raises:
        LvlmAttnError: if the file cannot be read or its metadata is incomplete or not supported.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise LvlmAttnError(f"CrossLMM: {str(path)!r} cannot be read as safetensors ({error}).") from None
    missing = [name for name in (*_REQUIRED, "layers") if name not in metadata]
    if missing:
        raise LvlmAttnError(
            f"CrossLMM: the metadata of {str(path)!r} lacks {', '.join(missing)}; write adapters with "
            f"lvlm_attn.hooks.crosslmm.weights.save_adapter."
        )
    known = {item.name for item in dataclasses.fields(AdapterShape)}
    values: dict[str, Any] = {}
    for name in known & set(metadata):
        try:
            values[name] = json.loads(metadata[name])
        except (ValueError, RecursionError):  # plain text, integers of 5000 digits, brackets within brackets
            values[name] = metadata[name]
    if isinstance(values["grid"], list):
        values["grid"] = tuple(values["grid"])
    try:
        return AdapterShape(**values)
    except LvlmAttnError as error:
        raise LvlmAttnError(f"{str(error).rstrip('.')}; the metadata of {str(path)!r} says so.") from None


def load_adapter(path: str | Path, dtype: torch.dtype | None = None) -> CrossLMMAdapter:
    """Loads an adapter.

    Args:
        path: the file.
        dtype: of the adapter's parameters; None keeps what the file has.

    Raises:
        LvlmAttnError: if the tensors of the file are not those its metadata asks for.
    """
    with torch.device("meta"):
        adapter = CrossLMMAdapter(read_shape(path))
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file handle, no dict)
    wanted = {name: tuple(value.shape) for name, value in adapter.state_dict().items()}
    lacking, beyond = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if lacking or beyond:
        what = f"lacks {lacking[0]!r}" if lacking else f"holds {beyond[0]!r}, which it should not"
        raise LvlmAttnError(
            f"CrossLMM: {str(path)!r} {what} ({len(lacking)} tensors missing, {len(beyond)} too many); its metadata "
            f"and tensors do not belong together."
        )
    for name, shape in wanted.items():
        if tuple(state[name].shape) != shape:
            raise LvlmAttnError(
                f"CrossLMM: {name!r} in {str(path)!r} has shape {tuple(state[name].shape)}, but its metadata asks for "
                f"{shape}."
            )
    for name, value in state.items():
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            what = str(value.dtype).removeprefix("torch.")
            what = (
                "numbers that are not finite"
                if value.is_floating_point()
                else f"{what} where fractions belong"
            )
            raise LvlmAttnError(
                f"CrossLMM: {name!r} in {str(path)!r} holds {what}; train or convert it again."
            )
    adapter.load_state_dict(
        {name: value.to(dtype or value.dtype) for name, value in state.items()}, assign=True
    )
    return adapter.requires_grad_(False)


def check_fits(shape: AdapterShape, target: Target, where: str) -> None:
    """Refuses an adapter that was made for a model of another shape.

    Raises:
        LvlmAttnError: naming the first size that differs, and both values.
    """
    own = {
        "layers": target.layers,
        "hidden": target.hidden_size,
        "n_heads": target.heads,
        "n_kv": target.config.num_key_value_heads,
        "head_dim": target.head_dim,
    }
    for name, size in own.items():
        if getattr(shape, name) != size:
            raise LvlmAttnError(
                f"CrossLMM: the adapter {where} was made for a model with {name}={getattr(shape, name)}, and this "
                f"{target.family.title} has {name}={size}; train one for this model."
            )
