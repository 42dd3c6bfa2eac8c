"""Copies of benchmarks with anything in their files: questions, or one sentence, within a second."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
from lvlm_attn.evals.closed.catalogue import CLOSED
from lvlm_attn.evals.closed.results import lines_of
from tests.evals.closed import copies
from tests.evals.test_any_input import VALUES
from tests.fuzzing import drawn, value_or_sentence
from tests.json_changes import changed, places_in

MADE = {
    name: getattr(copies, name.replace("-", "_"))
    for name in CLOSED
    if hasattr(copies, name.replace("-", "_"))
}
WORDS = st.sampled_from(
    ["yes", "No", "(a)", "0", "-1", "existence", "VD", "a\tb", "\ud800", "../x.png", "/etc/passwd", "x" * 99]
)


def read(name, folder):
    benchmark = ClosedBenchmark.from_folder(CLOSED[name], folder)
    return benchmark.samples(), benchmark.describe(), benchmark.scoring()


def json_files(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl"))


def text_files(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in (".csv", ".tsv", ".txt"))


@drawn(25)
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(MADE))
def test_anything_changed_in_a_copy(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("copy")
    MADE[name](folder)
    for path in json_files(folder):
        value = json.loads(path.read_text())
        place = data.draw(st.sampled_from(list(places_in(value))))
        path.write_text(json.dumps(changed(value, place, data.draw(VALUES | WORDS))))
    for path in text_files(folder)[:2]:
        delimiter = "," if path.suffix == ".csv" else "\t"
        rows = list(csv.reader(io.StringIO(path.read_text()), delimiter=delimiter))
        row = data.draw(st.sampled_from(range(len(rows))))
        rows[row][data.draw(st.sampled_from(range(len(rows[row]))))] = data.draw(WORDS | st.text(max_size=5))
        written = io.StringIO()
        csv.writer(written, delimiter=delimiter).writerows(rows)
        path.write_bytes(written.getvalue().encode("utf-8", "surrogatepass"))
    value_or_sentence(read, name, folder)


@drawn(25)
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(MADE))
def test_any_bytes_in_a_copy(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("copy")
    MADE[name](folder)
    files = [*json_files(folder), *text_files(folder), *sorted(folder.rglob("*.parquet"))]
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    first, last = sorted(data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    path.write_bytes(whole[:first] + data.draw(st.binary(max_size=20)) + whole[last:])
    value_or_sentence(read, name, folder)


@pytest.fixture(scope="module")
def mme(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mme")
    copies.mme(folder)
    return ClosedBenchmark.from_folder(CLOSED["mme"], folder)


FIELDS = st.sampled_from(["question_id", "image", "question", "answer", "text", "sample_id"])
ROWS = st.lists(st.dictionaries(FIELDS, VALUES | WORDS, max_size=5), max_size=4)


@drawn(40)
@given(rows=ROWS, text=st.text(max_size=60))
def test_any_answers(tmp_path, mme, rows, text):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "count.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    for name in ("a.jsonl", "count.txt"):
        value_or_sentence(lines_of, mme, tmp_path / name, True)
