"""Data sets of the hub, fetched once into its own cache."""

from __future__ import annotations

import re
from pathlib import Path

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.json_text import one_line

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def local_copy(data: str | Path, title: str) -> Path:
    """The folder that holds a data set: the one given, or the hub's by that name, which is fetched if need be.

    Args:
        data: a folder, a table, or the name of a data set such as `BaiqiL/NaturalBench`.
        title: the benchmark, for messages.

    Raises:
        LvlmAttnError: there is no such folder, and no such data set in the cache or on the hub.
    """
    path = Path(data)
    if path.exists() or not _NAME.fullmatch(str(data)):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(data), repo_type="dataset"))
    except Exception as error:  # the hub's client fails in many ways, without a network and with one
        reason = one_line(str(error).partition("\n")[0]) or type(error).__name__
        raise LvlmAttnError(
            f"{title}: {data} is no folder here, and could not be had from the hub ({reason}); pass the folder with "
            "your copy of it."
        ) from None
