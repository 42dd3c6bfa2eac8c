"""Loading a model with its processor: the bundled toy, a hub id, or a folder."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.ranks import local_device
from lvlm_attn.families import family_of

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
}


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Loads a model and its processor, ready for `wrap`.

    Args:
        name: `"toy"` for the bundled model, a hub id such as `"llava-hf/llava-1.5-7b-hf"`, or a folder.
        device: where to put it; None takes the GPU (CUDA, else Apple's) if there is one.
        dtype: `"auto"`, `"float32"`, `"bfloat16"`, `"float16"` or a torch dtype; None is the checkpoint's own
            on a GPU, and fp32 on the CPU.
        **options: passed to `from_pretrained` (`revision`, `attn_implementation`, `device_map`, ...).

    Returns:
        The model in eval mode, and its processor, which pads on the left.

    Raises:
        LvlmAttnError: if the model cannot be found or is of an unsupported family.

    Example:
        >>> model, processor = load("toy")  # doctest: +SKIP
    """
    place = torch.device(device) if device is not None else torch.device(_default_device())
    if str(name) == "toy":
        from lvlm_attn import toy

        wanted = None if dtype is None else torch_dtype(dtype)
        return toy.load(str(place), wanted if isinstance(wanted, torch.dtype) else None)
    from transformers import AutoConfig, AutoModelForImageTextToText

    from lvlm_attn.families.processors import load_processor

    chosen = torch_dtype(dtype if dtype is not None else "float32" if place.type == "cpu" else "auto")
    hub = {key: options[key] for key in ("revision", "token", "trust_remote_code") if key in options}
    try:
        with _cache_alone_where_the_hub_is_away(name):
            family_of(AutoConfig.from_pretrained(name, **hub))
            processor = load_processor(str(name), **hub)
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=chosen, **options)
    except LvlmAttnError:
        raise
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LvlmAttnError(
            f"Model {str(name)!r} could not be loaded: {first.rstrip('.')}. Give 'toy', a folder with config.json and "
            f"weights, or a hub id that can be reached."
        ) from error
    if "device_map" not in options:
        model = model.to(place)
    processor.tokenizer.padding_side = "left"
    return model.eval(), processor


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
