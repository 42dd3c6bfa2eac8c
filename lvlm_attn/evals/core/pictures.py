"""One key for the ways a picture is named, and the folder it is found in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from lvlm_attn.errors import LvlmAttnError

_NUMBERED = re.compile(r"(?:COCO_\w+?_)?0*(\d+)", re.IGNORECASE)
_ENDING = re.compile(r"\.(?:jpe?g|png|webp|bmp|gif|tiff?|avif|heic|ppm)$", re.IGNORECASE)
_FLOAT = re.compile(r"(\d+)\.0+")


@lru_cache(maxsize=1 << 16)
def image_key(image: str | int | float) -> str:
    """One key for the ways a picture is named: by number, file name or path, with or without ending.

    Example:
        >>> image_key(226988), image_key("COCO_val2014_000000226988.jpg"), image_key("/data/000000226988")
        ('226988', '226988', '226988')
        >>> image_key("kitchen-7.png"), image_key(42.0)
        ('kitchen-7', '42')
    """
    name = base_name(str(image))
    whole = _FLOAT.fullmatch(name)
    stem = whole.group(1) if whole else _ENDING.sub("", name)
    numbered = _NUMBERED.fullmatch(stem)
    return numbered.group(1) if numbered else stem


def base_name(path: str) -> str:
    r"""The last part of a path, Windows or not; a URL's query is no part of it.

    Example:
        >>> base_name("C:\\val2014\\a.jpg"), base_name("val2014/a.jpg")
        ('a.jpg', 'a.jpg')
    """
    return path.replace("\\", "/").split("?")[0].rstrip("/").rpartition("/")[2]


class PictureFolder:
    """Finds pictures by any of their names in one folder and the folders inside it.

    Paths in a question file are another machine's: of them the last parts count, and nothing outside the folder is
    opened.

    Args:
        folder: the folder.

    Raises:
        LvlmAttnError: it does not exist.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        if not self.path.is_dir():
            raise LvlmAttnError(
                f"image folder {folder} does not exist; pass the folder that holds the pictures."
            )
        self._by_key: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path:
        """Returns where the picture is, or where it should be if it is missing.

        Raises:
            LvlmAttnError: several pictures of that name and nothing that tells which is meant.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        expected = self.path / parts[-1] if parts else self.path / "unnamed"
        if "\0" in name:
            return expected
        for start in range(len(parts)):
            direct = self.path.joinpath(*parts[start:])
            if _is_file(direct):
                return direct
        found = self._index().get(image_key(name), [])
        if len(found) > 1:
            found = _nearest(found, parts)
        if len(found) > 1:
            raise LvlmAttnError(
                f"picture {name!r} may be {found[0].relative_to(self.path)} or {found[1].relative_to(self.path)} in "
                f"{self.path}; pass the folder that holds the right one."
            )
        return found[0] if found else expected

    def _index(self) -> dict[str, list[Path]]:
        if self._by_key is None:
            self._by_key = {}
            for place, folders, files in os.walk(self.path):
                folders.sort()
                for file in sorted(files):
                    if _ENDING.search(file):
                        self._by_key.setdefault(image_key(file), []).append(Path(place) / file)
        return self._by_key


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _nearest(found: list[Path], parts: list[str]) -> list[Path]:
    """Those that share most of the last folders with the name asked for, and its exact file name if one does."""

    def shared(path: Path) -> tuple[bool, int]:
        same = 0
        for ours, theirs in zip(reversed(path.parts[:-1]), reversed(parts[:-1])):
            if ours != theirs:
                break
            same += 1
        return path.name == parts[-1] or path.stem == parts[-1], same

    best = max(shared(path) for path in found)
    return [path for path in found if shared(path) == best]


def require_images(folder: Path, paths: Iterable[Path]) -> None:
    """Says early that the image folder is the wrong one; single missing pictures only fail their samples.

    Raises:
        LvlmAttnError: the folder does not exist, or none of the pictures is in it.
    """
    if not folder.is_dir():
        raise LvlmAttnError(f"image folder {folder} does not exist; pass the folder that holds the pictures.")
    wanted = list(paths)
    if wanted and not any(_is_file(path) for path in wanted):
        raise LvlmAttnError(
            f"none of the {len(set(wanted))} pictures is in {folder} (first: {wanted[0].name}); "
            "pass the folder that holds them."
        )
