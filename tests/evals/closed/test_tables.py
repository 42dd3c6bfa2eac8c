"""Benchmarks as tables with pictures in them: the hub's parquet, folders saved by `datasets`, VLMEvalKit's TSV."""

import base64
import csv
import json

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
from lvlm_attn.evals.closed.catalogue import CLOSED
from lvlm_attn.prompts.images import as_image
from tests.evals.closed import copies

RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


def load(name, folder):
    return ClosedBenchmark.from_folder(CLOSED[name], folder)


def colours(benchmark):
    return [as_image(sample.image).getpixel((0, 0)) for sample in benchmark.samples()]


def picture(colour):
    return {"bytes": copies.picture_bytes(colour), "path": None}


def parquet(path, rows, group=2):
    import pyarrow as arrow
    from pyarrow import parquet as files

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(arrow.Table.from_pylist(rows), path, row_group_size=group)


MME = [
    {"question_id": f"count/{i // 2:04d}.png", "category": "count", "question": f"Is {i}?", "answer": answer,
     "image": picture("red" if i < 2 else "green")}
    for i, answer in enumerate(("Yes", "No", "Yes", "No"))
]  # fmt: skip


def test_mme_of_the_hub(tmp_path):
    parquet(tmp_path / "data" / "test-0.parquet", MME[:3])
    parquet(tmp_path / "data" / "test-1.parquet", MME[3:])
    benchmark = load("mme", tmp_path)
    assert [item.sample_id for item in benchmark.questions] == [
        "count/0000:1", "count/0000:2", "count/0001:1", "count/0001:2"
    ]  # fmt: skip
    assert colours(benchmark) == [RED, RED, GREEN, GREEN]
    assert [item.label for item in benchmark.questions] == ["yes", "no", "yes", "no"]
    assert load("mme", tmp_path / "data" / "test-1.parquet").questions[0].text == "Is 3?"


def test_folders_that_datasets_saved(tmp_path):
    import pyarrow as arrow

    table = arrow.Table.from_pylist(MME)
    for split, part in (("b", table.slice(0, 2)), ("a", table.slice(2, 2))):
        place = tmp_path / split
        place.mkdir()
        with arrow.OSFile(str(place / "data-00000-of-00001.arrow"), "wb") as file:
            with arrow.ipc.new_stream(file, part.schema) as writer:
                writer.write_table(part)
        (place / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
        )
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["b", "a"]}))
    assert colours(load("mme", tmp_path)) == [RED, RED, GREEN, GREEN]
    assert colours(load("mme", tmp_path / "a")) == [GREEN, GREEN]


def test_mmvp_and_dash_b_of_the_hub(tmp_path):
    rows = [
        {
            "Index": i,
            "Question": "Open?",
            "Options": "(a) Yes (b) No",
            "Correct Answer": answer,
            "image": picture(colour),
        }
        for i, answer, colour in ((1, "(a)", "red"), (2, "(b)", "blue"))
    ]  # fmt: skip
    parquet(tmp_path / "mmvp" / "test.parquet", rows)
    mmvp = load("mmvp", tmp_path / "mmvp")
    assert (colours(mmvp), [item.label for item in mmvp.questions]) == ([RED, BLUE], ["A", "B"])
    rows = [
        {"question_id": "q1", "question": "Can you see a drum in this image? Please answer only with yes or no.",
         "answer": "no", "image": picture("green")}
    ]  # fmt: skip
    parquet(tmp_path / "dash" / "test.parquet", rows)
    dash = load("dash-b", tmp_path / "dash")
    assert (colours(dash), dash.questions[0].object) == ([GREEN], "drum")


def test_tsv_of_vlmevalkit_where_a_short_cell_names_another_row(tmp_path):
    red = base64.b64encode(copies.picture_bytes("red")).decode()
    with (tmp_path / "HallusionBench.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(("index", "category", "l2-category", "question", "answer", "image"))
        table.writerow(("hallusion_VD_figure_7_0_0", "VD", "figure", "Is it?", "Yes", red))
        table.writerow(
            ("hallusion_VD_figure_7_0_1", "VD", "figure", "Is it not?", "No", "hallusion_VD_figure_7_0_0")
        )
    benchmark = load("hallusionbench", tmp_path)
    assert colours(benchmark) == [RED, RED]
    assert benchmark.questions[1].groups == {
        "figure": "VD/figure/7/figure-0",
        "question": "VD/figure/7/question-1",
    }


def test_a_picture_that_is_none_fails_its_sample_alone(tmp_path):
    rows = [{**MME[0], "image": {"bytes": b"no picture", "path": None}}, MME[1]]
    parquet(tmp_path / "x.parquet", rows)
    first, second = load("mme", tmp_path).samples()
    with pytest.raises(LvlmAttnError, match=r"x\.parquet, row 1 cannot be read"):
        as_image(first.image)
    assert as_image(second.image).size == (24, 24)
