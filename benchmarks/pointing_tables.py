"""The tables of `benchmarks.pointing`: intervals are over pictures, since words of one caption are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LEVEL = 0.95


def tables(words: Sequence[Any], views: Sequence[str], data: str) -> list[Any]:
    """Pointing by view, and words that are there against words that are not."""
    return [pointing_table(words, views, data), word_table(words, data)]


def pointing_table(words: Sequence[Any], views: Sequence[str], data: str) -> Any:
    """Hits and energy of every view, and their differences to the first view."""
    from lvlm_attn.evals.core.tables import Table

    there = [word for word in words if word.is_there]
    pictures = [word.scene for word in there]
    rows = []
    for view in (*views, "drop of the logit", "even map"):
        cells = [view]
        for numbers in ("hits", "energies"):
            cells.append(f"{100 * np.mean([getattr(word, numbers)[view] for word in there]):.1f}")
            if view == views[0]:
                cells += ["", ""] if numbers == "hits" else [""]
                continue
            pairs = [(getattr(word, numbers)[view], getattr(word, numbers)[views[0]], 1.0) for word in there]
            cells.append(_difference(pictures, pairs, LEVEL))
            if numbers == "hits":  # as wide as all views together ask for
                cells.append(_difference(pictures, pairs, 1 - (1 - LEVEL) / (len(views) - 1)))
        orders = [word.orders[view] for word in there if view in word.orders]
        cells.append(f"{np.mean(orders):+.2f}" if orders else "")
        rows.append(tuple(cells))
    columns = (
        "view",
        "hits (%)",
        "against the first",
        "for all views at once",
        "energy (%)",
        "against the first",
        "order of the drop",
    )
    count = len(set(pictures))
    title = f"Pointing on the toy: {len(there)} words that are there, in {count} of {data}"
    return Table(title, columns, tuple(rows))


def word_table(words: Sequence[Any], data: str) -> Any:
    """Numbers of words that name what is in the picture, and of words that do not."""
    from lvlm_attn.evals.core.tables import Table
    from lvlm_attn.maps.statistics import compare

    groups = [[word for word in words if word.is_there is kind] for kind in (True, False)]
    pictures = tuple([word.scene for word in group] for group in groups)
    rows = []
    for name in words[0].numbers:
        first, second = ([word.numbers[name] for word in group] for group in groups)
        found = compare(second, first, pictures=pictures[::-1])
        rows.append(
            (
                name,
                f"{found.second:.3g}",
                f"{found.first:.3g}",
                f"{found.difference:+.3g} ({found.low:+.3g} to {found.high:+.3g})",
            )
        )
    title = f"Words of captions: {len(groups[0])} that are there, {len(groups[1])} that are not, {data}"
    return Table(title, ("mean over words", "there", "not there", "difference (95 % interval)"), tuple(rows))


def _difference(pictures: Sequence[int], pairs: Sequence[tuple[float, float, float]], level: float) -> str:
    from lvlm_attn.evals.core.stats import cluster_bootstrap, sum_by_cluster

    totals = sum_by_cluster(pictures, pairs)
    found = cluster_bootstrap(totals, lambda sums: (sums[:, 0] - sums[:, 1]) / sums[:, 2], 9999, level=level)
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
