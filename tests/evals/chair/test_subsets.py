"""Frozen lists of pictures, and captions scored by subset."""

import json
import random
from statistics import mean, stdev

import pytest
from PIL import Image

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.benchmark import Chair, read_subsets
from lvlm_attn.evals.chair.subsets import disjoint_subsets
from lvlm_attn.evals.core.report import chair_table
from lvlm_attn.evals.core.tables import plain
from tests.cli.test_cli import call

NAMES = [f"COCO_val2014_{i:012d}.jpg" for i in range(1, 101)]


def test_lists_are_frozen_and_disjoint():
    lists = disjoint_subsets(NAMES, 10, 5)
    shuffled = random.Random(0).sample([str(i) for i in range(1, 101)], 100)
    assert disjoint_subsets(shuffled, 10, 5) == lists
    drawn = [key for listed in lists for key in listed]
    assert len(set(drawn)) == 50
    assert all(listed == sorted(listed, key=int) for listed in lists)
    # `printf "0/16" | sha256sum` and so on, sorted: a change of these lists is a change of everybody's results.
    assert disjoint_subsets(NAMES, 3, 2) == [["16", "31", "46"], ["87", "92", "96"]]
    assert disjoint_subsets(NAMES, 10, 5, seed=1) != lists
    # The first lists do not depend on how many there are.
    assert disjoint_subsets(NAMES, 10, 2) == lists[:2]


@pytest.mark.parametrize(("count", "subsets"), [(0, 5), (5, 0), (30, 5)])
def test_what_cannot_be_drawn_is_refused(count, subsets):
    with pytest.raises(LvlmAttnError, match=r"at least 1|take 150 pictures, and there are 100"):
        disjoint_subsets(NAMES, count, subsets)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(1, 9):
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / f"{i}.jpg")
    truth = [{"image_id": i, "objects": ["dog"]} for i in range(1, 9)]
    (tmp_path / "truth.jsonl").write_text("\n".join(map(json.dumps, truth)))
    (tmp_path / "one.txt").write_text("1\n2\n3\n")
    (tmp_path / "two.txt").write_text("5.jpg\n6.jpg\n")
    return tmp_path


def chair(files, **options):
    lists = [files / "one.txt", files / "two.txt"]
    return Chair.from_files(files / "truth.jsonl", files / "images", lists, **options)


def test_scores_come_by_subset_and_together(files):
    benchmark = chair(files)
    captions = ["A dog.", "A cat.", "A dog.", "A cat and a dog.", "A cat."]
    lines = [
        {"sample_id": sample.sample_id, "image": sample.image_name, **sample.fields, "raw_text": text}
        for sample, text in zip(benchmark.samples(), captions, strict=True)
    ]
    assert [line["subset"] for line in lines] == ["one"] * 3 + ["two"] * 2
    found = benchmark.score(lines)
    assert found["chair_s"] == 3 / 5
    assert {name: part["chair_s"] for name, part in found["per_subset"].items()} == {"one": 1 / 3, "two": 1.0}
    assert found["subsets"]["chair_s"] == pytest.approx(mean([1 / 3, 1.0]))
    assert found["subsets"]["spread"]["chair_s"] == pytest.approx(stdev([1 / 3, 1.0]))
    table = chair_table({"bare": found})
    assert [row[0] for row in table.rows] == [
        "bare",
        "bare, one",
        "bare, two",
        "bare, mean ± deviation of subsets",
    ]
    assert table.rows[-1][1] == "66.7 ± 47.1"
    assert max(map(len, plain(table, 80).splitlines())) <= 80


def test_the_limit_is_of_each_subset(files):
    assert [sample.sample_id for sample in chair(files, limit=2).samples()] == ["1", "2", "5", "6"]


def test_one_list_is_no_subset(files):
    benchmark = Chair.from_files(files / "truth.jsonl", files / "images", files / "one.txt")
    assert all("subset" not in sample.fields for sample in benchmark.samples())


def test_lists_that_share_a_picture_are_refused(files):
    (files / "two.txt").write_text("COCO_val2014_000000000003.jpg\n")
    with pytest.raises(LvlmAttnError, match="picture 3 is in two lists"):
        read_subsets([files / "one.txt", files / "two.txt"])


def test_the_command_line_writes_lists_that_it_takes(capsys, files):
    code, out, err = call(
        capsys, "chair", "ids", "--ground-truth", files / "truth.jsonl", "--count", 2, "--subsets", 3,
        "--out", files / "ids",
    )  # fmt: skip
    assert code == 0, err
    made = json.loads((files / "ids/chair-2-seed0.json").read_text())
    assert (made["drawn_from"], len(made["sha256"])) == (8, 3)
    assert out.count("sha256") == 3
    lists = sorted((files / "ids").glob("*.txt"))
    assert len(read_subsets(lists)) == 6
