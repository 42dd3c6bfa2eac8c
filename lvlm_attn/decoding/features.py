"""Encoding every image once: rows and views that show the same picture share its features.

transformers takes features in place of pixels (`mm_encoder_outputs`) since 5.23; where it does not, pixels are
joined and encoded for every row.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.family import features_of
from lvlm_attn.prompts.pixels import Picture, join_pictures
from lvlm_attn.runtime.attributes import Attributes
from lvlm_attn.runtime.transformers_private import takes_encoded_images

if TYPE_CHECKING:
    from lvlm_attn.families.target import Target
    from lvlm_attn.prompts.request import Request

FEW = 16
"""Values of a picture by which most pictures are told apart."""


def can_share(target: Target) -> bool:
    """Whether the model takes encoded images in place of pixels."""
    return takes_encoded_images(target.model) and hasattr(target.parts.base, "get_image_features")


def encode(target: Target, inputs: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
    """What the model's own image encoder makes of `pixel_values`, as `generate` would have it.

    Args:
        target: the model.
        inputs: `pixel_values` and the sizes beside it.
        options: further arguments of `get_image_features`, where it takes them (`vision_feature_layer`, ...).
    """
    function = cast("Any", target.parts.base).get_image_features
    names = inspect.signature(function).parameters
    given = {**(options or {}), **inputs}
    with torch.no_grad():
        return function(**{key: given[key] for key in names if key in given}, return_dict=True)


@contextmanager
def encoding_once(request: Request) -> Iterator[None]:
    """Inside the block the model encodes a picture once for all images of a request that show it.

    Stays off where the request does not ask for it, and in training, where dropout differs between rows.

    Args:
        request: what `generate` is called with inside the block, its pixels as they are.
    """
    target, attributes = request.target, Attributes()
    base = cast("Any", target.parts.base)
    pixels = request.inputs.get("pixel_values")
    if not request.encodes_once or pixels is None or target.model.training or not can_share(target):
        yield
        return
    method = base.get_image_features
    names = tuple(inspect.signature(method).parameters)

    @functools.wraps(method)
    def encoded(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args)) | kwargs
        is_ours = given.get("pixel_values") is pixels and given.pop("return_dict", None) is True
        flat = _all_pictures(request) if is_ours else []
        if not _repeats(flat):
            return method(*args, **kwargs)
        bank = FeatureBank(target, given)
        bank.add(request.pictures, request.inputs)
        return bank.outputs(flat)

    try:
        attributes.put(base, "get_image_features", encoded)
        yield
    finally:
        attributes.restore()


def _all_pictures(request: Request) -> list[Picture]:
    """The pictures of all rows; none where the family cannot tell them apart, which is then no reason to fail."""
    try:
        return [picture for row in request.pictures for picture in row]
    except LvlmAttnError:
        return []


def _repeats(pictures: Sequence[Picture]) -> bool:
    """Whether a picture comes more than once; all are told apart by a few values, before any is compared whole."""
    if len(pictures) < 2:
        return False
    flat = [picture.pixels.flatten() for picture in pictures]
    few = torch.stack([values[:: max(1, len(values) // FEW)][:FEW] for values in flat])
    seen: dict[tuple[float, ...], list[Picture]] = {}
    for picture, key in zip(pictures, few.tolist()):
        alike = seen.setdefault(tuple(key), [])
        if any(picture.same_as(other) for other in alike):
            return True
        alike.append(picture)
    return False


class FeatureBank:
    """The features of the pictures seen so far; lives as long as one `lvlm.generate`.

    Args:
        target: the model.
        options: see `encode`.
    """

    def __init__(self, target: Target, options: Mapping[str, Any] | None = None) -> None:
        self._target, self._options = target, dict(options or {})
        self._known: list[tuple[Picture, Any, int]] = []
        self._outputs: list[_Encoded] = []

    def add(self, rows: Sequence[Sequence[Picture]], inputs: Mapping[str, Tensor]) -> None:
        """Encodes the pictures of a request that are not known yet.

        Args:
            rows: the pictures of each row.
            inputs: the request's own inputs, used as they are where all its pictures are new and distinct.
        """
        new: list[Picture] = []
        given: Mapping[str, Tensor]
        flat = [picture for row in rows for picture in row]
        for picture in flat:
            if self._find(picture) is None and not any(picture.same_as(other) for other in new):
                new.append(picture)
        if not new:
            return
        if new[0].is_nested:
            given = join_pictures([[picture] for picture in new])  # one entry per row, so a row for each
        elif len(new) == len(flat):
            given = inputs
        else:
            new, given = _regrouped(new, counts="batch_num_images" in inputs)
        encoded = _Encoded(encode(self._target, given, self._options), new)
        self._outputs.append(encoded)
        self._known += [(picture, encoded, place) for place, picture in enumerate(new)]

    def outputs(self, pictures: Sequence[Picture]) -> Any:
        """Features of the pictures in order, in the form in which the model's forward takes them."""
        found = [cast("tuple[_Encoded, int]", self._find(picture)) for picture in pictures]
        first = self._outputs[0].output
        fields: dict[str, Any] = {}
        pooled = [piece for encoded, place in found for piece in encoded.pooled(place)]
        is_tensor = isinstance(features_of(first), Tensor)
        name = "last_hidden_state" if getattr(first, "pooler_output", None) is None else "pooler_output"
        fields[name] = torch.stack(pooled) if is_tensor else pooled
        deep = getattr(first, "deepstack_features", None)
        if deep is not None:
            fields["deepstack_features"] = [_level(found, level) for level in range(len(deep))]
        # Ovis2 reads the embeddings of its indicators, the same for all images, off the encoder's output.
        if getattr(first, "visual_indicator_features", None) is not None:
            fields["visual_indicator_features"] = first.visual_indicator_features
        return type(first)(**fields)

    def _find(self, picture: Picture) -> tuple[_Encoded, int] | None:
        for known, encoded, place in self._known:
            if picture.same_as(known):
                return encoded, place
        return None


class _Encoded:
    """One call of the encoder, and how its features are shared out among the pictures."""

    def __init__(self, output: Any, pictures: Sequence[Picture]) -> None:
        self.output = output
        self._features = features_of(output)
        entries = len(self._features)
        # InternVL and others have an entry per tile, the rest one per picture.
        per_picture = [1 if entries == len(pictures) else len(picture.pixels) for picture in pictures]
        self._starts = [sum(per_picture[:place]) for place in range(len(pictures) + 1)]

    def pooled(self, place: int) -> list[Tensor]:
        return list(self._features[self._starts[place] : self._starts[place + 1]])


def _level(found: Sequence[tuple[_Encoded, int]], level: int) -> Any:
    """Features of the pictures for one layer; Granite 4 Vision says beside them which layer it is."""
    levels = [(encoded.output.deepstack_features[level], place) for encoded, place in found]
    if isinstance(levels[0][0], tuple) and isinstance(levels[0][0][0], int):
        return levels[0][0][0], [features[place] for (_, features), place in levels]
    return [features[place] for features, place in levels]


def _regrouped(pictures: Sequence[Picture], *, counts: bool) -> tuple[list[Picture], dict[str, Tensor]]:
    """Pictures that are alone in their prompt first, then all others as if they shared one prompt."""
    alone = [picture for picture in pictures if picture.is_alone]
    together = [picture for picture in pictures if not picture.is_alone]
    if len(together) == 1:
        together *= 2  # a single one would count as alone
    rows = [[picture] for picture in alone] + ([together] if together else [])
    return [*alone, *together], join_pictures(rows, counts=counts)
