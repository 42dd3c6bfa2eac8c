"""Loading a model with its processor: the bundled toy, a hub id, or a folder."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch

from lvlm_attn.errors import LvlmAttnError, closest, shown
from lvlm_attn.evals.core.ranks import local_device
from lvlm_attn.families import family_of
from lvlm_attn.runtime.transformers_private import set_attention_of

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
}

_UNREGISTERED = {
    "does not recognize this architecture": "does not know its model type",
    "Unrecognized configuration class": "has no model for the configuration of its type",
    "Unrecognized processing class": "has no processor for its type",
}
"""What transformers says of types whose classes it lacks, and the same in short."""


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Loads a model and its processor, ready for `wrap`.

    Nothing a checkpoint says is taken on trust: code of its own is not run unless `trust_remote_code=True` is passed,
    and the attention backend is the one asked for here, `"sdpa"` by default, not one its configuration names. A
    checkpoint that lacks weights or has them in other shapes is refused.

    Args:
        name: `"toy"` for the bundled model, a hub id such as `"llava-hf/llava-1.5-7b-hf"`, or a folder.
        device: where to put it; None takes the GPU (CUDA, else Apple's) if there is one.
        dtype: `"auto"`, `"float32"`, `"bfloat16"`, `"float16"` or a torch dtype; None is the checkpoint's own
            on a GPU, and fp32 on the CPU.
        **options: passed to `from_pretrained` (`revision`, `attn_implementation`, `device_map`, ...).

    Returns:
        The model in eval mode, and its processor, which pads on the left.

    Raises:
        LvlmAttnError: if the model cannot be found, is damaged or of an unsupported family, or the device cannot be
            used.

    Example:
        >>> model, processor = load("toy")  # doctest: +SKIP
    """
    if not isinstance(name, (str, Path)) or not str(name).strip():
        raise LvlmAttnError(f"{shown(name)} names no model; give 'toy', a hub id or a folder.")
    place = usable_device(device)
    chosen = torch_dtype(dtype if dtype is not None else "float32" if place.type == "cpu" else "auto")
    if str(name) == "toy":
        return _toy(place, chosen if dtype is not None else None, options)
    _refuse_missing_folder(name)
    from lvlm_attn.families.processors import load_processor

    hub: dict[str, Any] = {key: options[key] for key in ("revision", "token") if key in options}
    hub["trust_remote_code"] = options.get("trust_remote_code", False)
    try:
        with _cache_alone_where_the_hub_is_away(name):
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(name, **hub)
            family_of(config)
            processor = load_processor(str(name), **hub)
            model, told = _read_weights(name, config, {**options, **hub, "dtype": chosen})
    except LvlmAttnError:
        raise
    except Exception as error:  # readers of weights and settings fail in ways of their own on damaged files
        hint = "" if Path(name).exists() else closest(str(name), ("toy",), least=0.6)
        reason = f"Model {shown(str(name))} could not be loaded: {_reason(error)}{hint}"
        raise LvlmAttnError(reason) from error
    _refuse_incomplete(name, told)
    if "device_map" not in options:
        model = model.to(place)
    processor.tokenizer.padding_side = "left"
    return model.eval(), processor


def usable_device(device: str | torch.device | None) -> torch.device:
    """A device that tensors can be put on; None for the best there is.

    Raises:
        LvlmAttnError: if there is no such device, or this build of torch cannot use it.
    """
    try:
        place = torch.device(_default_device() if device is None else device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split()).rstrip(".")
        raise LvlmAttnError(
            f"device {shown(str(device))} cannot be used ({reason}); take cpu, or one that this machine has."
        ) from error
    return place


def _toy(place: torch.device, dtype: torch.dtype | str | None, options: dict[str, Any]) -> tuple[Any, Any]:
    from lvlm_attn import toy

    beyond = sorted(options.keys() - {"attn_implementation", "trust_remote_code", "revision", "token"})
    if beyond:
        raise LvlmAttnError(f"The toy takes no {beyond[0]}; leave it out.")
    model, processor = toy.load(str(place), dtype if isinstance(dtype, torch.dtype) else None)
    if "attn_implementation" in options:
        model.set_attn_implementation(options["attn_implementation"])
    return model, processor


def _read_weights(name: str | Path, config: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """The model, and what transformers tells of its weights."""
    from transformers import AutoModelForImageTextToText

    backends = [options["attn_implementation"]] if "attn_implementation" in options else ["sdpa", "eager"]
    for backend in backends:
        for part in _configs(config):
            set_attention_of(part, None)  # what the checkpoint names may be a kernel to fetch
        known = {"attn_implementation": backend, "output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            found = AutoModelForImageTextToText.from_pretrained(name, config=config, **options | known)
            return cast("tuple[Any, Any]", found)
        except ValueError as error:
            if backend == backends[-1] or "scaled_dot_product_attention" not in str(error):
                raise
    raise AssertionError("a backend was tried")


def _configs(config: Any) -> Iterator[Any]:
    """A configuration and those within it."""
    yield config
    for name in getattr(config, "sub_configs", ()):
        part = getattr(config, name, None)
        if part is not None:
            yield from _configs(part)


def _refuse_missing_folder(name: str | Path) -> None:
    """Says that a path does not exist, which the hub would take for an odd name."""
    text = str(name)
    is_path = isinstance(name, Path) or text.startswith((".", "/", "~", "\\")) or text.count("/") > 1
    path = Path(text).expanduser()
    if is_path and not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise LvlmAttnError(
            f"Model folder {text!r} {what}; give a folder with config.json and weights, 'toy', or a hub id."
        )


def _refuse_incomplete(name: str | Path, told: Any) -> None:
    """Refuses weights that do not fill the model: what is left out would be random."""
    missing = sorted(told.get("missing_keys") or ())
    if missing:
        unknown = sorted(told.get("unexpected_keys") or ())
        held = remedy = ""
        if unknown:
            held = f", and holds {len(unknown)} that the model does not know, the first is {unknown[0]!r}"
            remedy = " under the names of this model"
        raise LvlmAttnError(
            f"Model {shown(str(name))} lacks {len(missing)} of its weights, the first is {missing[0]!r}{held}; what it "
            f"lacks would be random numbers, so fetch or save the checkpoint again{remedy}."
        )
    mismatched = sorted(told.get("mismatched_keys") or (), key=str)
    if mismatched:
        key, found, wanted = (*mismatched[0], None, None)[:3]
        raise LvlmAttnError(
            f"Model {shown(str(name))} has {len(mismatched)} weights of another shape than its config.json asks for, "
            f"the first is {key!r} with {tuple(found or ())} for {tuple(wanted or ())}; the two do not belong together."
        )


def _reason(error: Exception) -> str:
    """What went wrong, in one line, and what to do about it."""
    import pickle
    import zipfile

    from safetensors import SafetensorError

    text = str(error).strip() or type(error).__name__
    first = " ".join(text.splitlines()[0].split()).rstrip(".:")
    if isinstance(error, pickle.UnpicklingError):
        return (
            "its weights are a pickle that holds more than tensors, which could run code on this machine. Take a "
            "checkpoint with .safetensors files."
        )
    if isinstance(error, (SafetensorError, EOFError, zipfile.BadZipFile)):
        return f"a file of weights is damaged or was not downloaded to its end ({first}). Fetch it again."
    if unknown := next((words for sign, words in _UNREGISTERED.items() if sign in text), None):
        from transformers import __version__

        found = re.search(r"model type `(\w{1,60})`", text)
        named = f" {found[1]!r}" if found else ""
        return (
            f"transformers {__version__} {unknown}{named}. Register the classes of a type of your own with "
            f"AutoConfig.register, AutoModelForImageTextToText.register and AutoProcessor.register before loading, "
            f"on the command line in the file of --plugin; for a published type take a transformers that has it."
        )
    if "custom code" in text:
        return (
            "it asks to run code of its own. Take a model that transformers knows, or pass trust_remote_code=True if "
            "you trust its authors."
        )
    return (
        f"{first[:300]}. Give 'toy', a folder with config.json, weights and the processor's files, or a hub id that "
        f"can be reached."
    )


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype | str:
    """Reads the name of a dtype; `"auto"` stays as it is."""
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in _DTYPES:
        raise LvlmAttnError(f"dtype={dtype!r} is not known; choose auto, {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


@contextmanager
def _cache_alone_where_the_hub_is_away(name: str | Path) -> Iterator[None]:
    """Keeps a look-up that cannot work from being tried for minutes: without a connection, the cache decides."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before and not Path(name).is_dir() and not _reachable(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(address: str, seconds: float = 4.0) -> bool:
    """Whether a connection to the address, or to the proxy in front of it, comes about in time."""
    parts = urlsplit(address)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    place = urlsplit(proxy if "//" in proxy else f"//{proxy}") if proxy else parts
    answers: list[bool] = []

    def connect() -> None:
        try:
            port = place.port or (80 if place.scheme == "http" else 443)
            socket.create_connection((place.hostname or "", port), timeout=seconds).close()
            answers.append(True)
        except OSError:
            pass

    # Looking up a name knows no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)


def _default_device() -> str:
    if torch.cuda.is_available():
        return local_device("cuda")
    return "mps" if torch.backends.mps.is_available() else "cpu"
