"""OPERA's search in every new family, against the same search by hand in float64, or refused by name and reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lvlm_attn as la
from tests.families.oracle import Case, cases, plain, walk
from tests.oracle_setup import LAYERS, sink_model
from tests.tiny import ALL_NAMES, FIRST_WORD, NAMES

NEW = [name for name in ALL_NAMES if name not in NAMES]
NO_CROP = ("aya_vision", "cohere2_vision", "gemma3", "gemma4", "llama4", "qwen3_5", "lfm2_vl")
"""Families whose layers keep a window, a chunk or a state, which cannot be gone back in."""
BATCH = [(1,), (2,)]
STEPS, BEAMS, CANDIDATES, ALPHA = 4, 2, 2, 0.8


def forward(case: Case, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Logits behind the tokens, and the last layer's weights, largest over heads, rows summing to 1."""
    seen: list[Tensor] = []

    def look(layer: int, scores: Tensor, may_read: Tensor, stream: Tensor) -> Tensor:
        weights = plain(layer, scores, may_read, stream)
        if layer == LAYERS - 1:
            seen.append(weights.amax(0))
        return weights

    logits = walk(case.with_tokens(tokens), look).logits[-1]
    return logits, seen[0] / seen[0].sum(-1, keepdim=True)


def by_hand(case: Case) -> list[tuple[float, list[int]]]:
    """The search in loops over beams and words, before there is anything to go back in."""
    image = torch.tensor([place for place in range(case.prompt) if case.is_image(place)])
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(STEPS):
        found = []
        for score, tokens in alive:
            logits, _ = forward(case, tokens)
            allowed = logits.clone()
            allowed[:FIRST_WORD] = -torch.inf
            words = [int(word) for word in allowed.topk(CANDIDATES).indices]
            judged = []
            for word in words:
                _, weights = forward(case, [*tokens, word])
                judged.append(float(logits[word]) + ALPHA * float(weights[-1, image].sum()))
            total = float(torch.tensor(judged).double().logsumexp(0))
            found += [(score + value - total, [*tokens, word]) for value, word in zip(judged, words)]
        alive = sorted(found, key=lambda pair: -pair[0])[:BEAMS]
    return alive


@pytest.mark.parametrize("name", NEW)
def test_against_a_search_by_hand(name: str) -> None:
    model, case = sink_model(name), cases(name, BATCH)[0]
    method = la.OPERA(candidates=CANDIDATES, alpha=ALPHA, r=None)
    options = {"num_beams": BEAMS, "num_return_sequences": BEAMS, "length_penalty": 0.0, "do_sample": False}

    def search() -> object:
        with torch.no_grad(), la.wrap(model, method) as lvlm:
            return lvlm.generate(
                **case.row,
                **options,
                max_new_tokens=STEPS,
                return_dict_in_generate=True,
                output_scores=True,
            )

    if name in ("llama4", "granite4_vision"):
        pytest.skip(
            "transformers itself does not repeat the features of several pictures for beams as it should"
        )
    if name in NO_CROP:
        # In the tiny models with other kinds of layers the last one, which OPERA looks at, has no softmax attention.
        reason = (
            "OPERA needs a cache that grows.*layers of this model|OPERA: none of the layers 4 has softmax"
        )
        with pytest.raises(la.LvlmAttnError, match=reason):
            search()
        return
    out = search()
    want = by_hand(case)
    assert out.sequences[:, case.prompt :].tolist() == [tokens for _, tokens in want]
    for score, (value, _) in zip(out.sequences_scores.tolist(), want, strict=True):
        assert abs(score - value) < 1e-3 * max(1, abs(value))
