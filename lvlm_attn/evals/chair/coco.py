"""CHAIR's ground truth from COCO's own annotation files.

As in Rohrbach et al. 2018: what is in a picture is the union of its annotated instances and of the objects its five
reference captions mention, captions being read by the same rules as generated ones. Any year and part of COCO will do
(`instances_val2014.json` and `captions_val2014.json`, train and 2017 likewise); several files are joined by image id.

The files are hundreds of megabytes, so they are streamed, and what was found is kept under the hash of their contents.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from gzip import GzipFile
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, cast

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.evals.chair.vocab import nodes_of, read_caption, surface_table
from lvlm_attn.evals.core.fields import id_key
from lvlm_attn.evals.core.json_text import json_values, one_line
from lvlm_attn.evals.core.jsonio import read_bytes, write_json
from lvlm_attn.evals.core.pictures import base_name
from lvlm_attn.evals.core.records import decode, unpack

_SMALL = 32 << 20
_FORMAT = 1
_WHAT = "COCO file"


@dataclass
class CocoObjects:
    """The objects of each picture, in the order they were met.

    Attributes:
        sha256: hash over the files' contents.
        mode: how words became categories.
        file_names: file name by image id.
        instances: categories of the annotated instances by image id.
        captions: categories the reference captions mention by image id.
        unknown: names of instances outside CHAIR's 80 categories.
    """

    sha256: str
    mode: str
    file_names: dict[str, str] = field(default_factory=dict)
    instances: dict[str, list[str]] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def pictures(self) -> list[str]:
        """Ids of all pictures, in numeric order."""
        every = {*self.file_names, *self.instances, *self.captions}
        return sorted(every, key=lambda name: (len(name), name))

    def objects(self, image: str) -> list[str]:
        """All categories of one picture, each once."""
        return list(dict.fromkeys([*self.instances.get(image, []), *self.captions.get(image, [])]))


def read_coco(
    instances: Iterable[str | Path] = (),
    captions: Iterable[str | Path] = (),
    mode: str = "strict",
    cache: bool = True,
    show_progress: bool = False,
) -> CocoObjects:
    """Reads COCO's instances and captions.

    Args:
        instances: `instances_*.json` files.
        captions: `captions_*.json` files.
        mode: how words become categories, see :mod:`lvlm_attn.evals.chair.vocab`.
        cache: keep the result, and use a kept one, under :func:`cache_folder`.
        show_progress: draw a progress bar on standard error.

    Raises:
        LvlmAttnError: no file, a file that cannot be read or is no such file, or unknown mode.

    Example:
        >>> coco = read_coco(["instances_val2014.json"], ["captions_val2014.json"])  # doctest: +SKIP
        >>> coco.objects("42")  # doctest: +SKIP
        ['dog', 'couch']
    """
    surface_table(mode)
    files = [(Path(path), "instances") for path in instances] + [
        (Path(path), "captions") for path in captions
    ]
    if not files:
        raise LvlmAttnError("no COCO file was given; name instances_*.json, captions_*.json or both.")
    hashed = [f"{kind} {_hash(path)}" for path, kind in files]
    found = CocoObjects(sha256(" ".join(hashed).encode()).hexdigest(), mode)
    kept = cache_folder() / f"coco-{_key(found.sha256, mode)}.json"
    if cache and _restore(found, kept):
        return found
    size = sum(2 * path.stat().st_size for path, _ in files)
    with _bar(size, show_progress) as tick:
        for path, kind in files:
            rows = (_read_instances if kind == "instances" else _read_captions)(path, found, tick)
            if not rows:
                raise LvlmAttnError(f"{_WHAT} {path} annotates no picture; name {kind}_*.json.")
    if cache:
        _keep(found, kept)
    return found


def truth_lines(coco: CocoObjects, ids: Iterable[str] | None = None) -> Iterator[str]:
    """Yields what :func:`lvlm_attn.evals.chair.data.load_ground_truth` reads, one JSON line per picture.

    Args:
        coco: what was found in COCO's files.
        ids: keys of the pictures wanted, in order; all by default.

    Raises:
        LvlmAttnError: a picture wanted is not in COCO's files.
    """
    every = coco.pictures()
    wanted = every if ids is None else list(ids)
    missing = sorted(set(wanted) - set(every))
    if missing:
        raise LvlmAttnError(
            f"{len(missing)} of {len(wanted)} pictures are not in the COCO files (first: {one_line(missing[0])}); "
            "name the files of their year and part as well."
        )
    for image in wanted:
        sources = {"instances": coco.instances.get(image, []), "captions": coco.captions.get(image, [])}
        line = {
            "image_id": int(image) if image.isdecimal() else image,
            "file_name": coco.file_names.get(image, image),
            "objects": coco.objects(image),
            "mode": coco.mode,
            "source": sources,
        }
        yield json.dumps(line, ensure_ascii=False)


def kind_of(path: str | Path) -> str:
    """``instances`` or ``captions``, by what the annotations of a COCO file hold.

    Raises:
        LvlmAttnError: it is neither.
    """
    for row in _rows(Path(path), "annotations", _ignore):
        if isinstance(row, dict) and "caption" in row:
            return "captions"
        if isinstance(row, dict) and "category_id" in row:
            return "instances"
        break
    raise LvlmAttnError(
        f"{_WHAT} {path} annotates neither instances nor captions; name instances_*.json or captions_*.json."
    )


def cache_folder() -> Path:
    """Where results are kept: ``$LVLM_ATTN_CACHE``, else ``lvlm_attn`` in the user's cache folder."""
    own = os.environ.get("LVLM_ATTN_CACHE")
    return (
        Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lvlm_attn"
    )


def _read_instances(path: Path, found: CocoObjects, tick: Callable[[int], None]) -> int:
    by_image: dict[str, dict[str, None]] = {}
    for row in _rows(path, "annotations", tick):
        image, category = (
            id_key(row.get(name)) if isinstance(row, dict) else None for name in ("image_id", "category_id")
        )
        if image is None or category is None:
            raise LvlmAttnError(
                f"{_WHAT} {path}: {shown(row)} is no instance; it needs image_id and category_id."
            )
        by_image.setdefault(image, {})[category] = None
    names: dict[str, str] = {}
    for name, row in _sections(path, ("categories", "images"), tick):
        if name == "images":
            _note_picture(row, found)
        elif isinstance(row, dict) and (number := id_key(row.get("id"))) is not None:
            names[number] = str(row.get("name"))
    nodes: dict[str, str | None] = {}
    for number, category in names.items():
        known, outside = nodes_of([category], found.mode)
        nodes[number] = next(iter(known), None)
        found.unknown += [item for item in outside if item not in found.unknown]
    for image, numbers in by_image.items():
        undefined = next((number for number in numbers if number not in nodes), None)
        if undefined is not None:
            raise LvlmAttnError(
                f"{_WHAT} {path} does not say what category {one_line(undefined)} is; fetch it again."
            )
        own = found.instances.setdefault(image, [])
        own += [node for number in numbers if (node := nodes[number]) is not None and node not in own]
    return len(by_image)


def _read_captions(path: Path, found: CocoObjects, tick: Callable[[int], None]) -> int:
    count = 0
    for count, row in enumerate(_rows(path, "annotations", tick), 1):  # noqa: B007 - the last count is returned
        image = id_key(row.get("image_id")) if isinstance(row, dict) else None
        if image is None or not isinstance(row.get("caption"), str):
            raise LvlmAttnError(f"{_WHAT} {path}: {shown(row)} is no caption; it needs image_id and caption.")
        own = found.captions.setdefault(image, [])
        for mention in read_caption(row["caption"], found.mode).mentions:
            if mention.node not in own:
                own.append(mention.node)
    for _, row in _sections(path, ("images",), tick):
        _note_picture(row, found)
    return count


def _note_picture(row: Any, found: CocoObjects) -> None:
    image = id_key(row.get("id")) if isinstance(row, dict) else None
    if image is not None and isinstance(row.get("file_name"), str):
        found.file_names.setdefault(image, base_name(row["file_name"]))


def _sections(path: Path, names: Sequence[str], tick: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    """Rows of several lists of one file; only the first pass over it moves the bar."""
    for at, name in enumerate(names):
        yield from ((name, row) for row in _rows(path, name, _ignore if at else tick))


def _rows(path: Path, name: str, tick: Callable[[int], None]) -> Iterator[Any]:
    """The rows of one list at a file's top, without holding the file.

    Raises:
        LvlmAttnError: the file is damaged, or large while `ijson` is missing.
    """
    if _size(path) <= _SMALL:
        yield from _rows_at_once(path, name)
        tick(_size(path))
        return
    try:
        import ijson
    except ImportError:
        raise LvlmAttnError(
            f"{_WHAT} {path} is too large to be read at once; install its reader with `pip install 'lvlm-attn[eval]'`."
        ) from None
    with _open(path) as (stream, raw):
        at = 0
        try:
            for count, row in enumerate(ijson.items(stream, f"{name}.item", use_float=True)):
                if count % 1024 == 0:
                    tick(raw.tell() - at)
                    at = raw.tell()
                yield row
        except (ijson.JSONError, UnicodeDecodeError, RecursionError, EOFError, OSError, zlib.error) as error:
            raise LvlmAttnError(
                f"{_WHAT} {path} is damaged ({one_line(str(error))}); it seems cut off, fetch it again."
            ) from error
        tick(_size(path) - at)


def _rows_at_once(path: Path, name: str) -> list[Any]:
    data = read_bytes(path, _WHAT)
    if data[:2] == b"\x1f\x8b":
        data = unpack(data, path, _WHAT)
    values = [value for _, _, value in json_values(decode(data, path, _WHAT), path, _WHAT)]
    rows = values[0].get(name, []) if len(values) == 1 and isinstance(values[0], dict) else None
    if not isinstance(rows, list):
        raise LvlmAttnError(f"{_WHAT} {path} has no list of {name}; name a file of COCO's annotations.")
    return rows


@contextmanager
def _open(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Opens a file, packed or not; the second handle tells how far it was read."""
    try:
        raw = path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    with raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        yield (cast("IO[bytes]", GzipFile(fileobj=raw)) if packed else raw), raw


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _hash(path: Path) -> str:
    from hashlib import file_digest

    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> LvlmAttnError:
    return LvlmAttnError(f"{_WHAT} {path} cannot be read ({error.strerror}); check the path.")


def _key(digest: str, mode: str) -> str:
    """The name a result is kept under: other files, mode, words or format give another."""
    words = repr(sorted((phrase, node or "") for phrase, node in surface_table(mode).items()))
    return sha256(f"{_FORMAT} {digest} {mode} {words}".encode()).hexdigest()[:32]


def _restore(found: CocoObjects, kept: Path) -> bool:
    try:
        value = json.loads(kept.read_bytes())
        found.file_names, found.instances = dict(value["file_names"]), dict(value["instances"])
        found.captions, found.unknown = dict(value["captions"]), list(value["unknown"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _keep(found: CocoObjects, kept: Path) -> None:
    """Keeps a result; a folder that cannot be written costs only time."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            kept, {name: getattr(found, name) for name in ("file_names", "instances", "captions", "unknown")}
        )
    except OSError:
        return


@contextmanager
def _bar(size: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar in bytes, or nothing."""
    if not shown:
        yield _ignore
        return
    from tqdm import tqdm

    with tqdm(total=size, unit="B", unit_scale=True, desc="reading COCO", leave=False) as bar:

        def tick(read: int) -> None:
            bar.update(read)

        yield tick


def _ignore(read: int) -> None:
    return None
