"""The tables of results: POPE, CHAIR, any other benchmark, and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lvlm_attn.evals.core.tables import Table as Table
from lvlm_attn.evals.core.tables import markdown as markdown
from lvlm_attn.evals.core.tables import p_value as p_value
from lvlm_attn.evals.core.tables import percent as percent
from lvlm_attn.evals.core.tables import plain as plain
from lvlm_attn.evals.core.tables import show as show


def pope_table(runs: Mapping[str, Mapping[str, Any]], title: str = "POPE (%)") -> Table:
    """One row per run and category, and the mean over categories where there are several.

    Args:
        runs: results of :func:`lvlm_attn.evals.pope.score.score_pope` by the name of the run.
        title: the table's title.
    """
    columns = (
        "run",
        "questions",
        "accuracy",
        "precision",
        "recall",
        "F1",
        "yes",
        "false yes",
        "unknown",
        "n",
    )
    rows = []
    for name, result in runs.items():
        parts = dict(result["per_category"])
        if len(parts) > 1:
            parts["mean"] = {**result["mean"], "unknown": result["unknown"], "n": result["n"]}
        for category, row in parts.items():
            shares = ("accuracy", "precision", "recall", "f1", "yes_ratio", "false_yes_rate")
            cells = (percent(row[key], 2) for key in shares)
            rows.append((name, category, *cells, str(row["unknown"]), str(row["n"])))
    return Table(title, columns, tuple(rows), text_columns=2)


def chair_table(runs: Mapping[str, Mapping[str, Any]], title: str = "CHAIR (%)") -> Table:
    """One row per run.

    Args:
        runs: results of :func:`lvlm_attn.evals.chair.score.score_chair` by the name of the run.
        title: the table's title.
    """
    columns = (
        "run",
        "CHAIR_s",
        "CHAIR_i",
        "recall",
        "precision",
        "F1",
        "tokens",
        "objects",
        "cut off",
        "n",
    )
    rows = []
    for name, row in runs.items():
        shares = (percent(row[key]) for key in ("chair_s", "chair_i", "recall", "precision", "f1"))
        lengths = (f"{row['len']:.1f}", f"{row['mentions_per_caption']:.2f}")
        rows.append((name, *shares, *lengths, percent(row["truncated"]), str(row["n"])))
    return Table(title, columns, tuple(rows))


def limits(generation: Mapping[str, Any]) -> str:
    """How answers were generated, for titles: decoding and token limit.

    Example:
        >>> limits({"decode": "greedy", "max_new_tokens": 16})
        'greedy, at most 16 tokens'
    """
    decode = str(generation.get("decode", "unknown decoding"))
    if decode == "sample":
        decode = f"sampled at temperature {generation.get('temperature') or 1.0:g}"
    beams = generation.get("num_beams", 1)
    if beams > 1:
        decode = f"{beams} beams"
    limit = generation.get("max_new_tokens")
    return decode if limit is None else f"{decode}, at most {limit} tokens"
