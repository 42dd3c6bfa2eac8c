"""Pictures of every mode in RGB, without clipping what they hold, and the right way up.

Pillow's own conversion cuts 16-bit grey, whole numbers and floats off at 255, so that a depth map or an X-ray turns
white, and drops transparency, so that what was hidden shows. Here black is black and white is white:

- `I;16` and whole numbers from PNG and PPM files: 0 to 65535, or to the bits a TIFF file names.
- Other whole numbers: the first range they fit among 0 to 255 and 0 to 65535, else from their least to their greatest.
- Floats: 0 to 1 or 0 to 255 likewise, else from their least to their greatest. What is not finite is black.
- Transparent pixels, by an alpha channel or a colour that stands for none, show a white ground.
- LAB by way of its colour profile. All other modes are of bytes already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lvlm_attn.errors import LvlmAttnError

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION = 0x0112
_BITS = 258
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def upright_rgb(image: Image) -> Image:
    """The picture in RGB, turned as its EXIF data say; the same object where nothing is to be done.

    Example:
        >>> from PIL import Image
        >>> turned = Image.new("L", (2, 1))
        >>> turned.getexif()[0x0112] = 6
        >>> upright_rgb(turned).size, upright_rgb(upright_rgb(turned)).size
        ((1, 2), (1, 2))
    """
    from PIL.Image import Transpose

    image.load()  # TIFF files are turned by Pillow as they are read
    try:
        said = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data say nothing; the pixels are whole
        said = None
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(said) if isinstance(said, int) else None
    found = to_rgb(image)
    return found if turn is None else _bare(found.transpose(turn))


def to_rgb(image: Image) -> Image:
    """The picture in RGB as it lies; the same object where it is so already.

    Example:
        >>> from PIL import Image
        >>> [to_rgb(Image.new("I;16", (1, 1), value)).getpixel((0, 0)) for value in (0, 257, 65535)]
        [(0, 0, 0), (1, 1, 1), (255, 255, 255)]
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey(image).convert("RGB")
    is_hidden = image.mode in _WITH_ALPHA or "transparency" in image.info
    if is_hidden or (image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA"):
        return _on_white(image)
    if image.mode == "LAB":
        return _of_lab(image)
    return image if image.mode == "RGB" else _bare(image.convert("RGB"))


def _bare(image: Image) -> Image:
    """The picture without what its file said of it, by which it would be turned again."""
    image.info = {}
    return image


def _on_white(image: Image) -> Image:
    from PIL import Image as Pillow

    image = image.convert("LA") if image.mode == "La" else image
    coloured = image.convert("RGBA")
    ground = Pillow.new("RGB", image.size, (255, 255, 255))
    ground.paste(coloured.convert("RGB"), mask=coloured.getchannel("A"))
    return ground


def _grey(image: Image) -> Image:
    from PIL import Image as Pillow

    values = np.asarray(image)
    is_finite = np.isfinite(values) if image.mode == "F" else np.ones((), dtype=bool)
    low, high = _named_range(image) or _fitting_range(values, is_finite)
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / ((high - low) or 1))
    pixels = np.rint(np.clip(np.where(is_finite, scaled, 0), 0, 255)).astype(np.uint8)
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        pixels[values == hidden] = 255
    return Pillow.fromarray(pixels)


def _named_range(image: Image) -> tuple[float, float] | None:
    """The range that mode and file say."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_BITS, (16,))
        bits = bits[0] if isinstance(bits, tuple) else bits
        return 0, 2 ** (bits if isinstance(bits, int) and 8 < bits < 16 else 16) - 1
    return (0, 65535) if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _fitting_range(values: Any, is_finite: Any) -> tuple[float, float]:
    """The smallest usual range that holds all values, else their own."""
    kept = values[is_finite] if is_finite.ndim else values
    if not kept.size:
        raise LvlmAttnError("A picture of floats holds no finite number; give one that shows something.")
    least, most = float(kept.min()), float(kept.max())
    usual = (1.0, 255.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    found = next((high for high in usual if least >= 0 and most <= high), None)
    return (least, most) if found is None else (0.0, found)


def _of_lab(image: Image) -> Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    found = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert found is not None  # None is for changes in place
    return _bare(found)
