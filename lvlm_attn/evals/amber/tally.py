"""AMBER's descriptions for the comparison of runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.amber import score
from lvlm_attn.evals.amber.words import WordLists, lists_of
from lvlm_attn.evals.core.tally import Counts, Line, Tally


def count_line(line: Line, scoring: Mapping[str, Any], lists: WordLists) -> Counts:
    """One description against its picture.

    Raises:
        LvlmAttnError: the line does not say what is in the picture.
    """
    truth, hallu = line.get("truth"), line.get("hallu")
    if not isinstance(truth, list) or not isinstance(hallu, list):
        raise LvlmAttnError(
            f"sample {line.get('sample_id')} does not say what is in its picture; make the run again with this version."
        )
    return score.count(str(line.get("raw_text") or ""), truth, hallu, lists)


def tally_for(scoring: Mapping[str, Any]) -> Tally:
    """The counts of descriptions; AMBER's words are in ``scoring``.

    Raises:
        LvlmAttnError: they are not.
    """
    if not isinstance(scoring.get("associations"), Mapping):
        raise LvlmAttnError(
            "the scoring of this AMBER run holds no word lists; make the run again with this version."
        )
    lists = lists_of(scoring["associations"], scoring.get("safe_words", ()))
    return Tally(
        title="AMBER generative",
        count=partial(count_line, lists=lists),
        metrics=score.metrics,
        compared=tuple(score.metrics([0] * len(score.COLUMNS))),
        outcome="hal",
        is_right=lambda counts: counts[4] == 0,
        lower_is_better=frozenset({"chair", "hal", "cog"}),
        neither=frozenset({"len", "nouns_per_response"}),
        units={"len": "words", "nouns_per_response": "nouns"},
    )
