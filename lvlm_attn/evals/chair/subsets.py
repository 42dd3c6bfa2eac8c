"""Lists of pictures to describe, frozen: the same names and seed give the same lists on every machine.

Published CHAIR scores are of 500 pictures drawn in the order of a folder's files, which differs from machine to
machine; lists were lost, and other lists give scores several points apart. Here a picture's place is decided by a hash
of the seed and its own name.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.pictures import image_key

COUNT, SUBSETS = 500, 5


def disjoint_subsets(
    names: Iterable[str], count: int = COUNT, subsets: int = SUBSETS, seed: int = 0
) -> list[list[str]]:
    """Draws lists of pictures that share none.

    Args:
        names: names or ids of all pictures, in any order and spelling.
        count: pictures in each list.
        subsets: how many lists.
        seed: another seed gives other lists.

    Returns:
        The keys of the pictures (:func:`lvlm_attn.evals.core.pictures.image_key`), list by list, sorted within each.

    Raises:
        LvlmAttnError: a number below 1, or fewer pictures than the lists take.

    Example:
        >>> disjoint_subsets(["3.jpg", "1.jpg", "2.jpg"], count=1, subsets=2)
        [['1'], ['3']]
    """
    if count < 1 or subsets < 1:
        raise LvlmAttnError(
            f"{subsets} lists of {count} pictures are asked for; both numbers must be at least 1."
        )
    keys = {image_key(name) for name in names}
    if len(keys) < count * subsets:
        raise LvlmAttnError(
            f"{subsets} lists of {count} take {count * subsets} pictures, and there are {len(keys)}; ask for fewer."
        )
    drawn = sorted(keys, key=lambda key: sha256(f"{seed}/{key}".encode()).digest())
    lists = [drawn[i * count : (i + 1) * count] for i in range(subsets)]
    return [sorted(listed, key=_by_number) for listed in lists]


def _by_number(key: str) -> tuple[int, str]:
    return (int(key), "") if key.isdecimal() else (10**12, key)
