"""The one place where pictures are opened: a file, bytes, an address or an array becomes an upright RGB picture.

Whatever Pillow raises on a damaged file is one sentence. Only formats that hold pixels are opened, since a picture of
drawing commands (EPS) would be handed to another program, and only regular files, since a pipe may never end.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import numpy as np

from lvlm_attn._version import __version__
from lvlm_attn.errors import LvlmAttnError, printable, shown
from lvlm_attn.prompts.pixel_range import to_rgb, upright_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "ICO", "PCX", "QOI", "SGI",
)  # fmt: skip
"""Formats that are opened, as Pillow calls them; HEIF where a plugin brings it. All are told by their first bytes."""
LEAST_PACKED = 1 / 100
"""Bytes per pixel; a picture above `PIL.Image.MAX_IMAGE_PIXELS` that is packed more tightly is taken for a bomb."""
MOST_BYTES = 1 << 30
"""Bytes of a file."""
_SECONDS = 20.0


def open_image(source: str | Path | bytes, name: str | None = None) -> Image:
    """Opens a picture.

    Args:
        source: a file, or what one holds.
        name: how a message names it; None for the path.

    Returns:
        Its first frame, turned as its EXIF data say, in RGB. All modes keep their range (see
        `lvlm_attn.prompts.pixel_range`); what is transparent shows white.

    Raises:
        LvlmAttnError: there is no such file, it is no picture in a format of pixels, it is damaged or cut off, or it
            is larger than Pillow allows (`PIL.Image.MAX_IMAGE_PIXELS`).

    Example:
        >>> open_image("kitchen.jpg").mode  # doctest: +SKIP
        'RGB'
    """
    name = name or ("image" if isinstance(source, bytes) else f"image {_name(source)}")
    with unpacked(source, name) as picture:
        found = upright_rgb(picture)
        return found.copy() if found is picture else found


def image_area(source: Any) -> int:
    """Pixels of a PIL image, a file, or what has a `read()`; of the last two from the first bytes, 0 if unreadable."""
    if not isinstance(source, Path) and hasattr(source, "size"):
        return int(source.width * source.height)
    try:
        with unpacked(_read(source, "image") if hasattr(source, "read") else source) as picture:
            return int(picture.width * picture.height)
    except LvlmAttnError:
        return 0


def as_image(source: Any, place: str = "image") -> Image:
    """A picture from whatever form it comes in, upright and in RGB.

    Args:
        source: a PIL image; a file, or something whose `read()` gives its bytes; an address (`http://`, `https://`,
            `file://` or `data:`); or an array or tensor of bytes, `(height, width)`, `(height, width, channels)` or
            `(channels, height, width)`.
        place: how a message names it.

    Raises:
        LvlmAttnError: it is none of these, or cannot be read.
    """
    if hasattr(source, "convert") and hasattr(source, "getbands"):
        with _saying_what_failed(place):
            return upright_rgb(source)
    if isinstance(source, str) and (data := _addressed(source)) is not None:
        return open_image(data)
    if isinstance(source, (str, os.PathLike)):
        return open_image(Path(source))
    if callable(getattr(source, "read", None)):
        name = f"the picture of {source.where}" if hasattr(source, "where") else place
        return open_image(_read(source, name), name)
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        return _of_array(source, place)
    raise LvlmAttnError(
        f"{place} is {shown(source)} of type {type(source).__name__}; give a PIL image, the path of a file, or an "
        f"array of bytes."
    )


def _read(source: Any, name: str) -> bytes:
    with _saying_what_failed(name):
        found = source.read()
        if not isinstance(found, bytes):
            raise LvlmAttnError(
                f"{name} gives {type(found).__name__} instead of bytes; open its file as bytes."
            )
        return found


def _name(path: str | Path) -> str:
    return printable(str(path)).replace("\n", "\\n")


@contextmanager
def unpacked(source: str | Path | bytes, name: str = "image") -> Iterator[Image]:
    """Opens a picture in its own mode, its pixels still packed; whatever fails until it is closed is one sentence.

    Args:
        source: as for `open_image`.
        name: how a message names it.

    Raises:
        LvlmAttnError: as `open_image`.
    """
    from PIL import Image as Pillow

    Pillow.init()
    formats = [one for one in FORMATS if one in Pillow.OPEN]
    with _saying_what_failed(name), _stream(source, name) as stream:
        with Pillow.open(stream, formats=formats) as picture:
            pixels, most = picture.width * picture.height, Pillow.MAX_IMAGE_PIXELS
            # Above twice its limit Pillow has refused already; photographs in between have 0.05 bytes a pixel or more.
            if most is not None and pixels > most and _length(stream) < LEAST_PACKED * pixels:
                raise _bomb(name)
            yield picture


def _length(stream: IO[bytes]) -> int:
    place = stream.tell()
    length = stream.seek(0, os.SEEK_END)
    stream.seek(place)
    return length


@contextmanager
def _saying_what_failed(name: str) -> Iterator[None]:
    from PIL.Image import DecompressionBombError, UnidentifiedImageError  # type: ignore[attr-defined]

    try:
        yield
    except LvlmAttnError:
        raise
    except UnidentifiedImageError as error:
        raise LvlmAttnError(f"{name} cannot be read: it is no picture in a known format.") from error
    except DecompressionBombError as error:
        raise _bomb(name) from error
    except MemoryError as error:
        raise LvlmAttnError(f"{name} does not fit into memory; scale it down.") from error
    except Exception as error:  # every decoder fails in ways of its own: AVIF's raises RuntimeError
        reason = " ".join(printable(str(error)).split()).rstrip(".") or type(error).__name__
        raise LvlmAttnError(
            f"{name} cannot be read ({reason[:200]}); it seems damaged or cut off, fetch it again."
        ) from error


def _bomb(name: str) -> LvlmAttnError:
    return LvlmAttnError(
        f"{name} unpacks to far more memory than its file takes, as pictures made to exhaust a machine do; scale it "
        f"down."
    )


@contextmanager
def _stream(source: str | Path | bytes, name: str) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield BytesIO(source)
        return
    try:
        state = os.stat(source)
        if stat.S_ISREG(state.st_mode) and state.st_size <= MOST_BYTES:
            with open(source, "rb") as file:
                yield file
                return
    except FileNotFoundError:
        raise LvlmAttnError(f"{name} does not exist; check the image folder.") from None
    if stat.S_ISDIR(state.st_mode):
        raise LvlmAttnError(f"{name} is a folder; name a file inside it.")
    if stat.S_ISREG(state.st_mode):
        raise LvlmAttnError(f"{name} is larger than {MOST_BYTES >> 30} GiB; scale it down.")
    raise LvlmAttnError(
        f"{name} is no regular file but a pipe, socket or device; save the picture to a file."
    )


def _addressed(text: str) -> bytes | None:
    """What an address holds; None where the text is the path of a file."""
    scheme = text[:8].partition(":")[0].lower()
    if scheme in ("http", "https") and "://" in text[:8]:
        return _fetched(text)
    if scheme == "file" and text[5:7] == "//":
        path = Path(unquote(urlsplit(text).path))
        with _saying_what_failed(f"image {_name(path)}"), _stream(path, f"image {_name(path)}") as file:
            return file.read()
    if scheme != "data":
        return None
    head, comma, packed = text.partition(",")
    name = f"image {_name(text[:40])}..."
    with _saying_what_failed(name):
        if not comma:
            raise LvlmAttnError(
                f"{name} is no data address; it needs a comma between its head and the picture."
            )
        return base64.b64decode(packed) if head.endswith(";base64") else unquote_to_bytes(packed)


def _fetched(address: str) -> bytes:
    from urllib.request import Request, urlopen

    name = f"image {_name(address)}"
    try:
        asked = Request(address, headers={"User-Agent": f"lvlm-attn/{__version__}"})
        with urlopen(asked, timeout=_SECONDS) as answer:
            data: bytes = answer.read(MOST_BYTES + 1)
    except Exception as error:  # urllib, http.client, ssl and socket have errors of their own
        reason = " ".join(printable(str(error)).split()).rstrip(".") or type(error).__name__
        raise LvlmAttnError(
            f"{name} could not be fetched ({reason[:200]}); fetch it yourself and give its path."
        ) from error
    if len(data) > MOST_BYTES:
        raise LvlmAttnError(f"{name} is larger than {MOST_BYTES >> 30} GiB; scale it down.")
    return data


def _of_array(values: Any, place: str) -> Image:
    from PIL import Image as Pillow

    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    shape = tuple(array.shape)
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not is_picture or 0 in shape:
        raise LvlmAttnError(
            f"{place} is an array of {array.dtype} of shape {shape}; give bytes (uint8) from 0 to 255, (height, "
            f"width), (height, width, channels) or (channels, height, width)."
        )
    return to_rgb(Pillow.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array))
