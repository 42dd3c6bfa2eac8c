"""`lvlm.generate`: what interventions ask of the model, in one batch where there are several views."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from lvlm_attn.decoding.contrast import count_choices
from lvlm_attn.decoding.features import FeatureBank, can_share, encoding_once
from lvlm_attn.decoding.joined_rows import Fuse, JoinedRows
from lvlm_attn.decoding.loop import decode
from lvlm_attn.decoding.options import (
    own_stop_strings,
    refuse_config,
    refuse_inputs,
    refuse_options,
    split_model_options,
)
from lvlm_attn.decoding.roomy_cache import give_room, with_roomy_cache
from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.interventions.context import State
from lvlm_attn.interventions.summary import add
from lvlm_attn.prompts.pixels import join_pictures
from lvlm_attn.prompts.rows import stack_rows, tokens_of
from lvlm_attn.prompts.videos import join_videos
from lvlm_attn.runtime.modes import Mode
from lvlm_attn.runtime.transformers_private import keeping_processors, pad_token

if TYPE_CHECKING:
    from lvlm_attn.interventions.base import Intervention
    from lvlm_attn.prompts.request import Request
    from lvlm_attn.runtime.session import Session


LOOP_KEYS = ("logits_processor", "stopping_criteria", "generation_config")
"""What `generate` prepares for a decoding loop; all else is for the model."""


class Branch(NamedTuple):
    """An intervention that joins logits, and the views it gave."""

    item: Intervention
    views: tuple[Request, ...]
    state: State


def generate(session: Session, request: Request, options: Mapping[str, Any]) -> tuple[Any, Request]:
    """Generates for a request inside a wrap.

    Args:
        session: the wrap.
        request: what the user asks.
        options: what else `model.generate` was given.

    Returns:
        What `model.generate` returns, and the request as it was asked in the end.

    Raises:
        LvlmAttnError: if a view has another number of rows than its request.
        UnsupportedError: if an option or two interventions do not go together.
    """
    session.details = request.details
    asked = session.modes.run(Mode(is_silent=True), lambda: _asked(session, request))
    views = sum(len(branch.views) for branch in asked.branches)
    serving = Mode(request=asked.request, views=views)
    with keeping_processors(session.target.model, options.get("logits_processor")):
        return session.modes.run(serving, lambda: _generated(session, asked, options)), asked.request


class _Asked(NamedTuple):
    """A request as interventions rewrote it, and how they want it decoded."""

    request: Request
    branches: list[Branch]
    loop: Callable[..., Any] | None


def _asked(session: Session, request: Request) -> _Asked:
    items = session.interventions
    for item, state in session.editors:
        if item.overrides("rewrite"):
            request = _rewritten(item, state, request)
    found = (_branch(item, state, request) for item, state in session.editors)
    branches = [branch for branch in found if branch is not None]
    return _Asked(request, branches, _loop(items, request, branches))


def _generated(session: Session, asked: _Asked, options: Mapping[str, Any]) -> Any:
    model, request = cast("Any", session.target.model), asked.request
    if asked.branches:
        return _generate_joined(model, request, asked.branches, options)
    # What methods read in the image encoder belongs to the rows that it encodes.
    reads_encoder = any(item.overrides("vision") for item in session.interventions)
    with nullcontext() if reads_encoder else encoding_once(request):
        if asked.loop is None:
            return model.generate(**with_roomy_cache(model, dict(**request.inputs, **options)))
        options = own_stop_strings(dict(options), model.generation_config)
        given = with_roomy_cache(model, dict(**request.inputs, **options))
        return model.generate(**given, custom_generate=asked.loop)


def _rewritten(item: Intervention, state: State, request: Request) -> Request:
    """What an intervention makes of a request; how many of its prompts have other words or images is counted."""
    made = item.rewrite(request)
    if made is not request:
        add(state.counts, "prompts", made.batch)
        add(state.counts, "prompts_changed", sum(map(operator.ne, _told(request), _told(made))))
    return made


def _told(request: Request) -> list[tuple[Any, ...]]:
    """What tells the prompts of a request apart: words and images, or all its tensors where these are not known."""
    if request.texts is None or request.images is None:
        return [tuple(map(id, request.inputs.values()))] * request.batch
    return [(text, *map(id, images)) for text, images in zip(request.texts, request.images)]


def _branch(item: Intervention, state: State, request: Request) -> Branch | None:
    views = tuple(item.views(request)) if item.overrides("views") else ()
    for view in views:
        if view.batch != request.batch:
            raise LvlmAttnError(
                f"{item.title} gave a view of {view.batch} rows for a request of {request.batch}; a view needs one "
                f"row for each."
            )
    fuses_alone = item.overrides("fuse") and not item.overrides("views")
    if not views and not fuses_alone:
        return None
    if views:
        add(state.counts, "views", len(views))
    return Branch(item, views, state)


def _loop(
    items: Sequence[Intervention], request: Request, branches: Sequence[Branch]
) -> Callable[..., Any] | None:
    found = [(item, item.loop(request)) for item in items if item.overrides("loop")]
    found = [(item, loop) for item, loop in found if loop is not None]
    if not found:
        return None
    others = [item.title for item, _ in found[1:]] + [branch.item.title for branch in branches]
    if others:
        raise UnsupportedError(
            f"{found[0][0].title} decodes in a loop of its own, which {' and '.join(others)} cannot take part in; "
            f"use one of them."
        )
    return found[0][1]


def _generate_joined(
    model: Any, request: Request, branches: Sequence[Branch], options: Mapping[str, Any]
) -> Any:
    """Two calls of `generate`: the outer prepares the loop for the rows asked for, the inner the model for all rows."""
    titles = " and ".join(branch.item.title for branch in branches)
    views = [view for branch in branches for view in branch.views]
    for one in (request, *views):
        refuse_inputs(one.inputs, titles)
    refuse_options(options, titles)
    own, handed_on = split_model_options(own_stop_strings(dict(options), model.generation_config))
    joined = _joined([request, *views], handed_on)
    streamer = own.get("streamer")

    def outer(owner: Any, input_ids: Tensor, **prepared: Any) -> Any:
        config = prepared["generation_config"]
        refuse_config(config, titles)
        loop = {key: prepared[key] for key in LOOP_KEYS}

        def inner(owner: Any, all_ids: Tensor, **prepared: Any) -> Any:
            kwargs = {key: value for key, value in prepared.items() if key not in LOOP_KEYS}
            give_room(kwargs.get("past_key_values"), count)
            fuse, layers = _fusion(branches, request), request.target.parts.layers
            rows = JoinedRows(owner, all_ids, kwargs, len(input_ids), fuse, layers)
            return decode(rows, input_ids, **loop, streamer=streamer)

        count = config.max_length - input_ids.shape[1]
        return owner.generate(
            **joined, **handed_on, generation_config=_inner_config(config, count), custom_generate=inner
        )

    deltas = getattr(request.target.parts.base, "rope_deltas", None)
    tokens = {"input_ids": request.inputs["input_ids"], "attention_mask": request.mask}
    try:
        return model.generate(**tokens, **own, custom_generate=outer)
    finally:
        # Qwen-VL keeps the offsets of the last prompt on the module; those of the joined rows fit no other call.
        if hasattr(request.target.parts.base, "rope_deltas"):
            cast("Any", request.target.parts.base).rope_deltas = deltas


def _fusion(branches: Sequence[Branch], request: Request) -> Fuse:
    """Joins the logits of all views; rows without an image keep theirs where the intervention needs one."""
    has_image = request.layout.has_image
    is_mixed = not bool(has_image.all())

    def fuse(main: Tensor, views: Sequence[Tensor], step: int) -> Tensor:
        rest = list(views)
        for item, own, state in branches:
            mine, rest = rest[: len(own)], rest[len(own) :]
            fused = item.fuse(main, mine, step)
            if fused.shape != main.shape:
                raise LvlmAttnError(
                    f"{item.title}.fuse returned shape {tuple(fused.shape)}; it must keep {tuple(main.shape)}, which "
                    f"is (batch, vocabulary)."
                )
            if is_mixed and item.needs_image:
                keeps = ~has_image.to(main.device).repeat_interleave(len(main) // len(has_image))
                fused = torch.where(keeps[:, None], main, fused)
            count_choices(state, main, fused)
            main = fused
        return main

    return fuse


def _joined(requests: Sequence[Request], options: Mapping[str, Any]) -> dict[str, Any]:
    """What the model takes for all rows: those of the first request, then those of each view."""
    target, first = requests[0].target, requests[0]
    pieces = [{**tokens_of(one.inputs), "attention_mask": one.mask} for one in requests]
    inputs: dict[str, Any] = dict(stack_rows(pieces, first.pad_id))
    rows = [row for one in requests for row in one.pictures]
    pixels = join_pictures(rows, counts=any("batch_num_images" in one.inputs for one in requests))
    videos = join_videos([row for one in requests for row in one.videos])
    # `generate` encodes pixels of images and of videos, or takes both encoded.
    if pixels and not videos and can_share(target):
        bank = FeatureBank(target, options)
        for one in requests:
            bank.add(one.pictures, one.inputs)
        flat = [picture for row in rows for picture in row]
        del pixels["pixel_values"]
        inputs["mm_encoder_outputs"] = {"image": bank.outputs(flat)}
    return inputs | pixels | videos


def _inner_config(config: Any, count: int) -> Any:
    """The configuration of the rows asked for, with `count` new tokens and nothing that reads token ids."""
    inner = copy.deepcopy(config)
    inner.max_new_tokens, inner.max_length = count, None
    inner.min_length, inner.min_new_tokens = 0, None
    inner.stop_strings, inner.token_healing = None, False
    pad = pad_token(config)
    if inner.pad_token_id is None and pad is not None:
        inner.pad_token_id = int(pad)
    return inner
