"""``env.json``: what a run was made with, as far as it can change the last digits of logits."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Sequence
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn._version import __version__

if TYPE_CHECKING:
    from lvlm_attn.evals.core.benchmark import Sample
    from lvlm_attn.interventions.base import Intervention

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "numpy",
    "pillow",
    "triton",
    "flash_attn",
    "bitsandbytes",
    "torchvision",
)


def describe_model(name: str, model: Any) -> dict[str, Any]:
    """Identity of a model: id, revision, dtype, quantisation, attention backend and a fingerprint of its weights."""
    from lvlm_attn.runtime.transformers_private import attention_of, revision_of

    text_config = model.config.get_text_config()
    quantised = getattr(model.config, "quantization_config", None)
    found = {
        "id": name,
        "revision": revision_of(model.config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": attention_of(text_config),
        "weights": fingerprint(model),
    }
    return found if quantised is None else {**found, "quantization": _plain(quantised)}


def _plain(value: Any) -> Any:
    told = value.to_dict() if hasattr(value, "to_dict") else value
    if not isinstance(told, dict):
        return str(told)
    return {
        str(key): item if isinstance(item, str | int | float | bool) else str(item)
        for key, item in told.items()
    }


def fingerprint(model: Any) -> str:
    """A hash of the first values of every parameter: tells retrained weights apart without reading all of them."""
    digest = sha256()
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":  # offloaded weights are not in reach
            continue
        values = parameter.detach().flatten()[:16].float().cpu().numpy()
        digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()[:16]


def plugin_hashes(interventions: Sequence[Intervention]) -> dict[str, str]:
    """The source file of each method that is not this package's, by its hash: other code gives other answers."""
    found = {}
    for item in interventions:
        kind = type(item)
        if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
            continue
        try:
            source = Path(inspect.getsourcefile(kind) or "").read_bytes()
        except (OSError, TypeError):
            source = b""
        found[kind.name or kind.__name__] = sha256(source).hexdigest() if source else "source unknown"
    return found


def environment(model: Any, processor: Any, samples: Sequence[Sample] = ()) -> dict[str, Any]:
    """Versions, devices, processor and pictures."""
    import torch

    from lvlm_attn.runtime.transformers_private import attention_of, revision_of

    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    image_processor = getattr(processor, "image_processor", processor)
    devices = sorted({str(item.device) for item in model.parameters()})
    return {
        "lvlm_attn": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(model.device),
        "devices": devices,
        "device_names": sorted(
            {torch.cuda.get_device_name(item) for item in devices if item.startswith("cuda")}
        ),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": attention_of(model.config.get_text_config()),
        "model_class": type(model).__name__,
        "model_revision": revision_of(model.config),
        "processor_class": type(processor).__name__,
        "image_processor_class": type(image_processor).__name__,
        **versions,
        "pictures": _folder_of(samples),
    }


def _folder_of(samples: Sequence[Sample]) -> str | None:
    """The folder to which picture names belong, where pictures are files."""
    for sample in samples:
        if isinstance(sample.image, Path):
            path = sample.image.resolve()
            depth = len(Path(sample.image_name).parts)
            return str(path.parents[depth - 1]) if depth <= len(path.parents) else str(path.parent)
    return None
