"""Any bytes, and any JSON, in the files of a benchmark end in questions or in one sentence."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_attn.evals.amber.benchmark import AmberCaptions
from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
from lvlm_attn.evals.closed.catalogue import CLOSED
from lvlm_attn.evals.core.joining import join, read_answers
from tests.evals.closed import copies
from tests.fuzzing import drawn, value_or_sentence

FILES = {
    "amber-d": ("data/annotations.json", "data/query/query_all.json"),
    "mme": ("count/0001.txt", "table.tsv"),
    "mmvp": ("Questions.csv", "table.tsv"),
    "hallusionbench": ("HallusionBench.json", "table.tsv"),
    "naturalbench": ("table.tsv", "table.parquet"),
    "dash-b": ("images/dash_benchmark_neg.json", "table.tsv"),
    "amber-g": (
        "data/annotations.json",
        "data/relation.json",
        "data/safe_words.txt",
        "data/query/query_all.json",
    ),
}
FIELDS = [
    "id", "type", "truth", "hallu", "image", "query", "question", "answer", "category", "subcategory", "visual_input",
    "set_id", "figure_id", "question_id", "gt_answer", "filename", "index", "options", "Correct Answer", "Question_0",
    "Question_1", "Image_0_Question_0", "question_type", "a", "b",
]  # fmt: skip
WORDS = [
    "generative",
    "relation",
    "yes",
    "no",
    "1",
    "(a) x (b) y",
    "VD",
    "a.jpg",
    "/etc/hosts",
    "../x",
    "",
    "count",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=6)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8), max_size=4)


def made(name, folder):
    if name == "amber-g":
        return AmberCaptions.from_folder(folder)
    return ClosedBenchmark.from_folder(CLOSED[name], folder)


def copy(name, folder):
    if name.startswith("amber"):
        copies.amber(folder)
    for file in FILES[name]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("name", FILES)
@drawn(25)
@given(
    which=st.integers(0, 3), data=st.binary(max_size=200) | ROWS.map(lambda rows: json.dumps(rows).encode())
)
def test_any_content(tmp_path_factory, name, which, data):
    folder = tmp_path_factory.mktemp("copy")
    copy(name, folder)
    (folder / FILES[name][which % len(FILES[name])]).write_bytes(data)
    value_or_sentence(lambda place: made(name, place), folder)


@drawn(40)
@given(rows=ROWS)
def test_any_answers(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("answers")
    asked = made("amber-d", copies.amber(folder / "copy")).questions
    path = folder / "answers.json"
    path.write_text(json.dumps(rows))
    value_or_sentence(lambda place: join(read_answers(place), asked, partial=True), path)


def test_pictures_outside_the_folder_are_never_opened(tmp_path):
    outside = tmp_path / "outside.png"
    copies.picture(outside)
    rows = [
        {"category": "VD", "subcategory": "ocr", "visual_input": "1", "set_id": "1", "figure_id": "0",
         "question_id": "0", "question": "Is it?", "gt_answer": "1", "filename": name}
        for name in (str(outside), "../outside.png")
    ]  # fmt: skip
    for place, row in enumerate(rows):
        copies.dump(tmp_path / f"copy{place}" / "HallusionBench.json", [row])
        (question,) = made("hallusionbench", tmp_path / f"copy{place}").questions
        assert not question.picture.exists()
        assert question.picture.is_relative_to(tmp_path / f"copy{place}")


def test_numbers_that_are_none_do_not_pass_for_ids():
    from lvlm_attn.evals.closed.folder import text_in

    assert text_in({"id": 3.0}, ("id",), "here") == "3"
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="no 'id' in this entry"):
            text_in({"id": value}, ("id",), "here")
