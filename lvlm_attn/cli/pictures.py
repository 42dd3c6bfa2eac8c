"""Where a report finds the pictures of a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.finished import Run

if TYPE_CHECKING:
    from PIL.Image import Image

_SCENE = re.compile(r"toy-([a-z]+)-(\d+)")


def picture_source(folder: Path | None) -> Callable[[Run, Mapping[str, Any]], Image | None]:
    """Gives the picture of a line: a scene of the toy, or a file.

    Args:
        folder: where the pictures are; None for the folder the run read them from.

    Raises:
        LvlmAttnError: the folder does not exist.
    """
    if folder is not None and not folder.is_dir():
        raise LvlmAttnError(f"image folder {folder} does not exist; pass the folder that holds the pictures.")

    def picture(run: Run, line: Mapping[str, Any]) -> Image | None:
        name = str(line.get("image", ""))
        scene = _SCENE.fullmatch(name)
        place = folder or run.environment.get("pictures")
        from lvlm_attn.prompts.images import open_image

        try:
            if scene is not None and (run.settings.get("benchmark") or {}).get("data") == "toy":
                from lvlm_attn.toy import scenes

                return scenes(scene.group(1), 1, int(scene.group(2)))[0].image
            if not place or not isinstance(place, str | Path):
                return None
            return open_image(Path(place) / name)
        except LvlmAttnError:
            return None

    return picture
