"""A model with methods on it, asked in batches by a harness."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lvlm_attn.errors import LvlmAttnError, closest, shown
from lvlm_attn.evals.core.answerer import Decoding, ModelAnswerer
from lvlm_attn.evals.core.parsers import without_reasoning
from lvlm_attn.evals.core.runner import Answer, sample_seed
from lvlm_attn.hooks.parsing import parse

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_attn.interventions.base import Intervention

DEFAULT_LIMIT = 1024
"""Tokens of an answer where a task sets no limit."""
BLANK_LINE = "\n\n"
"""What lmms-eval puts into `until` of every task that sets none; no reason to cut a caption."""
_KNOWN = (
    "max_new_tokens",
    "temperature",
    "do_sample",
    "top_p",
    "top_k",
    "num_beams",
    "until",
    "image_aspect_ratio",
)


@dataclass(frozen=True)
class Ask:
    """One prompt.

    Attributes:
        name: seeds sampling; the same for the same sample in every run.
        prompt: a question, or chat messages, in any form that `lvlm.generate` takes.
        images: its images; None where messages hold them.
    """

    name: str
    prompt: Any
    images: Sequence[Image] | None = None


def interventions_of(text: object) -> tuple[Intervention, ...]:
    """Reads the methods a harness was told, which may stand in quotes.

    Raises:
        LvlmAttnError: unknown method or parameter.
    """
    plain = str(text or "").strip()
    if len(plain) > 1 and plain[0] == plain[-1] and plain[0] in "\"'":
        plain = plain[1:-1]
    return parse(plain) if plain else ()


def answer(
    model: Any,
    processor: Any,
    interventions: Sequence[Intervention],
    asks: Sequence[Ask],
    decoding: Decoding,
    batch_size: int,
    seed: int = 0,
) -> Iterator[Answer]:
    """Answers prompts in batches; whatever goes wrong is raised, never an empty answer."""
    with ModelAnswerer(model, processor, interventions, decoding) as answerer:
        size = min(batch_size, answerer.rows_at_once or batch_size)
        for start in range(0, len(asks), size):
            part = asks[start : start + size]
            images = [None if ask.images is None else list(ask.images) for ask in part]
            request = answerer.prepare_given(images, [ask.prompt for ask in part])  # type: ignore[arg-type]
            yield from answerer.answer_prepared(request, [sample_seed(seed, ask.name) for ask in part])


def decoding_of(options: Mapping[str, Any], where: str) -> Decoding:
    """How a task wants its answers generated.

    Args:
        options: `max_new_tokens`, `temperature`, `do_sample` and what else a task sets.
        where: how messages name the task.

    Raises:
        LvlmAttnError: an option that cannot be had here.
    """
    for name, value in options.items():
        if name not in _KNOWN:
            raise LvlmAttnError(
                f"{where} sets {name}={shown(value)}, which is not known here.{closest(name, _KNOWN)} Known are "
                f"{', '.join(_KNOWN)}."
            )
    temperature = float(options.get("temperature") or 0)
    samples = temperature > 0 and options.get("do_sample") is not False
    if int(options.get("num_beams") or 1) > 1:
        raise LvlmAttnError(f"{where} sets num_beams={options['num_beams']}; only methods choose beams here.")
    neutral: dict[str, tuple[object, ...]] = {"top_p": (None, 1, 0), "top_k": (None, 0, 50)}
    cut = next((name for name, values in neutral.items() if options.get(name) not in values), None)
    if samples and cut is not None:
        raise LvlmAttnError(
            f"{where} sets {cut}={shown(options[cut])}; here sampling is from the whole distribution, so pass "
            f"--gen_kwargs {cut}={neutral[cut][1]}."
        )
    limit = int(options.get("max_new_tokens") or DEFAULT_LIMIT)
    return Decoding("sample" if samples else "greedy", limit, temperature if samples else 1.0)


def stops_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Where a task wants answers cut; the blank line that lmms-eval adds by itself is none of its wishes."""
    until = options.get("until")
    listed = [until] if isinstance(until, str) else list(until or ())
    return tuple(stop for stop in listed if stop and stop != BLANK_LINE)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """An answer up to the first stop; stops inside a block of reasoning do not count.

    Example:
        >>> cut_at("<think>so.</think>Yes. It is", (".",))
        '<think>so.</think>Yes'
    """
    if not stops:
        return text
    said = without_reasoning(text)[0]
    start = text.rfind(said.strip()) if said.strip() else len(text)
    places = [place for stop in stops if (place := text.find(stop, start)) >= 0]
    return text[: min(places)] if places else text


def same_options(options: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Places of requests that are generated alike."""
    found: dict[str, list[int]] = {}
    for place, item in enumerate(options):
        found.setdefault(json.dumps(item, sort_keys=True, default=str), []).append(place)
    return found
