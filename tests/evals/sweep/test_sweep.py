"""Sweeps: grids as text, pictures parted, every point reported, the chosen one asked once on test."""

import json
from itertools import product

import pytest
from PIL import Image

import lvlm_attn as la
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.answerer import Decoding
from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.evals.core.tables import plain
from lvlm_attn.evals.pope.benchmark import Pope
from lvlm_attn.evals.pope.data import Question
from lvlm_attn.evals.sweep.grid import grid_points
from lvlm_attn.evals.sweep.parts import PicturePart
from lvlm_attn.toy.benchmarks import toy_chair, toy_pope
from tests.cli.test_cli import call, refused

SHORT = Decoding(max_new_tokens=2)


def test_a_grid_is_the_product_of_its_values():
    wanted = [f"pai:alpha={a},gamma={g}" for a, g in product(("0.1", "0.2"), ("1.0", "1.1"))]
    assert grid_points(["pai:alpha=0.1,0.2;gamma=1.0,1.1"]) == wanted
    assert grid_points(["vhr:alpha=2 , 3+var"]) == ["vhr:alpha=2+var", "vhr:alpha=3+var"]
    assert grid_points(["var", "vhr:layers=[1,2],2..3"]) == ["var", "vhr:layers=[1,2]", "vhr:layers=2..3"]
    assert grid_points(["var", "var"]) == ["var"]
    assert all(la.parse(point) for point in wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pai:alpha", "not of the form key=value"),
        ("pai:alpha=0.1,,0.2", "not of the form"),
        ("pai:alpha=0.1,gamma=1.0", "separate parameters by semicolons"),
        ("pai:alpha=[1", "brackets"),
        (
            "vhr:alpha=" + ",".join(map(str, range(40))) + "+pai:alpha=" + ",".join(map(str, range(40))),
            "more than 1000",
        ),
    ],
)
def test_a_grid_that_cannot_be_read_is_one_sentence(text, message):
    with pytest.raises(LvlmAttnError, match=message):
        grid_points([text])


def questions(pictures):
    rows = [
        Question(f"r:{i}-{k}", 2 * i + k, f"{i}.jpg", f"Is there a thing{k}?", "yes" if k else "no", "random")
        for i in range(pictures)
        for k in range(2)
    ]
    return Pope(rows, {f"{i}.jpg": Image.new("RGB", (8, 8)) for i in range(pictures)}, {"data": "made up"})


def test_parts_share_no_picture_and_lose_none():
    whole = questions(400)
    dev, test = (PicturePart(whole, part, 0.25) for part in ("dev", "test"))
    pictures = [{sample.image_name for sample in part.samples()} for part in (dev, test)]
    assert not pictures[0] & pictures[1]
    assert len(pictures[0] | pictures[1]) == 400
    assert 70 < len(pictures[0]) < 130
    assert len(dev.samples()) == 2 * len(pictures[0])
    assert dev.describe() != test.describe()
    lines = [{**vars(sample), **sample.fields, "raw_text": "Yes"} for sample in dev.samples()]
    scored = dev.score([*lines[:-1], {**lines[-1], "error": "x"}])
    assert (scored["n"], scored["failed"]) == (len(lines) - 1, 1)
    # Where a picture goes does not depend on the others.
    fewer = PicturePart(questions(50), "dev", 0.25)
    assert {sample.image_name for sample in fewer.samples()} == {
        name for name in pictures[0] if int(name.split(".")[0]) < 50
    }


def test_a_part_without_pictures_is_refused():
    with pytest.raises(LvlmAttnError, match="lies between 0 and 1"):
        PicturePart(questions(5), "dev", 1.0)
    with pytest.raises(LvlmAttnError, match="no picture falls into the dev part"):
        PicturePart(questions(3), "dev", 1e-9)


class Louder(la.Intervention):
    """Says yes with a strength that tests choose."""

    name = ""

    def __init__(self, yes, ids):
        self.yes, self.ids = yes, ids

    def edit_logits(self, context, logits):
        logits = logits.clone()
        logits[..., self.ids] += self.yes
        return logits

    def __str__(self):
        return f"louder:yes={self.yes}"


@pytest.fixture(scope="module")
def swept(loaded, tmp_path_factory):
    ids = [
        token
        for word in ("Yes", "yes")
        for token in loaded[1].tokenizer.encode(word, add_special_tokens=False)
    ]
    no = [
        token for word in ("No", "no") for token in loaded[1].tokenizer.encode(word, add_special_tokens=False)
    ]
    out = tmp_path_factory.mktemp("sweep")
    grid = [[Louder(50.0, no)], [Louder(60.0, ids)], [Louder(70.0, ids)]]
    done = []
    found = la.sweep(
        *loaded,
        toy_pope("dev", 4),
        toy_pope("test", 4),
        grid,
        out,
        decoding=SHORT,
        by="recall",
        on_done=done.append,
    )
    return found, out, done, grid


def test_every_point_is_reported_and_the_best_is_asked_once_on_test(swept, monkeypatch):
    found, out, done, _ = swept
    assert found.chosen == "louder:yes=60.0"  # always yes: recall 1; of equal ones the first
    assert done[-2:] == ["test: bare model", "test: louder:yes=60.0"]
    assert len(done) == 6
    table, test = found.tables()
    assert [row[0] for row in table.rows] == [
        "bare model",
        "louder:yes=50.0",
        "louder:yes=60.0",
        "louder:yes=70.0",
    ]
    assert table.rows[2][4] == "100.0"
    assert "louder:yes=60.0" in test.title
    assert max(map(len, plain(table, 80).splitlines())) <= 80
    text = " ".join(found.sentences())
    assert "the best of 3 points" in text
    assert "On test, asked once" in text
    written = json.loads((out / "sweep.json").read_text())
    assert written["chosen"] == found.chosen
    assert written["points"]["louder:yes=60.0"]["recall"] == 1.0
    for name in ("dev/bare", "dev/2-louder-yes=60.0", "test/bare", "test/2-louder-yes=60.0"):
        assert (out / name / "metrics.json").is_file()
    scored = json.loads((out / "dev/1-louder-yes=50.0/metrics.json").read_text())
    assert written["points"]["louder:yes=50.0"]["recall"] == scored["recall"]


def test_a_folder_belongs_to_its_sweep(swept, loaded):
    found, out, _, grid = swept
    data = (toy_pope("dev", 4), toy_pope("test", 4))
    again = la.sweep(*loaded, *data, grid, out, decoding=SHORT, by="recall")
    assert again.to_dict() == found.to_dict()
    with pytest.raises(LvlmAttnError, match="holds another sweep"):
        la.sweep(*loaded, *data, grid[:2], out, decoding=SHORT, by="recall")


def test_what_cannot_be_swept_is_refused(loaded, tmp_path):
    dev, test = toy_pope("dev", 4), toy_pope("test", 4)
    for points, both, by, message in (
        ([la.parse("var")], (dev, dev), None, "in dev and in test"),
        ([], (dev, test), None, "needs points"),
        ([()], (dev, test), None, "needs points"),
        ([la.parse("var")], (dev, test), "acuracy", "Did you mean 'accuracy'"),
    ):
        with pytest.raises(LvlmAttnError, match=message):
            la.sweep(*loaded, *both, points, tmp_path, by=by)
    assert not list(tmp_path.iterdir())


def test_captions_are_chosen_by_least_hallucination(loaded, tmp_path):
    found = la.sweep(
        *loaded, toy_chair("dev", 3), toy_chair("test", 3), [la.parse("vhr"), la.parse("pai:gamma=1.0")], tmp_path,
        decoding=Decoding(max_new_tokens=8),
    )  # fmt: skip
    values = {name: change.after for name, change in found.points().items()}
    assert values[found.chosen] == min(values.values())
    assert found.by == "chair_s"


def test_the_command_line(capsys, untrained, tmp_path):
    command = ["eval", "sweep", "--model", untrained, "--grid", "vhr:alpha=2,3", "--max-new-tokens", 2]
    code, out, err = call(
        capsys, *command, "--data", "toy", "--scenes", 4, "--limit", 4, "--out", tmp_path / "a", "--json"
    )
    assert code == 0, err
    assert set(json.loads(out)["points"]) == {"vhr", "vhr:alpha=3.0"}
    assert "dev: vhr:alpha=3.0" in err
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for i in range(8):
        Image.new("RGB", (20, 20), (i * 20, 0, 0)).save(images / f"{i}.png")
        rows += [
            {
                "question_id": f"{i}{k}",
                "image": f"{i}.png",
                "text": f"Is there a {k} in the image?",
                "label": label,
            }
            for k, label in (("dog", "yes"), ("cat", "no"))
        ]
    (tmp_path / "q.json").write_text("\n".join(map(json.dumps, rows)))
    code, out, err = call(
        capsys, *command, "--questions", tmp_path / "q.json", "--images", images, "--dev-share", 0.5,
        "--out", tmp_path / "b",
    )  # fmt: skip
    assert code == 0, err
    assert "asked once" in out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert "semicolons" in refused(capsys, *command[:4], "--grid", "pai:alpha=1,gamma=2", "--data", "toy")
    assert "no sweep over 'pop'" in refused(capsys, *command, "--benchmark", "pop", "--data", "toy")


def test_several_samples_of_a_benchmark_keep_their_order():
    part = PicturePart(questions(40), "test", 0.5)
    places = [int(sample.sample_id.split(":")[1].split("-")[0]) for sample in part.samples()]
    assert places == sorted(places)
    assert isinstance(part.samples()[0], Sample)
