"""Pictures from files of every format: read upright, or refused in one sentence, in time and without taking memory."""

import base64
import io
import os
import re
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

import lvlm_attn
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.stored import StoredPicture
from lvlm_attn.prompts.images import FORMATS, as_image, image_area, open_image
from tests.fuzzing import sized

FRESH = [name for name in FORMATS if name != "HEIF" and (name != "AVIF" or features.check("avif"))]
NOISE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
EXACT = ("PNG", "BMP", "TIFF", "PPM", "PCX", "QOI", "SGI")


def packed(form, image=None, **options):
    buffer = io.BytesIO()
    (image or Image.fromarray(NOISE)).save(buffer, form, **options)
    return buffer.getvalue()


def read_or_said(data):
    """What reading gives, or the one sentence that refuses it; either within a second."""
    began = time.process_time()
    try:
        found = open_image(data)
    except LvlmAttnError as error:
        found = str(error)
    assert time.process_time() - began < 1
    assert "\n" not in found if isinstance(found, str) else found.mode == "RGB"
    return found


def refused(read):
    with pytest.raises(LvlmAttnError) as caught:
        read()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 500
    return said


@pytest.mark.parametrize("form", FRESH)
def test_a_whole_file_is_read(tmp_path, form):
    path = tmp_path / "a.png"  # what a file is called says nothing
    path.write_bytes(packed(form))
    found = open_image(path)
    assert found.mode == "RGB"
    assert image_area(path) == found.width * found.height
    if form in EXACT:
        assert np.array_equal(np.asarray(found), NOISE)
    assert np.array_equal(np.asarray(open_image(path.read_bytes())), np.asarray(found))


@pytest.mark.parametrize("form", FRESH)
def test_a_broken_file_is_one_sentence_whatever_pillow_raises(form):
    whole = packed(form)
    for length in (0, 1, 4, 12, len(whole) // 4, len(whole) // 2, len(whole) - 9):
        read_or_said(whole[:length])
        read_or_said(whole[:length] + bytes(len(whole) - length))
    assert "cannot be read" in read_or_said(whole[: len(whole) // 2])


@pytest.mark.skipif("AVIF" not in FRESH, reason="this Pillow reads no AVIF")
def test_a_damaged_avif_is_one_sentence():
    """Its decoder raises RuntimeError, which is no OSError."""
    whole = packed("AVIF")
    payload = whole.index(b"mdat") + 4
    damaged = whole[:payload] + bytes(len(whole) - payload)
    with pytest.raises(RuntimeError), Image.open(io.BytesIO(damaged)) as picture:
        picture.load()
    assert "seems damaged" in read_or_said(damaged)


@sized(150)
@given(form=st.sampled_from(FRESH), changes=st.dictionaries(st.floats(0, 1), st.integers(0, 255), max_size=6))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_changed_bytes_are_a_picture_or_one_sentence(form, changes):
    data = bytearray(packed(form))
    for place, value in changes.items():
        data[int(place * (len(data) - 1))] = value
    read_or_said(bytes(data))


@pytest.mark.parametrize(
    "error", [RuntimeError("x\ny"), OverflowError(), KeyError("z"), RecursionError("deep")]
)
def test_any_error_of_a_decoder_is_one_sentence(monkeypatch, error):
    def fails(self):
        raise error

    data = packed("PNG")
    monkeypatch.setattr(Image.Image, "load", fails)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fails)
    assert "seems damaged" in refused(lambda: open_image(data))
    monkeypatch.setattr(
        "PIL.PngImagePlugin.PngImageFile.load", lambda self: (_ for _ in ()).throw(MemoryError())
    )
    assert "memory" in refused(lambda: open_image(data))


def test_drawing_commands_named_a_png_do_not_go_to_ghostscript(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    ran = tmp_path / "ran"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {ran}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(program))
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    assert "known format" in refused(lambda: open_image(path))
    assert image_area(path) == 0
    assert not ran.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a matter of Unix")
@pytest.mark.parametrize("read", [open_image, image_area])
def test_a_named_pipe_does_not_hang(tmp_path, read):
    path = tmp_path / "a.png"
    os.mkfifo(path)
    said = []

    def ask():
        try:
            said.append(read(path))
        except LvlmAttnError as error:
            said.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(10)
    assert said
    assert said[0] == 0 or "pipe" in said[0]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width, height):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(3 * width + 1)) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def webp_bomb():
    """A film of two frames of 8 x 8 pixels on a ground of 16383 x 16383."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = bytearray(packed("WEBP", frames[0], save_all=True, append_images=frames[1:], lossless=True))
    place = data.index(b"VP8X") + 12
    data[place : place + 6] = (16382).to_bytes(3, "little") * 2
    return bytes(data)


MEASURE = """
import resource, sys
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.prompts.images import open_image
from PIL import Image
Image.init()
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)
before = most()
try:
    open_image(sys.argv[1])
except LvlmAttnError as error:
    print(most() - before, error)
"""


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_decompression_bomb_is_refused_before_it_takes_memory(tmp_path, kind):
    path = tmp_path / "a.png"
    path.write_bytes(png_bomb(12_000, 12_000) if kind == "png" else webp_bomb())
    assert path.stat().st_size < 2 << 20
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    megabytes, _, said = ran.stdout.partition(" ")
    assert "unpacks to far more memory" in said
    assert float(megabytes) < 100


def test_a_large_photograph_is_no_bomb(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # of 384, and noise does not pack
    with pytest.warns(Image.DecompressionBombWarning):
        assert open_image(packed("PNG")).size == (24, 16)


CORNERS = np.zeros((4, 6, 3), np.uint8)
CORNERS[:2, :3] = (255, 0, 0)  # the corner that is top left once the picture stands upright
CORNERS[2:, 3:] = (0, 0, 255)
# Where row 0 and column 0 of the stored picture are once it stands upright (EXIF 2.32, section 4.6.4).
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def laid_down(upright, value):
    """The stored pixels of a picture with this orientation."""
    sides = SIDES[value]
    turned = upright[::-1] if "bottom" in sides else upright
    turned = turned[:, ::-1] if "right" in sides else turned
    return np.ascontiguousarray(turned if sides[0] in ("top", "bottom") else turned.swapaxes(0, 1))


@pytest.mark.parametrize("value", SIDES)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", *(["AVIF"] if "AVIF" in FRESH else [])])
def test_exif_orientation_is_applied_once(form, value):
    exif = Image.Exif()
    exif[0x0112] = value
    want = np.repeat(np.repeat(CORNERS, 16, 0), 16, 1)
    sharp = {"JPEG": {"subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"subsampling": "4:4:4"}}
    data = packed(form, Image.fromarray(laid_down(want, value)), exif=exif, **sharp.get(form, {}))
    found = open_image(data)
    for again in (found, as_image(found), as_image(Image.open(io.BytesIO(data)))):
        assert again.size == (96, 64)
        assert np.abs(np.asarray(again).astype(int) - want).max() < 30


def test_damaged_exif_data_do_not_spoil_the_pixels():
    data = packed("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert open_image(data).size == (24, 16)


def test_what_is_no_file_of_a_picture_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    assert "does not exist" in refused(lambda: open_image(tmp_path / "none.png"))
    assert "is a folder" in refused(lambda: open_image(tmp_path))
    assert "known format" in refused(lambda: open_image(tmp_path / "a.txt"))
    assert "cannot be read" in refused(lambda: open_image("a\0b"))
    assert "\\n" in refused(lambda: open_image(tmp_path / "a\nb.png"))


def test_pictures_come_in_many_forms(tmp_path):
    path = tmp_path / "a b.png"
    path.write_bytes(packed("PNG"))
    address = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    forms = [
        path,
        str(path),
        path.as_uri(),
        address,
        NOISE,
        torch.tensor(NOISE),
        np.moveaxis(NOISE, 2, 0),
        torch.tensor(NOISE).permute(2, 0, 1),
        Image.open(path),
        io.BytesIO(path.read_bytes()),
    ]
    for form in forms:
        assert np.array_equal(np.asarray(as_image(form)), NOISE)
    same = Image.fromarray(NOISE)
    assert as_image(same) is same


def test_pictures_in_tables_are_opened_like_files():
    def stored(text):
        return StoredPicture("questions q.tsv, row 3", lambda: base64.b64decode(text))

    whole = base64.b64encode(packed("PNG"))
    assert np.array_equal(np.asarray(as_image(stored(whole))), NOISE)
    assert (image_area(stored(whole)), image_area(Image.fromarray(NOISE))) == (
        NOISE.size // 3,
        NOISE.size // 3,
    )
    for text in (whole[:40], b"A", b""):
        said = refused(lambda text=text: as_image(stored(text)))
        assert said.startswith("the picture of questions q.tsv, row 3 cannot be read")
        assert image_area(stored(text)) == 0


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (5, "5 of type int"),
        (None, "of type NoneType"),
        ({"path": "a"}, "of type dict"),
        (NOISE / 255, "float64"),
        (NOISE[None], r"\(1, 16, 24, 3\)"),
        (np.zeros((0, 4), np.uint8), r"\(0, 4\)"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,AAAA", "known format"),
        ("data:image/png;base64,A", "cannot be read"),
        ("file:///none/a.png", "does not exist"),
        ("http://127.0.0.1:9/a.png", "could not be fetched"),
        ("none.png", "does not exist"),
    ],
    ids=str,
)
def test_what_is_no_picture_is_refused(source, words):
    with pytest.raises(LvlmAttnError, match=words) as caught:
        as_image(source, "image 0 of prompt 1")
    assert "\n" not in str(caught.value)


def test_pictures_are_opened_in_one_place():
    package = Path(lvlm_attn.__file__).parent
    found = [
        path.name for path in package.rglob("*.py") if re.search(r"(Image|Pillow)\.open\(", path.read_text())
    ]
    assert found == ["images.py"]
