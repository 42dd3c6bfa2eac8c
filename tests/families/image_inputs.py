"""What a real model's forward and `generate` reveal of their prompts, caught with hooks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lvlm_attn.families import ImageInputs, family_of, named_arguments, parts_of, prompt_layout
from lvlm_attn.layout.prompt import PromptLayout


@dataclass
class Call:
    """One forward of the language model, and the padding mask it came with."""

    image_inputs: ImageInputs
    mask: Tensor | None


def caught(model: Any, run: Callable[[], Any]) -> list[Call]:
    """Every forward of the language model while `run` runs."""
    parts = parts_of(model)
    calls: list[Call] = []
    latest: dict[str, Any] = {}

    def before_base(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latest.clear()
        latest.update(named_arguments(module, args, kwargs))

    def before_language_model(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = dict(latest)
        image_inputs = ImageInputs(
            config=model.config,
            input_ids=call["input_ids"],
            call=call,
            position_ids=kwargs.get("position_ids"),
            newline=parts.newline,
        )
        calls.append(Call(image_inputs, call.get("attention_mask")))

    hooks = [
        parts.base.register_forward_pre_hook(before_base, with_kwargs=True),
        parts.language_model.register_forward_pre_hook(before_language_model, with_kwargs=True),
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def layout_of(model: Any, run: Callable[[], Any]) -> PromptLayout:
    """The layout of the first forward that `run` makes."""
    first = caught(model, run)[0]
    return prompt_layout(family_of(model), first.image_inputs, first.mask)
