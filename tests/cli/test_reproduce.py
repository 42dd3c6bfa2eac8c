"""`lvlm-attn reproduce`: exact commands, and measured beside published."""

import json
import shlex
from pathlib import Path

import pytest
import typer

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.recipes.recipe import Expected, expected_table, names, read_recipe
from lvlm_attn.hooks.parsing import parse
from tests.cli.test_cli import call
from tests.evals.conftest import untrained  # noqa: F401
from tests.evals.runs import GENERATION, pope_lines, run_of, settings, write_run

METHODS = ["agla", "carve", "opera", "pai", "var", "vcd", "vhr"]


def test_there_is_a_recipe_for_each():
    assert names() == METHODS
    with pytest.raises(LvlmAttnError, match="Did you mean 'vhr'"):
        read_recipe("vhrr")


@pytest.mark.parametrize("name", METHODS)
def test_commands_are_those_the_command_line_takes(name):
    """Every option exists, every method parses, and every expected metric is one the benchmark has."""
    from lvlm_attn.cli import evaluate
    from lvlm_attn.evals.chair.score import metrics as chair_metrics
    from lvlm_attn.evals.pope.score import Counts
    from lvlm_attn.evals.pope.score import metrics as pope_metrics

    known = {"pope": pope_metrics(Counts()), "chair": chair_metrics([0] * 8)}
    recipe = read_recipe(name)
    group = typer.main.get_command(evaluate.app)
    for step in recipe.steps:
        assert parse(step.intervene)
        for is_bare in (True, False):
            arguments = step.arguments("toy", {}, "runs", is_bare)
            command = group.commands[arguments[0]]
            made = command.make_context("eval", arguments[1:])
            assert bool(made.params["intervene"]) != is_bare
        for item in step.expected:
            assert item.metric in known[step.benchmark]
            assert item.method is not None
            assert (item.tolerance is None) == (not item.why)
    assert recipe.source


def test_published_values_of_vhr():
    first = read_recipe("vhr").steps[0].expected[0]
    assert (first.metric, first.bare, first.method, first.tolerance) == ("chair_s", 0.4968, 0.3332, 0.03)


def test_splits_are_means_over_data_sets():
    metrics = {
        "accuracy": 0.5,
        "per_category": {
            "coco_pope_random": {"accuracy": 0.9}, "gqa_pope_random": {"accuracy": 0.7}, "popular": {"accuracy": 0.2}
        },
    }  # fmt: skip
    assert Expected("accuracy", "random").measured(metrics) == pytest.approx(0.8)
    assert Expected("accuracy", "mean").measured(metrics) == pytest.approx(0.6)
    assert Expected("accuracy").measured(metrics) == 0.5
    assert Expected("accuracy", "adversarial").measured(metrics) is None


def test_measured_stands_beside_published():
    recipe = read_recipe("carve")
    step = recipe.steps[0]
    bare, method = run_of("a", pope_lines([1])), run_of("b", pope_lines([1]))
    bare, method = (
        type(run)(**{**vars(run), "metrics": {"accuracy": value}})
        for run, value in ((bare, 0.84), (method, 0.86))
    )
    rows = expected_table(recipe, step, bare, method).rows
    assert rows == (
        ("accuracy", "bare", "83.60", "±1.20", "84.00", "agrees"),
        ("accuracy", "CARVE", "89.00", "±1.20", "86.00", "differs"),
    )


def test_the_commands_are_printed_with_what_was_named(capsys, tmp_path):
    code, out, err = call(
        capsys, "reproduce", "vhr", "--questions", "q r.json", "--images", "p", "--out", tmp_path
    )
    assert code == 0, err
    lines = [shlex.split(line) for line in out.splitlines() if line.startswith("lvlm-attn eval")]
    assert len(lines) == 4
    assert lines[3][:9] == [
        "lvlm-attn", "eval", "pope", "--model", "llava-hf/llava-1.5-7b-hf", "--questions", "q r.json", "--images", "p"
    ]  # fmt: skip
    assert lines[3][9:11] == ["--intervene", "vhr"]
    assert "49.68" in out
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("lvlm-attn"))
    code, out, _ = call(capsys, "reproduce")
    assert [line.split()[0] for line in out.splitlines()] == METHODS


def test_go_makes_the_runs_that_can_be_made(capsys, untrained, tmp_path):  # noqa: F811
    code, out, err = call(
        capsys,
        "reproduce",
        "carve",
        "--model",
        untrained,
        "--data",
        "toy",
        "--limit",
        2,
        "--out",
        tmp_path,
        "--go",
    )
    assert code == 0, err
    assert "published" in out
    bare, method = (tmp_path / "carve/pope" / name for name in ("bare", "carve"))
    code, out, _ = call(capsys, "reproduce", "carve", "--run", method, "--run", bare, "--json")
    assert code == 0
    (value,) = json.loads(out)["steps"]["pope"]
    for name, folder in (("bare", bare), ("method", method)):
        assert value[name]["measured"] == json.loads((Path(folder) / "metrics.json").read_text())["accuracy"]
    code, _, err = call(
        capsys, "reproduce", "vhr", "--run", write_run(tmp_path / "x", pope_lines([1]), settings("mme"))
    )
    assert (code, "no run of this recipe" in err) == (2, True)
    code, _, err = call(capsys, "reproduce", "vhr", "--out", tmp_path, "--go")
    assert (code, "nothing can be run" in err) == (2, True)


def test_a_run_with_another_limit_is_not_taken(tmp_path):
    step = read_recipe("vhr").steps[0]
    lines = pope_lines([1])
    short = run_of("a", lines, settings("chair", generation={**GENERATION, "max_new_tokens": 64}))
    long = run_of("b", lines, settings("chair", generation={**GENERATION, "max_new_tokens": 512}))
    assert (step.fits(short), step.fits(long)) == (False, True)
