"""What a run was made with, written beside its answers: `env.json` and `report.json`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lvlm_attn.evals.core.batch_check import batch_warning, check_batch
from lvlm_attn.evals.core.plan import Group
from lvlm_attn.evals.core.records import read_object
from lvlm_attn.evals.core.run_folder import RunFolder

if TYPE_CHECKING:
    from lvlm_attn.evals.core.answerer import ModelAnswerer


def note_environment(
    folder: RunFolder,
    made: dict[str, Any],
    answerer: ModelAnswerer,
    planned: Sequence[Sequence[Group]],
    seed: int,
    told: Callable[[str], None],
) -> None:
    """Writes ``env.json``; what an earlier part of the run was made with is kept where it differs.

    Args:
        folder: the open run.
        made: versions, devices and so on.
        answerer: the model, its interventions in place.
        planned: all batches; the first is asked together and alone.
        seed: the run's seed.
        told: told when answers depend on the batch.
    """
    before = _before(folder)
    check = before.pop("batch_check", None)
    earlier = before.pop("earlier", [])
    kernels = {"kernels": before.pop("kernels")} if "kernels" in before else {}
    if before and before != made:
        changed = [key for key in {**before, **made} if before.get(key) != made.get(key)]
        earlier = [*earlier, {key: before.get(key) for key in changed}]
    if check is None and planned and folder.ranks.is_first:
        check = check_batch(answerer, planned[0], seed)
        warning = batch_warning(check)
        if warning is not None:
            told(warning)
    if folder.ranks.is_first:
        notes = {"batch_check": check} if check else {}
        folder.write("env.json", {**made, **notes, **({"earlier": earlier} if earlier else {}), **kernels})


def note_report(folder: RunFolder, answerer: ModelAnswerer) -> None:
    """Writes what the interventions did, and which kernels they used, from rank 0."""
    if answerer.wrapped is None or not folder.ranks.is_first:
        return
    done = answerer.wrapped.report().to_dict()
    folder.write("report.json", done)
    folder.write("env.json", {**_before(folder), "kernels": done["kernels"]})


def _before(folder: RunFolder) -> dict[str, Any]:
    path = folder.path / "env.json"
    return read_object(path, "env.json") if path.is_file() else {}
