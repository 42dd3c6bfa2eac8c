"""Runs a grid of parameters on dev data, chooses a point, and runs that one on test data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.evals.compare import Comparison, compare
from lvlm_attn.evals.core.benchmark import Benchmark
from lvlm_attn.evals.core.evaluate import evaluate
from lvlm_attn.evals.core.finished import Run, read_run
from lvlm_attn.evals.core.jsonio import write_json
from lvlm_attn.evals.core.ranks import Ranks
from lvlm_attn.evals.core.records import read_object
from lvlm_attn.evals.core.run_folder import check_writable, saying_what_failed
from lvlm_attn.evals.sweep.found import BARE, Sweep
from lvlm_attn.evals.tallies import tally_of

if TYPE_CHECKING:
    from lvlm_attn.evals.core.answerer import Decoding
    from lvlm_attn.interventions.base import Intervention

FILE = "sweep.json"


# Long because most of it is its parameters and what they mean.
def sweep(
    model: Any,
    processor: Any,
    dev: Benchmark,
    test: Benchmark,
    points: Sequence[Sequence[Intervention]],
    out: str | Path,
    *,
    by: str | None = None,
    decoding: Decoding | None = None,
    resamples: int = 2000,
    on_done: Callable[[str], None] | None = None,
    **options: Any,
) -> Sweep | None:
    """Runs all points on `dev`, reports every one, and runs the best of them once on `test`.

    The folder holds a run folder for every point under ``dev`` and two under ``test``; what is finished there is not
    run again. It belongs to this grid: another one on the same test data needs another folder.

    Args:
        model: the model.
        processor: its processor.
        dev: the data to choose on.
        test: data of which no picture is in `dev`.
        points: the interventions of each point.
        out: the folder.
        by: the metric to choose by; None takes accuracy, of captions CHAIR_s.
        decoding: how to generate; None is greedy with the benchmark's own length limit.
        resamples: draws of pictures for intervals.
        on_done: told the name of each run when it is finished.
        **options: what :func:`lvlm_attn.evaluate` takes besides.

    Returns:
        What was found; None on other ranks than the first.

    Raises:
        LvlmAttnError: no points, a point without interventions, pictures in both parts, an unknown metric, a folder
            of another sweep, or as :func:`lvlm_attn.evaluate`.

    Example:
        >>> grid = [la.parse(f"pai:alpha={alpha}") for alpha in (0.1, 0.2)]  # doctest: +SKIP
        >>> print(la.sweep(model, processor, toy_pope("dev"), toy_pope(), grid, "runs/pai").chosen)  # doctest: +SKIP
    """
    named = _named(points)
    _refuse_shared_pictures(dev, test)
    metric = _metric(dev, by)
    place, ranks = Path(out), Ranks.of_environment()
    settings = {"points": list(named), "by": metric, "dev": dev.describe(), "test": test.describe()}
    ranks.first(lambda: _claim(place, settings))

    def ask(benchmark: Benchmark, part: str, name: str, items: Sequence[Intervention]) -> Run | None:
        folder = place / part / _folder(name, list(named))
        evaluate(model, processor, benchmark, items, out=folder, decoding=decoding, **options)
        if on_done is not None:
            on_done(f"{part}: {name}")
        return read_run(folder, name) if ranks.is_first else None

    runs = [ask(dev, "dev", BARE, ()), *(ask(dev, "dev", name, items) for name, items in named.items())]
    known = [run for run in runs if run is not None]
    told = ranks.first(lambda: compare(known, resamples=resamples))
    chosen = ranks.tell(None if told is None else _best(told, metric))
    final = [ask(test, "test", BARE, ()), ask(test, "test", chosen, named[chosen])]
    if told is None:
        return None
    found = Sweep(
        metric, told, chosen, compare([run for run in final if run is not None], resamples=resamples), place
    )
    with saying_what_failed(place / FILE):
        write_json(place / FILE, {"settings": settings, **found.to_dict()})
    return found


def _named(points: Sequence[Sequence[Intervention]]) -> dict[str, tuple[Intervention, ...]]:
    named = {"+".join(map(str, items)): tuple(items) for items in points}
    if not named or "" in named:
        raise LvlmAttnError(
            "a sweep needs points, each with at least one intervention; the bare model runs anyway."
        )
    return named


def _refuse_shared_pictures(dev: Benchmark, test: Benchmark) -> None:
    shared = {sample.image_name for sample in dev.samples()} & {
        sample.image_name for sample in test.samples()
    }
    if shared:
        raise LvlmAttnError(
            f"{len(shared)} pictures are in dev and in test (first: {min(shared)}); what is chosen on a picture cannot "
            "be reported on it."
        )


def _claim(place: Path, settings: Mapping[str, Any]) -> None:
    """Notes whose folder it is, before anything is asked of the test data."""
    check_writable(place)
    path = place / FILE
    if path.is_file():
        before = read_object(path, "sweep file").get("settings")
        if before != json.loads(json.dumps(settings)):
            raise LvlmAttnError(
                f"{place} holds another sweep; choose another --out. A test set that is asked again and again is a "
                "dev set."
            )
        return
    with saying_what_failed(path):
        write_json(path, {"settings": dict(settings)})


def _folder(name: str, points: Sequence[str]) -> str:
    if name == BARE:
        return "bare"
    number = points.index(name) + 1
    text = re.sub(r"[^A-Za-z0-9.+=_-]+", "-", name).strip("-")[:60]
    return f"{number:0{len(str(len(points)))}d}-{text}"


def _metric(dev: Benchmark, by: str | None) -> str:
    first = [dict(sample.fields) for sample in dev.samples()[:1]]
    tally = tally_of(dev.name, dev.scoring(), first)
    metric = by or tally.outcome
    known = [name for name in tally.compared if name not in tally.neither]
    if metric not in known:
        raise LvlmAttnError(
            f"a point cannot be chosen by {metric!r}.{closest(metric, known)} Choose by one of {', '.join(known)}."
        )
    return metric


def _best(found: Comparison, metric: str) -> str:
    """The best point; of equal ones the first in the grid."""
    if not all(run.metrics[metric].is_defined for run in found.runs.values()):
        raise LvlmAttnError(f"no dev sample asks about {metric}; choose by {found.tally.outcome}.")
    sign = -1 if metric in found.tally.lower_is_better else 1
    return max(found.runs, key=lambda name: sign * found.runs[name].metrics[metric].after)
