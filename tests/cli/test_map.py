"""`lvlm-attn map` as a new user meets it: one command, one picture or page; bad input is one sentence."""

import numpy as np
import pytest
from PIL import Image

import lvlm_attn as la
from lvlm_attn import toy
from tests.cli.test_cli import call, refused

QUESTION = "Describe this image."


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "scene.png"
    toy.scenes("test")[0].image.save(path)
    return path


def mapped(capsys, scene, out, *arguments):
    base = ("map", "--model", "toy", "--image", scene, "--prompt", QUESTION, "-o", out)
    code, printed, told = call(capsys, *base, *arguments)
    assert code == 0, told
    assert f"Written to {out}" in told.replace("\n", "")
    return printed


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_pictures(capsys, scene, tmp_path, ending):
    pytest.importorskip("matplotlib")
    printed = mapped(capsys, scene, tmp_path / f"a.{ending}", "--max-new-tokens", "16")
    assert printed.startswith("bare: The picture features")
    twice = ("--answer", "The bus is beside a bus.", "--word", "bus", "--mention", "2")
    mapped(capsys, scene, tmp_path / f"b.{ending}", *twice, "--view", "relative")
    mapped(
        capsys,
        scene,
        tmp_path / f"c.{ending}",
        "--word",
        "car",
        "--layers",
        "2..4",
        "--head",
        "1",
        "--smooth",
    )
    for name in "abc":
        assert (tmp_path / f"{name}.{ending}").stat().st_size > 5000


@pytest.mark.parametrize("view", ["no_sinks", "contrast", "rollout"])
def test_views(capsys, scene, tmp_path, view):
    pytest.importorskip("matplotlib")
    mapped(capsys, scene, tmp_path / "a.png", "--word", "car", "--view", view, "--max-new-tokens", "16")
    assert Image.open(tmp_path / "a.png").width > 300


def test_interventions_are_shown_beside_the_bare_model(capsys, scene, tmp_path):
    pytest.importorskip("matplotlib")
    printed = mapped(capsys, scene, tmp_path / "a.png", "--word", "bicycle", "--intervene", "vhr")
    assert [line.split(":")[0] for line in printed.splitlines()] == ["bare", "vhr"]
    mapped(capsys, scene, tmp_path / "a.html", "--intervene", "vhr", "--answer", "The image contains a bus.")
    text = (tmp_path / "a.html").read_text("utf-8")
    assert '"name":"bare"' in text
    assert '"name":"vhr","full":"vhr:' in text
    assert '"views":["raw","no_sinks","relative","contrast"]' in text


def test_numbers_can_be_kept(capsys, scene, tmp_path):
    mapped(capsys, scene, tmp_path / "a.maps", "--max-new-tokens", "16")
    assert la.AttentionMaps.load(tmp_path / "a.maps")["car"].pixels().shape == (144, 144)


def test_a_turned_photo_is_mapped_upright(capsys, tmp_path):
    """EXIF orientation: the map lies on the picture as people see it."""
    upright = toy.scenes("test")[0].image.crop((0, 0, 144, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    mapped(capsys, tmp_path / "turned.png", tmp_path / "a.maps", "--max-new-tokens", "4")
    read = la.AttentionMaps.load(tmp_path / "a.maps")
    assert read.images[0][0].size == (144, 100)
    assert np.array_equal(np.asarray(read.images[0][0].picture), np.asarray(upright.convert("RGB")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "a.jpg"), "is no kind of map"),
        (("-o", "no/such/folder/a.png"), "does not exist; make it first"),
        (("-o", "a.html", "--view", "relativ"), "Did you mean 'relative'?"),
        (("-o", "a.html", "--layers", "17"), "error: --layers: layer 17 is out of range"),
        (("-o", "a.html", "--layers", "x"), "cannot be read at 'x'"),
        (("-o", "a.html", "--head", "9"), "--head: head 9 is out of range"),
        (("-o", "a.png", "--word", "zebra"), "No recorded token holds the word 'zebra'"),
        (("-o", "a.html", "--word", "zebra"), "No recorded token holds the word 'zebra'"),
        (("-o", "a.png", "--word", " "), "--word is empty"),
        (("-o", "a.png", "--number", "2"), "--number 2 chooses among pictures, of which there are 1"),
        (("-o", "a.png", "--image", "none.png"), "image none.png does not exist"),
    ],
)
def test_bad_input_is_one_sentence(capsys, scene, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    base = ["map", "--model", "toy", "--prompt", QUESTION, "--max-new-tokens", "8"]
    if "--image" not in arguments:
        base += ["--image", str(scene)]
    code, _, told = call(capsys, *base, *arguments)
    assert code == 2
    last = [line for line in told.strip().splitlines() if not line.startswith("Model toy")]
    assert len(last) == 1
    assert message in last[0]
    assert list(tmp_path.iterdir()) == []


def test_an_empty_prompt(capsys, scene):
    arguments = ("map", "--model", "toy", "--image", scene, "--prompt", " ", "-o", "a.png")
    assert "--prompt is empty" in refused(capsys, *arguments)


def test_a_word_near_to_the_toys_name(capsys, scene, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = ("map", "--model", "toi", "--image", scene, "--prompt", QUESTION, "-o", "a.maps")
    assert refused(capsys, *arguments).rstrip().endswith("Did you mean 'toy'?")


def test_no_help_breaks_a_sentence():
    """A line break within a paragraph of help would stay one on every terminal."""
    from typer.main import get_command

    from lvlm_attn.cli.main import app

    def texts(command):
        yield command.help or ""
        for one in getattr(command, "commands", {}).values():
            yield from texts(one)

    paragraphs = [part for text in texts(get_command(app)) for part in text.split("\n\n")]
    assert len(paragraphs) > 40
    assert [part for part in paragraphs if "\n" in part.strip()] == []
