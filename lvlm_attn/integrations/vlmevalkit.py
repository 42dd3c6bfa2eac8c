"""VLMEvalKit: this project's models in its table of models, which has no entry points.

    from vlmeval.config import supported_VLM
    from lvlm_attn.integrations.vlmevalkit import register

    register(supported_VLM, {"llava-vhr": {"pretrained": "llava-hf/llava-1.5-7b-hf", "intervene": "vhr"}})

before `run.py` of that tool reads the table. A model is a callable that it makes when the model is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.integrations.answering import Ask, answer, decoding_of, interventions_of

NAMES: dict[str, dict[str, str]] = {
    "lvlm_attn_toy": {"pretrained": "toy"},
    "lvlm_attn_llava_1.5_7b": {"pretrained": "llava-hf/llava-1.5-7b-hf"},
    "lvlm_attn_llava_1.5_7b_var": {"pretrained": "llava-hf/llava-1.5-7b-hf", "intervene": "var"},
    "lvlm_attn_llava_1.5_7b_vhr": {"pretrained": "llava-hf/llava-1.5-7b-hf", "intervene": "vhr"},
}
"""Models that are there if no others are named."""


class VLMEvalModel:
    """A model as VLMEvalKit asks it: `generate(message, dataset=None)` gives a text.

    Args:
        pretrained: `toy`, a hub id, or a folder.
        intervene: methods as on the command line.
        device: where it goes.
        dtype: as for `lvlm_attn.load`.
        max_new_tokens: length limit of an answer.
        **options: what else `lvlm_attn.load` takes.

    Raises:
        LvlmAttnError: an unknown method or parameter, or a model that cannot be loaded.
    """

    INTERLEAVE: ClassVar[bool] = True
    is_api: ClassVar[bool] = False
    allowed_types: ClassVar[tuple[str, ...]] = ("text", "image")

    def __init__(
        self,
        pretrained: str = "toy",
        intervene: str = "",
        device: str | None = None,
        dtype: str | None = None,
        max_new_tokens: int = 512,
        **options: Any,
    ) -> None:
        from lvlm_attn.loading import load

        self.interventions = interventions_of(intervene)
        self._decoding = decoding_of({"max_new_tokens": max_new_tokens}, "VLMEvalKit's model")
        self._model, self.processor = load(pretrained, device=device, dtype=dtype, **options)

    def set_dump_image(self, dump: Any) -> None:
        """Kept for that tool, which sets how pictures are written out; they are read from the messages."""

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """Questions are asked as the data set words them."""
        return False

    def generate(self, message: Any, dataset: str | None = None) -> str:
        """Answers one message.

        Args:
            message: a text, or a list of `{"type": "image" | "text", "value": ...}` or of plain texts and paths.
            dataset: its name, for messages.

        Raises:
            LvlmAttnError: a video or an unreadable picture; nothing is answered with silence.
        """
        where = f"a message of {dataset or 'VLMEvalKit'}"
        parts = [message] if isinstance(message, str | Mapping) else list(message)
        ask = Ask("one", [{"role": "user", "content": [_part(part, where) for part in parts]}])
        (said,) = answer(self._model, self.processor, self.interventions, [ask], self._decoding, 1)
        return said.raw_text


def register(
    supported_vlm: MutableMapping[str, Any], models: Mapping[str, Mapping[str, Any]] | None = None
) -> list[str]:
    """Puts models into VLMEvalKit's table.

    Args:
        supported_vlm: its `supported_VLM`.
        models: by name, the arguments of :class:`VLMEvalModel`; None puts in :data:`NAMES`.

    Returns:
        The names put in.

    Raises:
        LvlmAttnError: a name that is taken, or an unknown method; then nothing is put in.

    Example:
        >>> table = {}
        >>> register(table, {"mine": {"pretrained": "toy", "intervene": "vhr:alpha=2.0"}})
        ['mine']
    """
    wanted = dict(NAMES if models is None else models)
    for name, arguments in wanted.items():
        if name in supported_vlm:
            raise LvlmAttnError(f"VLMEvalKit has a model {name!r} already; choose another name.")
        interventions_of(arguments.get("intervene"))
    for name, arguments in wanted.items():
        supported_vlm[name] = partial(VLMEvalModel, **arguments)
    return list(wanted)


def _part(part: Any, where: str) -> dict[str, Any]:
    """One piece of a message as a piece of a conversation."""
    if isinstance(part, str):
        is_picture = Path(part).suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".bmp")
        part = {"type": "image" if is_picture and Path(part).is_file() else "text", "value": part}
    kind, value = part.get("type"), part.get("value")
    if kind not in ("text", "image"):
        raise LvlmAttnError(f"{where} holds {shown(kind)}; only images and text can be asked about.")
    return {"type": kind, kind: value}
