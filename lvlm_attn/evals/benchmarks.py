"""Benchmarks by name, for the Python API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn.errors import LvlmAttnError, closest

if TYPE_CHECKING:
    from lvlm_attn.evals.core.benchmark import Benchmark


def load_benchmark(
    name: str, data: str | Path, images: str | Path | None = None, **options: Any
) -> Benchmark:
    """Reads your own copy of a benchmark, for `la.evaluate`.

    Args:
        name: `amber-d`, `amber-g`, `mme`, `mmvp`, `hallusionbench`, `naturalbench` or `dash-b`. POPE and CHAIR have
            classes of their own, `la.Pope` and `la.Chair`.
        data: the folder that holds it, or the name of a data set on the hub.
        images: the folder with its pictures, where they are elsewhere.
        **options: ``limit``; of all but `amber-g` also ``parser`` and ``subsets``.

    Raises:
        LvlmAttnError: no such benchmark or option, or the copy lacks a file or has a damaged one.

    Example:
        >>> mme = load_benchmark("mme", "MME_Benchmark_release_version", subsets=["hallucination"])  # doctest: +SKIP
        >>> la.evaluate(model, processor, mme, la.VHR(), out="runs/vhr").metrics["hallucination"]  # doctest: +SKIP
    """
    from lvlm_attn.evals.amber.benchmark import AmberCaptions
    from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
    from lvlm_attn.evals.closed.catalogue import CLOSED
    from lvlm_attn.evals.core.hub import local_copy

    names = sorted([*CLOSED, AmberCaptions.name])
    if name not in names:
        raise LvlmAttnError(f"no benchmark {name!r}.{closest(name, names)} There are {', '.join(names)}.")
    known = ("limit",) if name == AmberCaptions.name else ("limit", "parser", "subsets")
    for option in options:
        if option not in known:
            raise LvlmAttnError(
                f"{name} takes no {option!r}.{closest(option, known)} It takes {', '.join(known)}."
            )
    if name == AmberCaptions.name:
        return AmberCaptions.from_folder(local_copy(data, "AMBER"), images, **options)
    spec = CLOSED[name]
    return ClosedBenchmark.from_folder(spec, local_copy(data, spec.title), images, **options)
