"""Any bytes into any reader end in a value or in one sentence, within a second."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_attn.evals.chair.benchmark import read_ids
from lvlm_attn.evals.chair.coco import kind_of, read_coco
from lvlm_attn.evals.chair.data import load_caption_file, load_ground_truth
from lvlm_attn.evals.core.records import read_records
from lvlm_attn.evals.core.run_folder import RunFolder
from lvlm_attn.evals.pope.build import read_objects
from lvlm_attn.evals.pope.data import Question, load_questions
from lvlm_attn.evals.pope.runs import match_runs
from tests.fuzzing import drawn, value_or_sentence

QUESTIONS = [
    Question(f"random:{i}", i, f"{i}.jpg", f"Is there a thing{i} in the image?", "yes", "random")
    for i in (1, 2)
]

READERS = {
    "records": read_records,
    "questions": load_questions,
    "answers": lambda path: match_runs([path], QUESTIONS),
    "partial answers": lambda path: match_runs([path], QUESTIONS, partial=True),
    "chosen answers": lambda path: match_runs([path], QUESTIONS, answer_field="text"),
    "captions": load_caption_file,
    "ground truth": load_ground_truth,
    "ids": read_ids,
    "objects": read_objects,
    "instances": lambda path: read_coco([path], cache=False),
    "reference captions": lambda path: read_coco([], [path], cache=False),
    "kind": kind_of,
}
FIELDS = [
    "question_id", "sample_id", "image", "image_id", "text", "question", "answer", "prediction", "response", "raw_text",
    "caption", "captions", "objects", "label", "gt-label", "category", "error", "doc", "resps", "filtered_resps",
    "index", "chat_id", "settings", "annotations", "images", "categories", "sentences", "imgToEval", "rows", "id",
    "category_id", "name", "file_name", "finish_reason", "mode", "split", "data",
]  # fmt: skip
TEXTS = st.sampled_from(
    [
        "Yes",
        "no.",
        "",
        "a.jpg",
        "random",
        "1",
        "2.0",
        "a\nb",
        "\ud800",
        "Is there a dog in the image?",
        "<think>",
        "x" * 300,
    ]
) | st.text(max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.just(10**30) | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=7), max_size=4)
ENDINGS = st.sampled_from(
    ["x.json", "x.jsonl", "x.csv", "x.tsv", "x.xlsx", "x.parquet", "x.gz", "random.csv.gz", "x"]
)
HEADS = st.sampled_from(
    [b"", b"{", b"[", b'{"a": 1}', b"PAR1", b"PK\x03\x04", b"\x1f\x8b\x08", b"\xff\xfe", b"\xef\xbb\xbf"]
)
QUICK = drawn(150)


def ends_in_a_value_or_a_sentence(path):
    for read in READERS.values():
        value_or_sentence(read, path)


@QUICK
@given(data=st.binary(max_size=200), head=HEADS, name=ENDINGS)
def test_any_bytes(tmp_path, data, head, name):
    (tmp_path / name).write_bytes(head + data)
    ends_in_a_value_or_a_sentence(tmp_path / name)


@QUICK
@given(rows=ROWS, layout=st.sampled_from(["lines", "array", "one", "gzip"]), name=ENDINGS)
def test_any_json(tmp_path, rows, layout, name):
    text = {
        "lines": "\n".join(map(json.dumps, rows)),
        "gzip": "\n".join(map(json.dumps, rows)),
        "array": json.dumps(rows),
        "one": json.dumps({"images": rows, "annotations": rows, "categories": rows}),
    }[layout]
    (tmp_path / name).write_bytes(
        gzip.compress(text.encode(), mtime=0) if layout == "gzip" else text.encode()
    )
    ends_in_a_value_or_a_sentence(tmp_path / name)


@QUICK
@given(cells=st.lists(st.lists(st.sampled_from(FIELDS) | TEXTS, max_size=5), max_size=5), name=ENDINGS)
def test_any_table(tmp_path, cells, name):
    text = "\n".join(",".join(json.dumps(cell) for cell in row) for row in cells)
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    ends_in_a_value_or_a_sentence(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"question_id": ' + "9" * 20_000 + "}",
        '{"image_id": 1e999, "caption": "a dog"}',
        '{"image_id": NaN, "caption": "a dog"}',
        '{"question_id": 1, "text": ' + '"' + "yes or " * 20_000 + '"}',
        "\n" * 200_000 + "{",
        "," * 200_000,
        '{"text": "' + "<think>" * 20_000 + '"}',
        "a,b\n" + '"' * 99_999,
    ],
    ids=range(10),
)
@pytest.mark.parametrize("name", ["x.json", "x.csv"])
def test_hostile_files(tmp_path, text, name):
    (tmp_path / name).write_text(text)
    ends_in_a_value_or_a_sentence(tmp_path / name)


@QUICK
@given(settings_value=VALUES, line=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
def test_any_run_folder(tmp_path, settings_value, line):
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings_value}))
    (tmp_path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    value_or_sentence(RunFolder, tmp_path, {"a": 1})
