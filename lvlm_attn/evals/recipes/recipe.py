"""Reading recipes, writing out their commands, and holding what was measured against what was published."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import mean
from typing import Any

from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.evals.core.finished import Run
from lvlm_attn.evals.core.tables import Table
from lvlm_attn.evals.pope.data import split_of

_UNITS = {"len": "tokens"}
_NEEDS = {
    "pope": (("--questions", "QUESTIONS.json"), ("--images", "PICTURES")),
    "chair": (
        ("--instances", "instances_val2014.json"), ("--captions", "captions_val2014.json"), ("--images", "PICTURES"),
    ),
}  # fmt: skip
"""What a benchmark's command takes, with what stands for it where the user has not named it."""


@dataclass(frozen=True)
class Expected:
    """A published value.

    Attributes:
        metric: as in ``metrics.json``.
        split: `random`, `popular`, `adversarial`, or `mean` over them; None is the run's own value.
        bare: without the method; None where it is not published.
        method: with it.
        tolerance: how far a measured value may lie from it; None where nothing says so.
        why: where the tolerance comes from.
    """

    metric: str
    split: str | None = None
    bare: float | None = None
    method: float | None = None
    tolerance: float | None = None
    why: str = ""

    def measured(self, metrics: Mapping[str, Any]) -> float | None:
        """The value in a run's metrics; of a split the mean over its data sets; None where the run has none."""
        if self.split is None:
            return metrics.get(self.metric)
        rows = dict(metrics.get("per_category", {}))
        if self.split != "mean":
            rows = {name: row for name, row in rows.items() if split_of(name) == self.split}
        return mean(float(row[self.metric]) for row in rows.values()) if rows else None

    def written(self, value: float | None) -> str:
        """A value as tables show it."""
        if value is None:
            return "-"
        return f"{value:.2f}" if self.metric in _UNITS else f"{100 * value:.2f}"


@dataclass(frozen=True)
class Step:
    """A run without and with the method.

    Attributes:
        name: names its folder.
        benchmark: the command, `pope` or `chair`.
        intervene: the method as on the command line.
        options: everything else that decides the result.
        expected: published values.
    """

    name: str
    benchmark: str
    intervene: str
    options: tuple[str, ...]
    expected: tuple[Expected, ...]

    def arguments(self, model: str, data: Mapping[str, Sequence[str]], out: str, is_bare: bool) -> list[str]:
        """What follows `lvlm-attn eval`.

        Args:
            model: the model.
            data: the user's files by option; what is missing gets a placeholder.
            out: the folder that holds this recipe's runs.
            is_bare: without the method.
        """
        found = [self.benchmark, "--model", model]
        if "--data" in data:
            needs: Sequence[tuple[str, Sequence[str]]] = [("--data", data["--data"])]
        else:
            replaced = "--ground-truth" in data
            needs = [
                (option, data.get(option, (default,)))
                for option, default in _NEEDS[self.benchmark]
                if not (replaced and option in ("--instances", "--captions"))
            ]
        more = [(option, values) for option, values in data.items() if option in _MORE[self.benchmark]]
        for option, values in [*needs, *more]:
            for value in values:
                found += [option, value]
        method = [] if is_bare else ["--intervene", self.intervene]
        return [*found, *method, *self.options, "--out", self.folder(out, is_bare)]

    def folder(self, out: str, is_bare: bool) -> str:
        """Where one of its runs goes."""
        return f"{out}/{self.name}/{'bare' if is_bare else self.intervene.partition(':')[0]}"

    def lacks(self, data: Mapping[str, Sequence[str]]) -> list[str]:
        """Options that the user still has to name."""
        if "--data" in data or (
            "--ground-truth" in data and self.benchmark == "chair" and "--images" in data
        ):
            return []
        return [option for option, _ in _NEEDS[self.benchmark] if option not in data]

    def fits(self, run: Run) -> bool:
        """Whether a run was made with this step's benchmark, decoding and limit."""
        given = dict(zip(self.options, self.options[1:]))
        decode = given.get("--decode", "greedy")
        limit = given.get("--max-new-tokens")
        same = run.benchmark == self.benchmark and run.generation.get("decode") == decode
        return same and (limit is None or run.generation.get("max_new_tokens") == int(limit))


_MORE = {"pope": ("--limit",), "chair": ("--ground-truth", "--ids", "--limit")}


@dataclass(frozen=True)
class Recipe:
    """A method's published results.

    Attributes:
        name: as on the command line.
        method: its name in tables.
        model: what the results are of.
        source: who published them.
        remarks: what is to be known before believing a comparison.
        steps: the runs.
    """

    name: str
    method: str
    model: str
    source: str
    remarks: tuple[str, ...]
    steps: tuple[Step, ...]

    def commands(self, model: str, data: Mapping[str, Sequence[str]], out: str) -> list[str]:
        """The exact commands, for a shell."""
        return [
            shlex.join(["lvlm-attn", "eval", *step.arguments(model, data, out, is_bare)])
            for step in self.steps
            for is_bare in (True, False)
        ]


def names() -> list[str]:
    """All recipes."""
    return sorted(
        item.name.removesuffix(".toml")
        for item in files(__package__).iterdir()
        if item.name.endswith(".toml")
    )


def read_recipe(name: str) -> Recipe:
    """Reads a recipe.

    Raises:
        LvlmAttnError: there is none of this name.

    Example:
        >>> read_recipe("vhr").steps[0].expected[0].method
        0.3332
    """
    if name not in names():
        raise LvlmAttnError(f"no recipe {name!r}.{closest(name, names())} There are {', '.join(names())}.")
    told = tomllib.loads(files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    steps = tuple(
        Step(
            step["name"], step["benchmark"], step["intervene"], tuple(step["options"]),
            tuple(Expected(**item) for item in step.get("expected", ())),
        )
        for step in told["run"]
    )  # fmt: skip
    return Recipe(name, told["method"], told["model"], told["source"], tuple(told["remarks"]), steps)


def expected_table(recipe: Recipe, step: Step, bare: Run | None = None, method: Run | None = None) -> Table:
    """What one step should give, beside what it gave where there are runs.

    Args:
        recipe: the recipe.
        step: one of its steps.
        bare: the run without the method.
        method: the run with it.
    """
    rows = []
    for item in step.expected:
        unit = f"({_UNITS[item.metric]})" if item.metric in _UNITS else ""
        label = " ".join(filter(None, (item.split, item.metric, unit)))
        for name, published, run in (("bare", item.bare, bare), (recipe.method, item.method, method)):
            if published is None:
                continue
            found = None if run is None else item.measured(run.metrics)
            wide = "-" if item.tolerance is None else f"±{item.written(item.tolerance)}"
            cells = (item.written(published), wide, item.written(found), _judged(item, published, found))
            rows.append((label, name, *cells))
    columns = ("metric", "run", "published", "tolerance", "measured", "")
    return Table(f"{recipe.method} on {recipe.model}, {step.name} (%)", columns, tuple(rows), text_columns=2)


def _judged(item: Expected, published: float, found: float | None) -> str:
    if found is None or item.tolerance is None:
        return ""
    return "agrees" if abs(found - published) <= item.tolerance else "differs"
