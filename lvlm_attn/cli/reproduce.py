"""`lvlm-attn reproduce`: the commands of published results, and what they gave beside what was published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvlm_attn.cli.chair import Captions, Instances
from lvlm_attn.cli.common import Json, print_json, say, tell
from lvlm_attn.errors import LvlmAttnError

if TYPE_CHECKING:
    from lvlm_attn.evals.core.finished import Run
    from lvlm_attn.evals.recipes.recipe import Recipe, Step


def reproduce(
    name: Annotated[str | None, typer.Argument(help="The method; all of them are listed without it.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Another model.", show_default=False)] = None,
    questions: Annotated[
        list[Path] | None, typer.Option("--questions", help="POPE's question files.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder that holds the pictures.", show_default=False)
    ] = None,
    instances: Instances = None,
    captions: Captions = None,
    ground_truth: Annotated[
        list[Path] | None,
        typer.Option("--ground-truth", help="CHAIR's truth, in place of COCO's files.", show_default=False),
    ] = None,
    ids: Annotated[Path | None, typer.Option("--ids", help="CHAIR's pictures.", show_default=False)] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="`toy`: the bundled scenes.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, show_default=False)] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs.")] = Path("lvlm-runs/reproduce"),
    run: Annotated[
        list[Path] | None,
        typer.Option("--run", help="A finished run to compare; repeat for several.", show_default=False),
    ] = None,
    go: Annotated[bool, typer.Option("--go", help="Make the runs now.")] = False,
    as_json: Json = False,
) -> None:
    """Print the exact commands of published results, and what they gave beside what was published.

    Example: lvlm-attn reproduce vhr --questions coco_pope_random.json --images val2014 --go
    """
    from lvlm_attn.evals.recipes.recipe import names, read_recipe

    if name is None:
        for item in names():
            recipe = read_recipe(item)
            say(f"{item:<8}{recipe.method} on {recipe.model}: {recipe.source}")
        return
    recipe = read_recipe(name)
    told = {
        "--questions": questions, "--images": images, "--instances": instances, "--captions": captions,
        "--ground-truth": ground_truth, "--ids": ids, "--data": data, "--limit": limit,
    }  # fmt: skip
    given = {
        option: [str(item) for item in (value if isinstance(value, list) else [value])]
        for option, value in told.items()
        if value is not None
    }
    place = f"{out}/{name}"
    if go:
        _make(recipe, model or recipe.model, given, place)
    found = _runs(recipe, place, run or [])
    if as_json:
        print_json(_as_dict(recipe, model or recipe.model, given, place, found))
        return
    if not go:
        say("\n".join(recipe.commands(model or recipe.model, given, place)))
    _show(recipe, found)


Found = dict[str, tuple["Run | None", "Run | None"]]


def _make(recipe: Recipe, model: str, given: dict[str, list[str]], place: str) -> None:
    from lvlm_attn.cli import evaluate

    command = typer.main.get_command(evaluate.app)
    ready = [step for step in recipe.steps if not step.lacks(given)]
    for step in recipe.steps:
        if step not in ready:
            tell(f"note: {step.name} is left out; it needs {' and '.join(step.lacks(given))}.")
    if not ready:
        raise LvlmAttnError("nothing can be run; name the files that the commands above need.")
    for step in ready:
        for is_bare in (True, False):
            arguments = step.arguments(model, given, place, is_bare)
            tell(f"lvlm-attn eval {' '.join(arguments)}")
            code = command.main(args=arguments, prog_name="lvlm-attn eval", standalone_mode=False)
            if code:
                raise typer.Exit(int(code))


def _runs(recipe: Recipe, place: str, given: list[Path]) -> Found:
    """The runs of every step: those named, else those in its folder."""
    from lvlm_attn.evals.core.finished import read_run

    found: Found = {}
    named = [read_run(path) for path in given]
    for step in recipe.steps:
        pair: list[Run | None] = []
        for is_bare in (True, False):
            own = [item for item in named if step.fits(item) and (item.methods == "bare model") == is_bare]
            folder = Path(step.folder(place, is_bare))
            has_run = any(folder.glob("metrics.json"))
            pair.append(own[0] if own else read_run(folder) if has_run and not named else None)
        found[step.name] = (pair[0], pair[1])
    used = {id(item) for pair in found.values() for item in pair if item is not None}
    for item in named:
        if id(item) not in used:
            raise LvlmAttnError(
                f"{item.path} is no run of this recipe: {item.benchmark}, {item.methods}, "
                f"{item.generation.get('decode')}, at most {item.generation.get('max_new_tokens')} tokens; name runs "
                "made by its commands."
            )
    return found


def _show(recipe: Recipe, found: Found) -> None:
    from lvlm_attn.evals.core.tables import filled, show
    from lvlm_attn.evals.recipes.recipe import expected_table

    for step in recipe.steps:
        say("")
        show(expected_table(recipe, step, *found[step.name]))
    say("")
    tolerances = dict.fromkeys(item.why for step in recipe.steps for item in step.expected if item.why)
    notes = [f"Published: {recipe.source}.", *recipe.remarks, *(f"Tolerance: {why}." for why in tolerances)]
    say(filled(notes))


def _as_dict(
    recipe: Recipe, model: str, given: dict[str, list[str]], place: str, found: Found
) -> dict[str, object]:
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "source": recipe.source,
        "commands": recipe.commands(model, given, place),
        "steps": {step.name: _values(step, *found[step.name]) for step in recipe.steps},
    }


def _values(step: Step, bare: Run | None, method: Run | None) -> list[dict[str, object]]:
    return [
        {
            "metric": item.metric,
            "split": item.split,
            "tolerance": item.tolerance,
            "bare": {"published": item.bare, "measured": bare and item.measured(bare.metrics)},
            "method": {"published": item.method, "measured": method and item.measured(method.metrics)},
        }
        for item in step.expected
    ]
