"""Every image mode keeps the range of its pixels, from black to white, and shows white where nothing is drawn."""

import io

import numpy as np
import pytest
from PIL import Image

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.prompts.images import as_image, open_image
from lvlm_attn.prompts.pixel_range import to_rgb

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
GREYS = np.rint(255 * RAMP).astype(int)


def through_file(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return open_image(buffer.getvalue())


def greys_of(image):
    pixels = np.asarray(image).astype(int)
    assert image.mode == "RGB"
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0]


def ramp(mode):
    if mode.startswith("I;16"):
        kind = ">u2" if mode.endswith("B") else "<u2"
        whole = np.rint(65535 * RAMP).astype(kind)
        return Image.frombytes(mode, whole.shape[::-1], whole.tobytes())
    return {
        "I": lambda: Image.fromarray(np.rint(65535 * RAMP).astype(np.int32)),
        "F": lambda: Image.fromarray(RAMP.astype(np.float32)),
        "L": lambda: Image.fromarray(GREYS.astype(np.uint8)),
    }.get(mode, lambda: ramp("L").convert(mode))()


@pytest.mark.parametrize(
    "mode",
    ["I;16", "I;16B", "I;16L", "I", "F", "L", "LA", "RGB", "RGBA", "RGBX", "YCbCr", "HSV", "CMYK", "P"],
)
def test_black_to_white_stays_black_to_white(mode):
    """Pillow's own conversion turns all of I;16, I and F above 255 white, and F from 0 to 1 black."""
    got = np.asarray(to_rgb(ramp(mode))).astype(int)
    assert np.abs(got - GREYS[:, :, None]).max() <= (1 if mode in ("YCbCr", "I", "I;16") else 0)


@pytest.mark.parametrize(
    ("mode", "form"),
    [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I;16", "JPEG2000"), ("I", "PPM"), ("F", "TIFF"),
     ("F", "PPM"), ("L", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("RGBA", "WEBP"), ("CMYK", "TIFF"),
     ("1", "TIFF"), ("1", "PNG")],
)  # fmt: skip
def test_black_to_white_stays_so_in_files(mode, form):
    lossless = {"WEBP": {"lossless": True}}.get(form, {})
    got = greys_of(through_file(ramp(mode), form, **lossless))
    if mode == "1":
        assert set(got.ravel()) == {0, 255}
        assert np.array_equal(got, 255 * np.asarray(ramp("1")))
        return
    assert np.abs(got - GREYS).max() <= 1


def test_a_dark_16_bit_picture_stays_dark():
    dark = Image.fromarray(np.full((4, 4), 200, np.uint16))
    assert greys_of(through_file(dark, "PNG")).max() == 1
    assert greys_of(through_file(Image.new("I", (4, 4), 200), "PPM")).max() == 1


def tiff_of_12_bits(values):
    """A little-endian TIFF of one strip, written by hand after the TIFF 6.0 specification."""
    rows, columns = values.shape
    bits = "".join(f"{value:012b}" for value in values.ravel())
    strip = int(bits, 2).to_bytes(len(bits) // 8, "big")
    tags = [
        (256, columns),
        (257, rows),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 122),
        (277, 1),
        (278, rows),
        (279, len(strip)),
    ]
    head = b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little")
    for tag, value in tags:
        head += tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little")
        head += value.to_bytes(4, "little")
    head += (0).to_bytes(4, "little")
    assert len(head) == 122
    return head + strip


def test_12_bits_of_an_x_ray_go_from_black_to_white():
    values = np.array([[0, 4095], [2048, 1024]])
    assert greys_of(open_image(tiff_of_12_bits(values))).tolist() == [[0, 255], [128, 64]]


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([-1000, 0, 1000], [0, 128, 255]),
        ([0, 100_000, 200_000], [0, 128, 255]),
        ([7, 7, 7], [7, 7, 7]),
        ([-5, -5, -5], [0, 0, 0]),
        ([2**31 - 1, -(2**31), 0], [255, 0, 128]),
    ],
)
def test_whole_numbers_take_the_range_they_fit(values, want):
    got = greys_of(to_rgb(Image.fromarray(np.array([values], np.int32))))
    assert got[0].tolist() == want


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([np.nan, 0.25, np.inf], [0, 64, 0]),
        ([-np.inf, 300.0, 700.0], [0, 0, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_floats_take_the_range_they_fit(values, want):
    got = greys_of(to_rgb(Image.fromarray(np.array([values], np.float32))))
    assert got[0].tolist() == want


def test_floats_of_nothing_finite_are_refused():
    with pytest.raises(LvlmAttnError, match="no finite number"):
        as_image(Image.new("F", (2, 2), float("nan")))


SEEN, HIDDEN = (10, 20, 30, 255), (200, 0, 0, 0)


def half_hidden(mode):
    pixels = np.array([[SEEN, HIDDEN]], np.uint8)
    if mode in ("LA", "La"):
        return Image.fromarray(pixels[:, :, [0, 3]]).convert(mode)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La"])
def test_what_is_transparent_shows_white(mode):
    got = np.asarray(to_rgb(half_hidden(mode)))
    assert got[0, 0].tolist() == ([10] * 3 if mode in ("LA", "La") else [10, 20, 30])
    assert got[0, 1].tolist() == [255, 255, 255]


def test_half_transparent_is_half_white():
    got = np.asarray(to_rgb(Image.new("RGBA", (1, 1), (0, 100, 200, 51))))
    assert np.abs(got[0, 0].astype(int) - [204, 224, 244]).max() <= 1


@pytest.mark.parametrize("hidden", [1, bytes([255, 0])])
def test_transparency_of_a_palette_shows_white(hidden):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 0), 1)
    got = np.asarray(through_file(image, "PNG", transparency=hidden))
    assert got[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    image.putpalette([10, 20, 30, 255, 200, 0, 0, 0], "RGBA")
    assert np.array_equal(np.asarray(to_rgb(image)), got)


@pytest.mark.parametrize(
    ("mode", "colours", "hidden"),
    [
        ("RGB", [(10, 20, 30), (200, 0, 0)], (200, 0, 0)),
        ("L", [10, 200], 200),
        ("I;16", [2570, 51400], 51400),
    ],
)
def test_a_colour_that_stands_for_none_shows_white(mode, colours, hidden):
    image = Image.new(mode, (2, 1), colours[0])
    image.putpixel((1, 0), colours[1])
    got = np.asarray(through_file(image, "PNG", transparency=hidden))
    assert got[0, 0].tolist() == ([10, 20, 30] if mode == "RGB" else [10] * 3)
    assert got[0, 1].tolist() == [255] * 3


def test_lab_goes_by_way_of_its_profile():
    """White, black and mid grey of CIE L*: 50 is 119 in sRGB."""
    lab = Image.frombytes("LAB", (3, 1), bytes([255, 0, 0, 0, 0, 0, 128, 0, 0]))
    got = np.asarray(to_rgb(lab)).astype(int)[0]
    assert np.abs(got - [[255] * 3, [0] * 3, [119] * 3]).max() <= 3


def test_cmyk_and_rgb_hold_their_colours():
    assert np.asarray(to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))))[0, 0].tolist() == [255, 0, 0]
    same = Image.new("RGB", (2, 2), (1, 2, 3))
    assert to_rgb(same) is same
