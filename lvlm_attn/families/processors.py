"""Loading processors where torchvision is not installed.

Without torchvision, transformers reads images with PIL, but refuses to load any processor that could also read
videos, though videos are never asked of it here. Such a processor is put together from its image processor and
its tokenizer, and lacks the video part alone.
"""

from __future__ import annotations

from typing import Any

from lvlm_attn.errors import UnsupportedError


def load_processor(name: str, **hub: Any) -> Any:
    """Loads the processor of a model, with torchvision or without.

    Args:
        name: a hub id or a folder.
        **hub: `revision`, `token`, `trust_remote_code`.

    Raises:
        OSError: if the files cannot be found.
        ImportError: if something other than the video part needs a missing package.
        ValueError: if the type has no processor.
    """
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available

    try:
        found = AutoProcessor.from_pretrained(name, **hub)
    except (ImportError, TypeError, ValueError) as error:
        if is_torchvision_available():
            raise
        return _without_video(name, error, **hub)
    if not hasattr(found, "tokenizer"):  # a part is what is loaded where no processor is known
        raise ValueError(f"Unrecognized processing class in {name}: {type(found).__name__} is a part of one.")
    return found


def _without_video(name: str, error: Exception, **hub: Any) -> Any:
    import transformers
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    known = PROCESSOR_MAPPING_NAMES.get(AutoConfig.from_pretrained(name, **hub).model_type)
    kind = getattr(transformers, known, None) if isinstance(known, str) else None
    if kind is None or "video_processor" not in kind.get_attributes():
        raise error
    settings, _ = kind.get_processor_dict(name, **hub)
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(name, **hub),
        "tokenizer": AutoTokenizer.from_pretrained(name, **hub),
    }
    images_only = type(kind.__name__, (kind,), {"check_argument_for_proper_class": _check_all_but_video})
    arguments = [parts.get(attribute, _NoVideo()) for attribute in kind.get_attributes()]
    return images_only.from_args_and_dict(arguments, settings)  # type: ignore[attr-defined]


def _check_all_but_video(self: Any, name: str, argument: Any) -> Any:
    if name == "video_processor":
        return type(argument)
    return super(type(self), self).check_argument_for_proper_class(name, argument)


class _NoVideo(dict[str, Any]):
    """Stands where the video processor would, an empty setting in the processor's JSON; says so when used."""

    model_input_names: tuple[str, ...] = ()

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise UnsupportedError(
            "Reading videos needs torchvision, which is not installed; pass single frames as images."
        )
