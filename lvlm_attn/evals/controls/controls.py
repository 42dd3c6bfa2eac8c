"""Runs the controls of a method beside it, and says whether its gain survives them.

Source of the controls of yes/no benchmarks: Yin et al., "The Mirage of Performance Gains: Why Contrastive Decoding
Fails to Mitigate Object Hallucinations in MLLMs?" (arXiv 2504.10020): on POPE a request to prefer yes, or a shift of
the threshold, gains as much as contrastive decoding, and when sampling, so does its cut to plausible tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.controls.found import FILE, Controls
from lvlm_attn.evals.controls.identity import identity_of
from lvlm_attn.evals.controls.judge import PREFER_YES, Judge
from lvlm_attn.evals.core.benchmark import Benchmark, asks_letters
from lvlm_attn.evals.core.evaluate import Evaluation, evaluate
from lvlm_attn.evals.core.finished import Run, read_run
from lvlm_attn.evals.core.jsonio import write_json
from lvlm_attn.evals.core.ranks import process_rank
from lvlm_attn.evals.core.records import read_object
from lvlm_attn.evals.core.run_folder import saying_what_failed

if TYPE_CHECKING:
    from lvlm_attn.evals.core.answerer import Decoding
    from lvlm_attn.interventions.base import Intervention

PLAUSIBLE = 0.1
"""The cut of the contrastive methods, where a method does not name its own."""


# Long because most of it is its parameters and what they mean.
def evaluate_with_controls(
    model: Any,
    processor: Any,
    benchmark: Benchmark,
    interventions: Sequence[Intervention] | Intervention,
    *,
    decoding: Decoding | None = None,
    resamples: int = 2000,
    **options: Any,
) -> tuple[Evaluation, Controls | None]:
    """Runs a benchmark with a method, and beside it whatever else could explain a gain.

    The runs of the controls lie in ``controls`` in the method's run folder, and ``controls.json`` beside them says what
    they show; all are continued like any run. Everywhere: the bare model; an identity that goes the method's way
    through the machinery without its effect. Of yes/no benchmarks: the bare model asked to prefer yes; the bare
    model with its yes/no threshold moved to the method's share of yes, with AUROC. Of questions answered by a letter:
    the same threshold between A and B. Of captions: both cut to equal length. When sampling: the cut to plausible
    tokens alone.

    Args:
        model: the model.
        processor: its processor.
        benchmark: what to ask and how to score.
        interventions: the method, one intervention or several.
        decoding: how to generate; None is greedy with the benchmark's own length limit.
        resamples: draws of pictures for intervals.
        **options: what :func:`lvlm_attn.evaluate` takes besides.

    Returns:
        The method's run, and what the controls show; None for the latter on other ranks than the first.

    Raises:
        LvlmAttnError: no interventions, or as :func:`lvlm_attn.evaluate`.

    Example:
        >>> done, found = la.evaluate_with_controls(model, processor, toy_pope(), la.VAR())  # doctest: +SKIP
        >>> print(found.verdict())  # doctest: +SKIP
    """
    from lvlm_attn.evals.core.answerer import Decoding
    from lvlm_attn.interventions.base import Intervention

    methods = (interventions,) if isinstance(interventions, Intervention) else tuple(interventions)
    if not methods:
        raise LvlmAttnError("controls are for a method; name one with --intervene, or leave out --controls.")
    decoding = decoding or Decoding(max_new_tokens=benchmark.max_new_tokens)
    done = evaluate(model, processor, benchmark, methods, decoding=decoding, **options)
    beside = {key: value for key, value in options.items() if key != "out"}

    def run(name: str, items: Sequence[Intervention], how: Decoding) -> Run | None:
        out = done.folder / "controls" / name
        evaluate(model, processor, benchmark, items, decoding=how, out=out, **beside)
        return None if process_rank()[0] else read_run(out, name)

    others = {"bare": run("bare", (), decoding), "identity": run("identity", identity_of(methods), decoding)}
    if benchmark.asks_yes_no and not asks_letters(benchmark):
        others["prefer-yes"] = run("prefer-yes", (), replace(decoding, suffix=decoding.suffix + PREFER_YES))
    beta = _beta(methods)
    if decoding.decode == "sample":
        others["plausible"] = run("plausible", (), replace(decoding, plausibility=beta))
    known = {name: other for name, other in others.items() if other is not None}
    if not known:
        return done, None
    judge = Judge(read_run(done.folder, "method"), known, resamples)
    found = judge.found("+".join(map(str, methods)), benchmark.asks_yes_no, beta)
    with saying_what_failed(done.folder / FILE):
        write_json(done.folder / FILE, found.to_dict())
    return done, found


def read_controls(folder: Path) -> Controls | None:
    """The controls of a run, where there were any.

    Raises:
        LvlmAttnError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return Controls.of_dict(read_object(path, "file of controls"))
    except (KeyError, TypeError) as error:
        raise LvlmAttnError(
            f"{path} is damaged ({error}); run the evaluation with --controls again."
        ) from error


def _beta(interventions: Sequence[Intervention]) -> float:
    """The method's own cut, if it has one."""
    for item in interventions:
        beta = getattr(item, "beta", None)
        if item.overrides("fuse") and isinstance(beta, float) and 0 < beta <= 1:
            return beta
    return PLAUSIBLE
