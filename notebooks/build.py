"""Runs the notebooks anew and writes them back without what differs from run to run.

    python -m notebooks.build [01 06 ...]

A notebook is its own source: change its cells in Jupyter, then run this. Outputs stay in the file, so that they can be
looked at without running anything; times, versions, paths and widgets' states do not.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
LARGE = 48_000
"""From so many bytes on a picture is stored as JPEG."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 01; all if none is given")
    chosen = parser.parse_args().names
    for path in paths():
        if chosen and not path.name.startswith(tuple(chosen)):
            continue
        began = time.perf_counter()
        book = settled(executed(nbformat.read(path, as_version=4)), path.name)
        nbformat.write(book, path)
        print(
            f"{path.name:<28}{time.perf_counter() - began:6.1f} s{path.stat().st_size / 1e6:7.2f} MB",
            flush=True,
        )


def paths() -> list[Path]:
    """The notebooks in their order."""
    return sorted(FOLDER.glob("[0-9]*.ipynb"))


def executed(book: Any) -> Any:
    """Runs a notebook in a folder of its own, with this repository's package and one thread.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    root = str(FOLDER.parent)
    own = {
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        own |= {"IPYTHONDIR": folder, "JUPYTER_RUNTIME_DIR": folder}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            place = Path(folder, "work")
            place.mkdir()
            client = NotebookClient(
                book,
                timeout=600,
                kernel_name="python3",
                extra_arguments=["--log-level=ERROR"],
                store_widget_state=False,
                resources={"metadata": {"path": str(place)}},
            )
            client.execute()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
    return book


def settled(book: Any, name: str) -> Any:
    """A notebook that has been run, without what differs from run to run.

    Raises:
        SystemExit: if an output holds a warning, a path of this machine or an address in memory.
    """
    book.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(book.cells):
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type != "code":
            continue
        cell.outputs = joined(cell.outputs)
        for output in cell.outputs:
            if output.output_type in ("display_data", "execute_result"):
                output.metadata = nbformat.from_dict({})
                output.data = nbformat.from_dict(lasting(output.data))
        for text in written(cell):
            found = unwelcome(text)
            if found:
                raise SystemExit(f"{name}, cell {number}: an output holds {found}; change the cell.")
        if any(output.get("name") == "stderr" for output in cell.outputs):
            raise SystemExit(f"{name}, cell {number}: an output is a warning; change the cell.")
    return book


def joined(outputs: list[Any]) -> list[Any]:
    """Outputs with what was printed in pieces, as it happened to arrive, put together."""
    found: list[Any] = []
    for output in outputs:
        is_stream = output.output_type == "stream"
        if is_stream and found and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def lasting(data: dict[str, Any]) -> dict[str, Any]:
    """What an output shows without the kernel that made it, large pictures as JPEG."""
    kept = {kind: value for kind, value in data.items() if kind != WIDGET}
    if "image/jpeg" in kept:
        kept.pop("image/png", None)
    if "image/png" in kept and len(kept["image/png"]) * 3 // 4 > LARGE:
        with Image.open(io.BytesIO(base64.b64decode(kept["image/png"]))) as picture:
            buffer = io.BytesIO()
            picture.convert("RGB").save(
                buffer, "JPEG", quality=80, subsampling=0, optimize=True, progressive=True
            )
        if len(buffer.getvalue()) * 3 < len(kept["image/png"]) * 2:
            del kept["image/png"]
            kept["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode("ascii") + "\n"
    return kept


def written(cell: Any) -> Iterator[str]:
    """The texts among a cell's outputs."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/"):
                yield value


def unwelcome(text: str) -> str:
    """What in a text belongs to this machine or run, or an empty string."""
    for place in {str(FOLDER.parent), str(Path.home()), sys.prefix, tempfile.gettempdir()} - {"/"}:
        if f"{place}{os.sep}" in text:
            return "a path of this machine"
    return "an address in memory" if re.search(r"\bat 0x[0-9a-f]{6,}", text) else ""


if __name__ == "__main__":
    main()
