"""Writing the trained toy to a folder, and loading it back as any user of transformers would."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn.errors import LvlmAttnError

if TYPE_CHECKING:
    from lvlm_attn.toy.planting import Planted

#: The folder inside the package that holds the trained model.
WEIGHTS = Path(__file__).resolve().parent / "weights"


def load(device: str = "cpu", dtype: Any = None, folder: str | Path | None = None) -> tuple[Any, Any]:
    """Loads the bundled toy: a trained, tiny LLaVA that needs no download.

    Args:
        device: Where to put the model.
        dtype: Type of the weights, a ``torch.dtype``; None for float32.
        folder: Another folder written by ``save``; None for the one in the package.

    Returns:
        The model, a ``LlavaForConditionalGeneration`` in evaluation mode, and its ``LlavaProcessor``.

    Raises:
        LvlmAttnError: The folder holds no model.

    Example:
        >>> from lvlm_attn.toy import load
        >>> model, processor = load()
        >>> model.config.image_seq_length
        144
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    place = WEIGHTS if folder is None else Path(folder)
    if not (place / "model.safetensors").is_file():
        raise LvlmAttnError(
            f"The toy's weights are missing: {place} holds no model.safetensors; reinstall lvlm-attn, or train them "
            "with `python -m lvlm_attn.toy.train --out FOLDER`."
        )
    model = AutoModelForImageTextToText.from_pretrained(
        place, dtype=dtype or torch.float32, local_files_only=True
    )
    processor = AutoProcessor.from_pretrained(place, local_files_only=True)
    return model.eval().to(device), processor


def planted(folder: str | Path | None = None) -> Planted:
    """Returns what was planted in a toy.

    Args:
        folder: A folder written by ``save``; None for the toy in the package.

    Raises:
        LvlmAttnError: The folder does not say.

    Example:
        >>> from lvlm_attn.toy.bundle import planted
        >>> planted().layers
        (2, 3, 4)
    """
    from lvlm_attn.toy.planting import FILE, Planted

    place = WEIGHTS if folder is None else Path(folder)
    if not (place / FILE).is_file():
        raise LvlmAttnError(
            f"{place} holds no {FILE}: nothing was planted in its model; train it up to stage priors."
        )
    return Planted.read(place)


def save(model: Any, processor: Any, folder: Path, planted: Planted | None = None) -> None:
    """Writes the model, its processor, its greedy generation settings and what was planted.

    Args:
        model: The toy; its weights are stored in half precision, and load in single precision.
        processor: Its processor.
        folder: Where to write; made when absent.
        planted: What was planted, if anything.
    """
    import json

    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    text = model.config.text_config
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    halves = {name: value.half() for name, value in model.state_dict().items() if value.is_floating_point()}
    model.save_pretrained(folder, state_dict={**model.state_dict(), **halves})
    if planted is not None:
        planted.write(folder)
    processor.save_pretrained(folder)
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        for key in [name for name in part if name.startswith("_")]:
            del part[key]
    for part in (config["text_config"], config["vision_config"]):
        part.pop("dtype", None)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
