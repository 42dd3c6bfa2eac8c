"""The sizes of the images that are being encoded, which the image encoder itself is not told.

`get_image_features` of a base model gets the sizes and gives the encoder pixels alone, and `generate` calls it ahead
of the forward. So it is replaced on the instance while a wrap wants to know.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn

METHOD = "get_image_features"
SIZES = ("image_sizes", "batch_num_images")


class GivenSizes:
    """What `get_image_features` of a base model was given, while it runs.

    Several may be installed on one model, and removed in any order; the last one puts back what was there.

    Args:
        base: the base model.

    Example:
        >>> sizes = GivenSizes(model.model)  # doctest: +SKIP
        >>> sizes.install()
        >>> model.model.get_image_features(pixels, image_sizes=table)  # meanwhile, in the encoder's hooks:
        >>> sizes.given["image_sizes"] is table
        True
    """

    def __init__(self, base: nn.Module):
        self._base = base
        self._keeper: _Keeper | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The sizes of the images that are being encoded now; empty where none are, or none were given."""
        return {} if self._keeper is None else self._keeper.given

    def install(self) -> None:
        """Puts a keeper before the method, or joins the one that is there."""
        found = vars(self._base).get(METHOD)
        keeper = found if isinstance(found, _Keeper) else _Keeper(self._base)
        self._keeper = keeper
        keeper.users.add(self)
        vars(self._base)[METHOD] = keeper

    def remove(self) -> None:
        """Puts the method back unless another wrap still needs the keeper; safe to call twice."""
        keeper = self._keeper
        if keeper is None:
            return
        keeper.users.discard(self)
        is_there = vars(self._base).get(METHOD) is keeper
        if is_there and not keeper.users:
            if keeper.before is None:
                del vars(self._base)[METHOD]
            else:
                vars(self._base)[METHOD] = keeper.before
        self._keeper = None


class _Keeper:
    """Called as the method, which it calls; its signature is the method's, since `generate` looks at it."""

    def __init__(self, base: nn.Module):
        self.before = vars(base).get(METHOD)
        self.users: set[GivenSizes] = set()
        self.given: dict[str, Any] = {}
        self._method = getattr(base, METHOD)
        self._names = tuple(inspect.signature(self._method).parameters)
        functools.update_wrapper(self, self._method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        named = dict(zip(self._names, args)) | kwargs
        try:
            self.given = {name: named[name] for name in SIZES if named.get(name) is not None}
            return self._method(*args, **kwargs)
        finally:
            self.given = {}
