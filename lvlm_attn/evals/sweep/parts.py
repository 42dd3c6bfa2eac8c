"""A benchmark parted by pictures: what parameters are chosen on is not what they are reported on.

Where questions about several pictures count together, as pairs or sets, these are in one part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
from lvlm_attn.evals.core.benchmark import Benchmark, Sample, asks_letters
from lvlm_attn.evals.core.pictures import image_key


class PicturePart:
    """The samples of a benchmark whose pictures fall into one of two parts, by a hash of their names.

    A picture is in the same part whatever else is in the benchmark, and in whichever order it comes.

    Args:
        benchmark: the whole.
        part: ``dev`` or ``test``.
        share: the share of pictures in ``dev``, between 0 and 1.

    Raises:
        LvlmAttnError: a share outside 0 to 1, or a part without pictures.
    """

    def __init__(self, benchmark: Benchmark, part: str, share: float) -> None:
        if not 0 < share < 1:
            raise LvlmAttnError(f"the share of dev pictures is {share}; it lies between 0 and 1.")
        self.name, self.max_new_tokens = benchmark.name, benchmark.max_new_tokens
        self._whole, self._part, self._share = benchmark, part, share
        self._samples: Sequence[Sample] = [
            sample for sample in benchmark.samples() if (_place(sample) < share) == (part == "dev")
        ]
        if not self._samples:
            raise LvlmAttnError(
                f"no picture falls into the {part} part at a dev share of {share}; choose another share, or more data."
            )
        if isinstance(
            benchmark, ClosedBenchmark
        ):  # sub-tasks of which nothing is in this part are none of it
            self._whole = benchmark.of_samples({sample.sample_id for sample in self._samples})
            self._samples = self._whole.samples()
        self.asks_yes_no, self.asks_letters = self._whole.asks_yes_no, asks_letters(self._whole)

    def samples(self) -> Sequence[Sample]:
        """Those of this part, in order."""
        return self._samples

    def describe(self) -> dict[str, Any]:
        """The whole, which part of it this is, and how large."""
        pictures = len({sample.image_name for sample in self._samples})
        size = {"part_samples": len(self._samples), "part_pictures": pictures}
        return {**self._whole.describe(), "part": self._part, "dev_share": self._share, **size}

    def scoring(self) -> dict[str, Any]:
        """As for the whole."""
        return self._whole.scoring()

    def score(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As the whole is scored, failures counted among the samples of this part."""
        return {**self._whole.score(lines), "failed": sum(bool(line.get("error")) for line in lines)}


def _place(sample: Sample) -> float:
    """Where the picture of a sample falls, or the set of pictures that count together with it."""
    cluster = sample.fields.get("cluster", sample.image_name)
    return place_of(sample.image_name) if cluster == sample.image_name else _hashed(str(cluster))


def place_of(name: str) -> float:
    """Where the hash of a picture's name falls between 0 and 1.

    Example:
        >>> 0 <= place_of("COCO_val2014_000000000042.jpg") < 1
        True
    """
    return _hashed(image_key(name))


def _hashed(text: str) -> float:
    return int.from_bytes(sha256(text.encode()).digest()[:6], "big") / 2**48
