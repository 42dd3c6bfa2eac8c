"""A benchmark parted by pictures: what parameters are chosen on is not what they are reported on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from lvlm_attn.errors import LvlmAttnError
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
        self.asks_yes_no, self.asks_letters = benchmark.asks_yes_no, asks_letters(benchmark)
        self._whole, self._part, self._share = benchmark, part, share
        self._samples = [
            sample
            for sample in benchmark.samples()
            if (place_of(sample.image_name) < share) == (part == "dev")
        ]
        if not self._samples:
            raise LvlmAttnError(
                f"no picture falls into the {part} part at a dev share of {share}; choose another share, or more data."
            )

    def samples(self) -> Sequence[Sample]:
        """Those of this part, in order."""
        return self._samples

    def describe(self) -> dict[str, Any]:
        """The whole, and which part of it this is."""
        return {**self._whole.describe(), "part": self._part, "dev_share": self._share}

    def scoring(self) -> dict[str, Any]:
        """As for the whole."""
        return self._whole.scoring()

    def score(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As the whole is scored, failures counted among the samples of this part."""
        return {**self._whole.score(lines), "failed": sum(bool(line.get("error")) for line in lines)}


def place_of(name: str) -> float:
    """Where the hash of a picture's name falls between 0 and 1.

    Example:
        >>> 0 <= place_of("COCO_val2014_000000000042.jpg") < 1
        True
    """
    return int.from_bytes(sha256(image_key(name).encode()).digest()[:6], "big") / 2**48
