"""The beam search of OPERA: look ahead, judge, choose, and now and then go back.

Bookkeeping of beams is that of transformers, so that without penalty and going back the search is its beam search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.hooks.opera.reader import Reader
from lvlm_attn.hooks.opera.scores import TAPE, Rule, Tape, common_column, grown, penalties
from lvlm_attn.runtime.transformers_private import (
    best_continuations,
    end_tokens,
    finished_beams,
    may_improve,
    pad_token,
    running_beams,
    search_goes_on,
)

LOWEST = -1.0e9
"""Score of a beam that does not exist yet, as in transformers."""


@dataclass(frozen=True)
class State:
    """A search that has chosen some tokens; going back takes an earlier one.

    Attributes:
        length: length of the sequences so far, prompt included.
        sequences: `(batch, beams, most tokens)`, running.
        scores: `(batch, beams)`.
        indices: `(batch, beams, most new tokens)`, the beam each token came from.
        done: `(batch, beams, most tokens)`, finished answers; then their scores, indices and whether they exist.
        may_improve: `(batch, 1)`, whether a running beam may still beat the finished ones.
        columns: `(rows, n)`, logarithms of the column scores of the answers.
        largest: `(rows, n)`, the largest column at each step.
    """

    length: int
    sequences: Tensor
    scores: Tensor
    indices: Tensor
    done: Tensor
    done_scores: Tensor
    done_indices: Tensor
    is_done: Tensor
    may_improve: Tensor
    columns: Tensor
    largest: Tensor


@dataclass
class Retreats:
    """Where the search went back, and the tokens it must not choose again."""

    count: dict[int, int] = field(default_factory=dict)
    banned: dict[int, set[int]] = field(default_factory=dict)
    last: int = -1


def search(
    model: Any,
    input_ids: Tensor,
    *,
    rule: Rule,
    is_image: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    run: Callable[..., Any] | None = None,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> Any:
    """Decodes; called by `generate` with rows repeated for the beams.

    Args:
        model: the model that generates.
        input_ids: `(batch * beams, length)`.
        rule: the parameters.
        is_image: `(batch, length)`, True at image tokens.
        logits_processor: of `generate`.
        stopping_criteria: of `generate`.
        generation_config: of `generate`.
        run: the search itself, if it is another one than this module's.
        synced_gpus: unused.
        **model_kwargs: of `generate`.

    Returns:
        Token ids, or transformers' output of a beam search.
    """
    config, beams = generation_config, generation_config.num_beams or 1
    batch, prompt = input_ids.shape[0] // max(beams, 1), input_ids.shape[1]
    _refuse_setting(config, beams, batch, rule)
    tape = Tape()
    token = TAPE.set(tape)
    try:
        reader = Reader(model, tape, prompt, is_image.repeat_interleave(beams, 0), model_kwargs)
        chosen = run or _search
        return chosen(model, input_ids, rule, reader, logits_processor, stopping_criteria, config)
    finally:
        TAPE.reset(token)


def _search(
    model: Any, ids: Tensor, rule: Rule, reader: Reader, processor: Any, stopping: Any, config: Any
) -> Any:
    beams, prompt = config.num_beams, ids.shape[1]
    batch = ids.shape[0] // beams
    ends = end_tokens(config)
    width = max(2, 1 + (0 if ends is None else ends.shape[0])) * beams
    count = max(rule.candidates, width // beams) if rule.candidates > 1 else 1
    state = begun(ids, batch, beams, config)
    logits = reader.read_prompt(ids, config)
    retreats, history = Retreats(), {prompt: state}
    scores: list[Tensor] = []
    raw: list[Tensor] = []
    taken = 0
    while True:
        flat = state.sequences[:, :, : state.length].flatten(0, 1)
        processed = processor(flat, logits.log_softmax(-1))
        if state.length in retreats.banned:
            processed = processed.clone()
            processed[:, sorted(retreats.banned[state.length])] = -torch.inf
        ahead = _judged(rule, reader, state, logits, processed, count) if count > 1 else None
        values = processed if ahead is None else ahead.values
        scores, raw = [*scores[: state.length - prompt], values], [*raw[: state.length - prompt], logits]
        state, stops = step(model, state, values, stopping, config, width, prompt, tuple(scores))
        taken += 1
        if not search_goes_on(model, state.may_improve, state.is_done, stops, config.early_stopping):
            break
        parents = state.indices[..., state.length - 1 - prompt].flatten().long()
        words = state.sequences[:, :, state.length - 1].flatten()
        if ahead is None:
            reader.reorder(parents)
            logits, row = reader.read_last(state.sequences[:, :, : state.length].flatten(0, 1))
            columns = grown(state.columns[parents], row, rule.sigma)
        else:
            index = (ahead.words[parents] == words[:, None]).int().argmax(1)
            reader.keep(parents, index)
            logits, columns = ahead.logits[parents, index], ahead.columns[parents, index]
        largest = torch.cat((state.largest[parents], columns.argmax(-1, keepdim=True)), 1)
        state = replace(state, columns=columns, largest=largest)
        history = {length: one for length, one in history.items() if length < state.length}
        history[state.length] = state
        back = _retreat(rule, state, retreats, prompt)
        if back is not None:
            state = history[back]
            logits = reader.go_back(state.sequences[:, :, : state.length].flatten(0, 1))
    tally(reader.tape.stats, batch, taken, sum(retreats.count.values()))
    return outcome(state, prompt, config, scores, raw, reader)


@dataclass(frozen=True)
class Ahead:
    """What looking ahead gave.

    Attributes:
        words: `(rows, candidates)`.
        logits: `(rows, candidates, vocabulary)` after each candidate.
        columns: `(rows, candidates, n + 1)`, column scores with the candidate in place.
        values: `(rows, vocabulary)`, log probabilities after the penalty, minus infinity at all other tokens.
    """

    words: Tensor
    logits: Tensor
    columns: Tensor
    values: Tensor


def _judged(rule: Rule, reader: Reader, state: State, logits: Tensor, processed: Tensor, count: int) -> Ahead:
    words = processed.topk(min(count, processed.shape[-1]), dim=-1).indices
    following, on_answer, on_image = reader.look_ahead(words)
    columns = grown(state.columns[:, None].expand(-1, words.shape[1], -1), on_answer, rule.sigma)
    penalty = rule.alpha * penalties(columns, on_image)
    own = logits.gather(1, words).double()
    # The candidates share all probability; what processors did to a token stays.
    change = (own - penalty).log_softmax(-1) - logits.double().log_softmax(-1).gather(1, words)
    values = torch.full_like(processed, -torch.inf)
    values.scatter_(1, words, (processed.gather(1, words) + change).to(values.dtype))
    return Ahead(words, following, columns, values)


def begun(ids: Tensor, batch: int, beams: int, config: Any) -> State:
    """A search that has chosen nothing yet."""
    prompt, most = ids.shape[1], config.max_length
    ends, fill = end_tokens(config), pad_token(config)
    value = -1 if ends is None else int(fill if fill is not None and int(fill) else ends[0])
    sequences = torch.full((batch, beams, most), value, dtype=torch.long, device=ids.device)
    sequences[:, :, :prompt] = ids.view(batch, beams, prompt)
    scores = torch.zeros(batch, beams, device=ids.device)
    scores[:, 1:] = LOWEST
    indices = torch.full((batch, beams, most - prompt), -1, dtype=torch.int32, device=ids.device)
    none = torch.zeros(batch * beams, 0, device=ids.device)
    return State(
        length=prompt,
        sequences=sequences,
        scores=scores,
        indices=indices,
        done=sequences.clone(),
        done_scores=torch.full_like(scores, LOWEST),
        done_indices=indices.clone(),
        is_done=torch.zeros_like(scores, dtype=torch.bool),
        may_improve=torch.ones(batch, 1, dtype=torch.bool, device=ids.device),
        columns=none.double(),
        largest=none.long(),
    )


def step(
    model: Any,
    state: State,
    values: Tensor,
    stopping: Any,
    config: Any,
    width: int,
    prompt: int,
    all_scores: tuple[Tensor, ...],
) -> tuple[State, Tensor]:
    """Chooses the next tokens of all beams; gives also which of the best continuations ended."""
    batch, beams = state.scores.shape
    total = (values.view(batch, beams, -1) + state.scores[:, :, None]).flatten(1)
    best, sequences, indices = best_continuations(
        model,
        accumulated_log_probs=total,
        running_sequences=state.sequences,
        running_beam_indices=state.indices,
        cur_len=state.length,
        decoder_prompt_len=prompt,
        do_sample=config.do_sample,
        beams_to_keep=width,
        num_beams=beams,
        vocab_size=values.shape[-1],  # newer versions read it off the scores
        batch_size=batch,
    )
    stops = stopping(sequences[:, :, : state.length + 1].flatten(0, 1), all_scores).view(batch, width)
    running, scores, running_indices = running_beams(
        model,
        topk_log_probs=best,
        topk_running_sequences=sequences,
        topk_running_beam_indices=indices,
        next_token_hits_stopping_criteria=stops,
        num_beams=beams,
    )
    done, done_scores, done_indices, is_done = _finished(
        model, state, (best, sequences, indices, stops), config, width, prompt
    )
    improves = _may_improve(model, state, (scores, done_scores, is_done), config, prompt)
    new = replace(
        state,
        length=state.length + 1,
        sequences=running,
        scores=scores,
        indices=running_indices,
        done=done,
        done_scores=done_scores,
        done_indices=done_indices,
        is_done=is_done,
        may_improve=improves,
    )
    return new, stops


def _may_improve(
    model: Any, state: State, scores: tuple[Tensor, Tensor, Tensor], config: Any, prompt: int
) -> Tensor:
    """Whether running beams may still win; `scores` are theirs, those of finished answers, and which exist."""
    running, done, is_done = scores
    return may_improve(
        model,
        is_early_stop_heuristic_unsatisfied=state.may_improve,
        running_beam_scores=running,
        beam_scores=done,
        is_sent_finished=is_done,
        cur_len=state.length + 1,
        max_length=config.max_length,
        decoder_prompt_len=prompt,
        early_stopping=config.early_stopping,
        length_penalty=config.length_penalty,
    )


def _finished(
    model: Any,
    state: State,
    continuations: tuple[Tensor, Tensor, Tensor, Tensor],
    config: Any,
    width: int,
    prompt: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The finished answers after a step; `continuations` are scores, sequences, beams and which of them ended."""
    best, sequences, indices, stops = continuations
    beams = state.scores.shape[1]
    return finished_beams(
        model,
        sequences=state.done,
        topk_running_sequences=sequences,
        beam_scores=state.done_scores,
        topk_log_probs=best,
        beam_indices=state.done_indices,
        topk_running_beam_indices=indices,
        is_early_stop_heuristic_unsatisfied=state.may_improve,
        is_sent_finished=state.is_done,
        next_token_hits_stopping_criteria=stops,
        top_num_beam_mask=torch.arange(width, device=best.device) < beams,
        num_beams=beams,
        cur_len=state.length,
        decoder_prompt_len=prompt,
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
    )


def _retreat(rule: Rule, state: State, retreats: Retreats, prompt: int) -> int | None:
    """The length to go back to, if the beams agree on a column, and what is banned after it."""
    column = None if rule.r is None else common_column(state.largest, rule.r)
    if column is None or column < retreats.last or column + 1 >= state.length - prompt:
        return None
    if retreats.count.get(column, 0) >= rule.beta:
        return None
    retreats.count[column] = retreats.count.get(column, 0) + 1
    retreats.last = column
    back = prompt + column + 1
    words = state.sequences[:, :, back].flatten().tolist()
    retreats.banned.setdefault(back, set()).update(words)
    return back


def tally(stats: dict[Any, Any], batch: int, taken: int, went_back: int) -> None:
    """Adds up what the report shows."""
    found = stats.setdefault("search", {"answers": 0, "steps": 0, "went_back": 0})
    found["answers"] += batch
    found["steps"] += taken
    found["went_back"] += went_back


def outcome(
    state: State, prompt: int, config: Any, scores: list[Tensor], raw: list[Tensor], reader: Reader
) -> Any:
    """What `generate` returns."""
    count = config.num_return_sequences
    sequences, values, indices = (
        item[:, :count].flatten(0, 1) for item in (state.done, state.done_scores, state.done_indices)
    )
    longest = int((indices >= 0).sum(1).max())
    sequences = sequences[:, : prompt + longest]
    if not config.return_dict_in_generate:
        return sequences
    return GenerateBeamDecoderOnlyOutput(
        sequences=sequences,
        sequences_scores=values if config.output_scores else None,
        scores=tuple(scores) if config.output_scores else None,
        logits=tuple(raw) if config.output_logits else None,
        beam_indices=indices[:, :longest],
        past_key_values=reader.kwargs.get("past_key_values"),
    )


def _refuse_setting(config: Any, beams: int, batch: int, rule: Rule) -> None:
    """Refuses ways of generating that the search cannot follow.

    Raises:
        LvlmAttnError: naming the option and what to pass instead.
    """
    if beams < 2:
        raise LvlmAttnError(f"OPERA searches with beams, and num_beams is {beams}; pass num_beams=5.")
    if batch > 1 and rule.r is not None:
        raise LvlmAttnError(
            f"OPERA goes back in each answer at another place, and got {batch} prompts at once; pass one prompt at a "
            f"time, or OPERA(r=None)."
        )
    for key in ("output_attentions", "output_hidden_states", "prefill_chunk_size", "low_memory"):
        if getattr(config, key, None):
            raise LvlmAttnError(f"OPERA decodes in a loop of its own, without {key}; leave it out.")
