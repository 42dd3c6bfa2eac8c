"""The search of OPERA as its released code runs it, where that differs from the paper.

Facts read off the released `opera_beam_search` (a copy of transformers 4.29); the code here is our own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lvlm_attn.hooks.opera.loop import State, begun, outcome, step, tally
from lvlm_attn.hooks.opera.reader import Reader
from lvlm_attn.hooks.opera.scores import EARLY, Rule, grown, penalties
from lvlm_attn.runtime.transformers_private import end_tokens, search_goes_on

FLOOR = -999.0
"""Logit of every token that is no candidate, or that was given up on going back."""

WINDOW = 512
"""Longest answer, in tokens, in which the search goes back."""


@dataclass
class Past:
    """What going back needs to know; entries are by the number of tokens the answer had.

    Attributes:
        states: the searches.
        parents: `(rows,)` each, the row each next token was appended to.
        words: `(rows,)` each, that token.
        largest: `(rows,)` each, the column that is the largest for most candidates of a row. Rows keep their place
            when beams change theirs.
        count: how often each position was gone back to.
        given_up: tokens that were given up at each position, as `parent * vocabulary + word`.
    """

    states: list[State] = field(default_factory=list)
    parents: list[Tensor] = field(default_factory=list)
    words: list[Tensor] = field(default_factory=list)
    largest: list[Tensor] = field(default_factory=list)
    count: dict[int, int] = field(default_factory=dict)
    given_up: dict[int, Tensor] = field(default_factory=dict)

    def cut(self, tokens: int) -> None:
        """Forgets what came after an answer of so many tokens."""
        for entries in (self.states, self.parents, self.words, self.largest):
            del entries[tokens:]


def search_released(
    model: Any, ids: Tensor, rule: Rule, reader: Reader, processor: Any, stopping: Any, config: Any
) -> Any:
    """Decodes one prompt; see `loop.search` for the arguments."""
    beams, prompt = config.num_beams, ids.shape[1]
    ends = end_tokens(config)
    width = max(2, 1 + (0 if ends is None else ends.shape[0])) * beams
    state = begun(ids, ids.shape[0] // beams, beams, config)
    logits = reader.read_prompt(ids, config)
    past = Past()
    scores: list[Tensor] = []
    raw: list[Tensor] = []
    taken = 0
    while True:
        tokens = state.length - prompt
        words = logits.topk(min(rule.candidates, logits.shape[-1]), dim=-1).indices
        following, on_answer, on_image = reader.look_ahead(words)
        columns = grown(state.columns[:, None].expand(-1, words.shape[1], -1), on_answer, rule.sigma)
        past.cut(tokens)
        past.states.append(state)
        past.largest.append(columns.argmax(-1).mode(-1).values)
        back = None if rule.r is None else place(past, rule.r, rule.beta)
        if back is None:
            penalty = rule.alpha * penalties(columns, on_image)
            values = torch.full_like(logits, FLOOR)
            values.scatter_(1, words, (logits.gather(1, words).double() - penalty).to(values.dtype))
        else:
            reader.drop()
            state, tokens = _restored(past, back, logits.shape[-1])
            logits = reader.go_back(state.sequences[:, :, : state.length].flatten(0, 1))
            values = without_given_up(logits, past.given_up[back])
        flat = state.sequences[:, :, : state.length].flatten(0, 1)
        values = processor(flat, values.log_softmax(-1))
        scores, raw = [*scores[:tokens], values], [*raw[:tokens], logits]
        before = state
        state, stops = step(model, state, values, stopping, config, width, prompt, tuple(scores))
        taken += 1
        if not search_goes_on(model, state.may_improve, state.is_done, stops, config.early_stopping):
            break
        parents = state.indices[..., tokens].flatten().long()
        chosen = state.sequences[:, :, state.length - 1].flatten()
        past.parents.append(parents)
        past.words.append(chosen)
        is_known = words[parents] == chosen[:, None]
        if back is None and bool(is_known.any(1).all()):
            index = is_known.int().argmax(1)
            reader.keep(parents, index)
            logits, grew = following[parents, index], columns[parents, index]
        else:
            if back is None:
                reader.drop()
            reader.reorder(parents)
            logits, row = reader.read_last(state.sequences[:, :, : state.length].flatten(0, 1))
            grew = grown(before.columns[parents], row, rule.sigma)
        state = replace(state, columns=grew)
    tally(reader.tape.stats, 1, taken, sum(past.count.values()))
    return outcome(state, prompt, config, scores, raw, reader)


def place(past: Past, r: int, beta: int) -> int | None:
    """The position to go back to, counted in tokens of the answer, and counts it; None to go on.

    The column in question is that of most beams at this step. Every row must have had it `r` times, this step
    included. The search goes on after it; where that was done `beta` times, one position further back.
    """
    history = torch.stack(past.largest, 1)
    column = int(history[:, -1].mode().values)
    if column < EARLY or not bool(((history == column).sum(1) >= r).all()):
        return None
    for position in (column + 1, column):
        if position < WINDOW and past.count.get(position, 0) < beta:
            past.count[position] = past.count.get(position, 0) + 1
            return position
        if position >= WINDOW:
            return None
    return None


def without_given_up(logits: Tensor, given_up: Tensor) -> Tensor:
    """Logits over the whole vocabulary, unpenalised, shifted so that the least likely token and those given up meet.

    Args:
        logits: `(rows, vocabulary)`.
        given_up: `parent * vocabulary + word` of each.
    """
    shifted = logits - logits.amin(-1, keepdim=True) + FLOOR
    return shifted.flatten().index_fill(0, given_up, FLOOR).view_as(shifted)


def _restored(past: Past, back: int, vocabulary: int) -> tuple[State, int]:
    """The search as it was at a position, and its number of tokens; what was chosen there is given up."""
    now = len(past.states) - 1
    tokens = min(back, now - 1)
    flat = past.parents[tokens] * vocabulary + past.words[tokens]
    # The released code counts from the wrong end here: it forgets what was given up at the last positions.
    for number in range(now - back - 1):
        past.given_up.pop(WINDOW - 1 - number, None)
    past.given_up.pop(back + 1, None)
    known = past.given_up.get(back)
    past.given_up[back] = flat if known is None else torch.cat((known, flat))
    state = past.states[tokens]
    largest = past.largest[tokens]
    past.cut(tokens)
    past.states.append(state)
    past.largest.append(largest)
    return state, tokens
