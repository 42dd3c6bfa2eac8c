"""CHAIR's lines for the comparison of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair import score
from lvlm_attn.evals.core.tally import Counts, Line, Tally


def count_line(line: Line, scoring: Mapping[str, Any]) -> Counts:
    """One caption against the objects of its picture: the counts of :data:`lvlm_attn.evals.chair.score.COLUMNS`.

    Raises:
        LvlmAttnError: the line does not say which objects are in the picture.
    """
    objects = line.get("objects")
    if not isinstance(objects, list):
        raise LvlmAttnError(
            f"sample {line.get('sample_id')} does not say which objects are in its picture; "
            "make the run again with this version, which writes them down."
        )
    text = str(line.get("raw_text") or "")
    if scoring.get("drop_incomplete_sentence"):
        text = score.drop_unfinished_sentence(text)
    caption = score.Caption(str(line.get("sample_id")), text)
    return score.score_caption(caption, objects, scoring.get("mode", "strict")).totals


def tally_for(scoring: Mapping[str, Any]) -> Tally:
    """The counts of captions; which words count is in ``scoring``."""
    return Tally(
        title="CHAIR",
        count=count_line,
        metrics=score.metrics,
        compared=(*score.MAIN_METRICS, "mentions_per_caption"),
        outcome="chair_s",
        is_right=lambda counts: counts[0] == 0,
        lower_is_better=frozenset({"chair_s", "chair_i"}),
        neither=frozenset({"len", "mentions_per_caption"}),
        units={"len": "tokens", "mentions_per_caption": "objects"},
    )
