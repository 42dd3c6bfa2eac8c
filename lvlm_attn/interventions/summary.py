"""What every intervention is counted for, without writing code for it.

Counts stay on the device until a report is asked for; there are as many as layers, however long a wrap lasts.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from torch import Tensor

from lvlm_attn.interventions.context import State


class Count(NamedTuple):
    """The key of something counted.

    Attributes:
        what: the column of the report.
        layer: the layer it was counted at, or None.
    """

    what: str
    layer: int | None = None


def add(counts: dict[Any, Any], what: str, value: Tensor | int, layer: int | None = None) -> None:
    """Adds to a count of a layer, or of the whole wrap; no value leaves the device."""
    key = Count(what, layer)
    counts[key] = counts[key] + value if key in counts else value


def default_summary(state: State) -> list[dict[str, Any]]:
    """Rows of a report from what the runtime counts for every intervention.

    Per layer: the share of rows (of all heads) whose weights changed and the weight moved in each, rows whose head
    outputs changed, rows added to or frozen; else what joining logits changed and the views made. How much weight a
    change of scores moves is not measured, so where rows changed and none was counted, the column is left out.
    """
    attended = {key: value for key, value in state.stats.items() if isinstance(key, int)}
    counts = cast("dict[Count, Tensor | int]", state.counts)
    layers = sorted({*attended, *(key.layer for key in counts if key.layer is not None)})
    rows = []
    counted = [item.tolist() for item in attended.values() if _is_row_count(item)]
    is_measured = any(moved for _, _, moved in counted) or not any(changed for changed, _, _ in counted)
    for layer in layers:
        row: dict[str, Any] = {"layer": layer}
        if _is_row_count(attended.get(layer)):
            changed, possible, moved = attended[layer].tolist()
            row["rows_changed"] = changed / max(possible, 1)
            if is_measured:
                row["mass_moved"] = moved / max(changed, 1)
        row |= {key.what: int(value) for key, value in counts.items() if key.layer == layer}
        rows.append(row)
    overall = {key.what: int(value) for key, value in counts.items() if key.layer is None}
    names = list(dict.fromkeys(name for row in rows for name in row))
    rows = [{name: row.get(name, 0) for name in names} for row in rows]
    return rows or ([overall] if overall else [])


def _is_row_count(value: object) -> bool:
    return isinstance(value, Tensor) and value.shape == (3,)
