"""Reports of runs in every format, and the HTML page."""

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.marking import marked
from lvlm_attn.evals.page import page
from lvlm_attn.evals.reporting import report
from tests.evals.runs import chair_lines, pope_lines, settings, write_run

EVIL = "<script>alert('x')</script> & \"q\""


@pytest.fixture
def folders(tmp_path):
    first = pope_lines([True] * 60, 10)
    second = pope_lines([i % 7 != 0 for i in range(60)], 10)
    third = [
        {**line, "raw_text": f"No {EVIL}" if i % 9 == 0 else line["raw_text"]} for i, line in enumerate(first)
    ]
    return [
        write_run(tmp_path / name, lines, settings(interventions=[name]))
        for name, lines in (("baseline", first), ("vhr", second), ("e_vil", third))
    ]  # fmt: skip


@pytest.fixture
def captions(tmp_path):
    made = settings("chair")
    first = chair_lines(["A dog runs.", "A dog with a cat."] * 5)
    second = chair_lines(["A dog and two Cats, a hot\ndog.", "A dog with a cat."] * 5)
    return [write_run(tmp_path / f"c{i}", x, made, {"mode": "strict"}) for i, x in enumerate((first, second))]


def test_markdown_holds_scores_differences_and_words(folders):
    text = report(folders).text("md")
    assert text.count("| metric |") == 2
    assert "at most 16 tokens" in text
    assert "- vhr: accuracy changes by -15.0 points" in text
    assert "| vhr | vhr |" in text


def test_csv_has_a_row_per_run_and_metric(folders):
    rows = list(csv.DictReader(io.StringIO(report(folders).text("csv"))))
    assert {row["run"] for row in rows} == {"baseline", "vhr", "e_vil"}
    (accuracy,) = [row for row in rows if (row["run"], row["metric"]) == ("vhr", "accuracy")]
    assert float(accuracy["value"]) == pytest.approx(51 / 60)
    assert float(accuracy["difference"]) == pytest.approx(-9 / 60)
    assert (accuracy["n"], accuracy["pictures"], accuracy["max_new_tokens"]) == ("60", "10", "16")


def test_latex_escapes_names(folders):
    text = report(folders).text("latex")
    assert text.startswith("% The preamble needs \\usepackage{booktabs}.\n")
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(set(labels)) == len(labels) == text.count(r"\begin{table}")
    assert r"e\_vil" in text
    assert "e_vil" not in re.sub(r"(?m)^%.*$", "", text)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 5


def test_benchmarks_have_sections_of_their_own(folders, captions):
    made = report([folders[0], captions[0], captions[1]])
    assert [section.tally.title for section in made.sections] == ["POPE", "CHAIR"]
    assert made.sections[0].comparison is None
    with pytest.raises(LvlmAttnError, match="at least one run"):
        report([])


VOID = {"meta", "img", "input", "br", "line", "link"}


class Strict(HTMLParser):
    """Checks that tags are closed in order, and gathers what there is."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def read_page(folders, pictures=lambda run, line: None):
    written = page(report(folders), pictures)
    parser = Strict()
    parser.feed(written)
    assert parser.open == []
    return written, parser


def test_the_page_is_self_contained_and_escaped(folders):
    written, parser = read_page(folders, lambda run, line: Image.new("RGB", (600, 400), "red"))
    assert written.count("<script>") == 1
    assert "alert('x')" in parser.text
    sources = [attributes["src"] for tag, attributes in parser.tags if "src" in attributes]
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not [tag for tag, attributes in parser.tags if "href" in attributes or tag in ("link", "iframe")]
    assert "http" not in written.replace("http-equiv", "")
    cards = [attributes for tag, attributes in parser.tags if tag == "article"]
    assert {card["data-run"] for card in cards} == {"vhr", "e_vil"}
    assert {card["data-change"] for card in cards} == {"worse"}
    assert len(cards) == 9 + 4


def test_pictures_that_cannot_be_found_are_said(folders):
    assert "picture not found" in read_page(folders)[0]


def test_hallucinated_words_are_marked(captions):
    written, _ = read_page(captions)
    assert "<mark>Cats</mark>" in written
    assert "<mark>hot\ndog</mark>" in written
    assert "A <b>dog</b> and" in written


@pytest.mark.parametrize(
    "text",
    ["", "Nothing.", "A hot-dog; TWO dogs' bowls.", "cats cats <cat> a bow tie & a tie", "ünïcode dog"],
)
def test_marked_pieces_are_the_caption(text):
    assert "".join(piece for piece, _ in marked(text, ["dog"])) == text
