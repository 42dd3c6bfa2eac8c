import csv
import io
from decimal import Decimal

import pytest

from lvlm_attn.evals.core.report import chair_table, limits, pope_table
from lvlm_attn.evals.core.tables import (
    Table,
    comma_separated,
    html_table,
    latex,
    markdown,
    percent,
    plain,
    points,
    rounded,
)

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
    ids = Table("T", ("name", "e.g."), (("x" * 20, f"{'a-' * 30}z, b"), ("y", "c")), text_columns=2)
    assert plain(ids, 70).splitlines()[2:] == ["x" * 20, f"    {'a-' * 30}z, b", f"{'y':22}c"]
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


def test_a_change_agrees_with_the_columns_beside_it():
    """Of 80 answers, every odd share ends in a half of the last digit."""
    for before in range(0, 81, 3):
        for after in range(81):
            told = [Decimal(percent(n / 80)) for n in (before, after)]
            off = Decimal(points(after / 80 - before / 80)) - (told[1] - told[0])
            if before % 2 and after % 2 == 0:  # the half of the first number went up
                assert off == Decimal("0.1")
            else:
                assert off == 0


def test_halves_go_up_and_nothing_is_minus_zero():
    assert [percent(x) for x in (0.8875, 0.4875, 0.0005, 0.3 - 0.2495)] == ["88.8", "48.8", "0.1", "5.1"]
    assert [points(x) for x in (0.0125, -0.0125, -0.0001, 0.0)] == ["+1.3", "-1.2", "+0.0", "+0.0"]
    assert rounded(float("nan")) == percent(None) == "-"


def test_latex_has_minus_signs_and_a_label():
    table = Table(
        "POPE: vhr-2 against bare (greedy; %)", ("run", "x"), (("vhr -2", "-0.3 to +1.4"), ("a", "-"))
    )
    text = latex(table)
    assert r"vhr -2 & $-$0.3 to +1.4 \\" in text
    assert r"a & - \\" in text
    assert r"\label{tab:pope-vhr-2-against-bare}" in text


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
