"""Recorded weights in files, for answers that are too long for memory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lvlm_attn.maps.layer_key import LayerKey


@dataclass(frozen=True)
class Stored:
    """Weights in a file.

    Attributes:
        place: where they begin, in bytes.
        shape: their shape.
    """

    place: int
    shape: tuple[int, ...]


class Spool:
    """Raw fp32 files in a folder, one per layer, while a recording runs, and one per layer once it is whole.

    Args:
        folder: where the files go; it is made.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="maps-", dir=folder))

    @property
    def is_whole(self) -> bool:
        """Whether a recording was finished here, whose maps read from it."""
        return any(self.folder.glob("*.f32"))

    def clear(self) -> None:
        """Removes what an unfinished recording left."""
        for path in self.folder.glob("*.part"):
            path.unlink()

    def put(self, layer: LayerKey, weights: Tensor) -> Stored:
        """Appends weights to the file of a layer."""
        with open(self.folder / f"{layer}.part", "ab") as file:
            place = file.tell()
            weights.float().cpu().contiguous().numpy().tofile(file)
        return Stored(place, tuple(weights.shape))

    def get(self, layer: LayerKey, stored: Stored) -> Tensor:
        """Reads weights back."""
        count = int(np.prod(stored.shape))
        read = np.fromfile(self.folder / f"{layer}.part", np.float32, count, offset=stored.place)
        return torch.from_numpy(read.reshape(stored.shape))

    def whole(self, layer: LayerKey, shape: tuple[int, ...]) -> Tensor:
        """Zeros of a shape, which lie in a file."""
        mapped = np.memmap(self.folder / f"{layer}.f32", np.float32, "w+", shape=shape)
        return torch.from_numpy(mapped)

    def drop(self, layer: LayerKey) -> None:
        """Removes what `put` wrote of a layer."""
        (self.folder / f"{layer}.part").unlink(missing_ok=True)
