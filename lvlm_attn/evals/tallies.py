"""Which tally counts a benchmark's lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.amber.tally import tally_for as amber_tally
from lvlm_attn.evals.chair.tally import tally_for as chair_tally
from lvlm_attn.evals.closed.catalogue import CLOSED
from lvlm_attn.evals.core.tally import Line, Tally
from lvlm_attn.evals.pope.tally import tally_for as pope_tally

TALLIES: dict[str, Callable[[Mapping[str, Any]], Tally]] = {
    "pope": pope_tally,
    "chair": chair_tally,
    "amber-g": amber_tally,
    **{name: spec.tally for name, spec in CLOSED.items()},
}
"""By the benchmark's name; a benchmark that is not here is told by what its lines hold."""


def tally_of(benchmark: str, scoring: Mapping[str, Any], lines: Sequence[Line]) -> Tally:
    """The tally of a benchmark: by its name, else by its lines (a yes/no ``label``, or ``objects``).

    Raises:
        LvlmAttnError: lines of neither kind.
    """
    if benchmark in TALLIES:
        return TALLIES[benchmark](scoring)
    first = lines[0] if lines else {}
    if first.get("label") in ("yes", "no"):
        return pope_tally(scoring)
    if isinstance(first.get("objects"), list):
        return chair_tally(scoring)
    raise LvlmAttnError(
        f"runs of {benchmark!r} cannot be compared: their lines hold neither a yes/no label nor objects; "
        f"compare runs of {', '.join(TALLIES)}."
    )
