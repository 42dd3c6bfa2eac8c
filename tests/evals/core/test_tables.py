import csv
import io

import pytest

from lvlm_attn.evals.core.report import chair_table, limits, pope_table
from lvlm_attn.evals.core.tables import Table, comma_separated, html_table, latex, markdown, plain

WIDE = Table(
    "A title",
    ("run", "questions", *(f"column {i}" for i in range(9))),
    tuple(
        (f"var:rho=0.5,layers={n}+vhr", kind, *(f"{i}.00" for i in range(9)))
        for n in (1, 2)
        for kind in ("a", "b")
    ),
    text_columns=2,
)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 300])
def test_no_cell_is_cut_and_no_line_is_too_long(width):
    text = plain(WIDE, width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for cell in {*WIDE.columns[2:], *(cell for row in WIDE.rows for cell in row[1:])}:
        assert cell in words
    assert "var:rho=0.5,layers=1+vhr" in text
    assert text.count("8.00") == 4


def test_text_goes_on_below_itself():
    table = Table("T", ("name", "what"), (("x", "word " * 40), ("y", "short")), text_columns=2)
    lines = plain(table, 50).splitlines()
    assert max(map(len, lines)) <= 50
    assert " ".join(lines).count("word") == 40
    names = Table("T", ("name", "what"), (("x" * 45, "word " * 40),), text_columns=2)
    assert max(map(len, plain(names, 60).splitlines())) <= 60


def test_the_tables_of_results_fit_80_columns():
    row = dict.fromkeys(("accuracy", "precision", "recall", "f1", "yes_ratio", "false_yes_rate"), 0.12345)
    row |= {"unknown": 12, "n": 3000}
    pope = {"per_category": {"random": row, "adversarial": row}, "mean": row, **row}
    chair = dict.fromkeys(("chair_s", "chair_i", "recall", "precision", "f1", "truncated"), 0.5)
    chair |= {"len": 101.5, "mentions_per_caption": 12.25, "n": 5000}
    for name in ("baseline", "crosslmm:grid=[3,3],source=S1,layers=2:+vhr:alpha=3.0"):
        for table in (pope_table({name: pope}), chair_table({name: chair})):
            assert max(map(len, plain(table, 80).splitlines())) <= 80


def test_csv_is_read_back():
    table = Table("T", ("run", "x"), (('a "quoted", name', "1"),))
    assert list(csv.reader(io.StringIO(comma_separated(table)))) == [["run", "x"], ['a "quoted", name', "1"]]


def test_other_formats_escape_what_they_must():
    table = Table("50 % & more", ("run_name", "x"), (("<b>|a_b & c\\", "1"),))
    assert r"<b>\|a_b" in markdown(table)
    assert r"run\_name & x \\" in latex(table)
    assert r"\textless{}b\textgreater{}|a\_b \& c\textbackslash{} & 1 \\" in latex(table)
    assert r"\caption{50 \% \& more}" in latex(table)
    assert "&lt;b&gt;|a_b &amp; c" in html_table(table)


@pytest.mark.parametrize(
    ("generation", "text"),
    [
        ({"decode": "sample", "temperature": 0.7, "max_new_tokens": 4}, "sampled at temperature 0.7, at most 4 tokens"),
        ({"decode": "greedy", "num_beams": 5, "max_new_tokens": 512}, "5 beams, at most 512 tokens"),
        ({}, "unknown decoding"),
    ],
)  # fmt: skip
def test_titles_say_the_token_limit(generation, text):
    assert limits(generation) == text
