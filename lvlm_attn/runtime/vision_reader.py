"""Reading what the image encoder attends to, while it runs, on the backend it runs on.

The encoder's attention is sent through a function of ours for the length of one encoding: it runs the encoder's own
backend and computes again only the rows that are asked for. So the encoder is never switched to eager attention,
and rotary positions, query norms and windows are those of the model.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families import named_arguments
from lvlm_attn.families.encoder_patches import Encoded, VisionRead, VisionRows, entries_of, repeated_groups
from lvlm_attn.runtime.attention_names import AttentionNames
from lvlm_attn.runtime.hooks import Hooks
from lvlm_attn.runtime.image_sizes import GivenSizes
from lvlm_attn.runtime.transformers_private import backend_function
from lvlm_attn.runtime.uncompiled import by_python

CHUNK = 512
"""Query rows of the encoder whose weights are held at a time."""

UNREAD = 8
"""Outputs of the encoder that are held until the next prompt is processed."""

READING: dict[int, weakref.ref[VisionReader]] = {}
"""Who reads an encoding that runs now, by identity; other threads read those of other models."""


class VisionReader:
    """Reads rows of the attention of one image encoder whenever it runs.

    Args:
        base: the module whose `get_image_features` calls the encoder.
        encoder: the image encoder.
        wanted: what to read.

    Raises:
        UnsupportedError: if the encoder's attention layers are not found.
    """

    def __init__(self, base: nn.Module, encoder: nn.Module, wanted: Sequence[VisionRows]):
        self.base, self.encoder = base, encoder
        attentions = encoder_attentions(encoder)
        self._wanted: dict[int, list[VisionRows]] = {}
        for rows in dict.fromkeys(wanted):
            module = attentions[layer_with_all_patches(encoder, rows.layer, len(attentions))]
            self._wanted.setdefault(id(module), []).append(rows)
        self._sizes = GivenSizes(base)
        self._configs = list(
            {id(item.config): item.config for item in cast("list[Any]", attentions)}.values()
        )
        self._hooks = Hooks()
        self._running: VisionRead | None = None
        self._known: list[_Known] = []
        # An encoding outlives its output where features are regrouped before a prompt takes them.
        self._unread: deque[Any] = deque(maxlen=UNREAD)

    def install(self) -> None:
        """Puts the hooks on the encoder."""
        self._sizes.install()
        self._hooks.before(self.encoder, by_python(self._enter), with_kwargs=True)
        self._hooks.after(self.encoder, by_python(self._leave), always_call=True)

    def remove(self) -> None:
        """Takes everything off, also in the middle of an encoding that was interrupted; safe to call again."""
        self._hooks.remove()
        self._stop()
        self._sizes.remove()

    def find(self, given: Mapping[str, Any]) -> tuple[Encoded, ...] | None:
        """What was read when the images of a forward were encoded.

        Args:
            given: the arguments of the base model's forward.

        Returns:
            One entry for each image, in InternVL for each tile, in flat order; None if there are no images, or if
            they were encoded out of sight.
        """
        try:
            return self._found(given)
        finally:
            self._unread.clear()

    def _found(self, given: Mapping[str, Any]) -> tuple[Encoded, ...] | None:
        if given.get("pixel_values") is not None:
            return self._known[-1].entries if self._known else None
        output = (given.get("mm_encoder_outputs") or {}).get("image")
        if output is None:
            return None
        features = list(getattr(output, "pooler_output", output))
        for known in self._known:
            if known.output() is output:
                # `generate` repeats encoded images for beams, the images of each prompt together.
                return repeated_groups(known.entries, features)
        found = [self._entry_of(feature) for feature in features]
        return None if any(entry is None for entry in found) else tuple(cast("list[Encoded]", found))

    def _entry_of(self, feature: Tensor) -> Encoded | None:
        """Whose features these are, told from the features themselves."""
        for known in reversed(self._known):
            output = known.output()
            pieces = () if output is None else output.pooler_output
            for piece, entry in zip(pieces, known.entries):
                if piece is feature or (piece.shape == feature.shape and torch.equal(piece, feature)):
                    return cast("Encoded", entry)
        return None

    def add(self, module: nn.Module, query: Tensor, key: Tensor, kwargs: Mapping[str, Any]) -> None:
        """Reads one attention call of the encoder; query and key are `(units, heads, tokens, head_dim)`."""
        read = self._running
        wanted = self._wanted.get(id(module), ())
        if read is None or not wanted:
            return
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        lengths = kwargs.get("cu_seq_lens_q")
        sizes = [query.shape[2]] if lengths is None else lengths.diff().tolist()
        pieces = zip(torch.split(query.detach(), sizes, 2), torch.split(key.detach(), sizes, 2))
        for piece_query, piece_key in pieces:
            leading = class_tokens(self.encoder, piece_key.shape[2])
            for rows in wanted:
                asked = piece_query[:, :, :1] if rows.rows == "class" and leading else piece_query
                received = received_weight(asked, piece_key, scaling)[:, leading:]
                read.weights.setdefault(rows, []).append(received)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sizes = dict(self._sizes.given)
        grids = named_arguments(module, args, kwargs).get("grid_thw")
        self._running = VisionRead(sizes if grids is None else sizes | {"grid_thw": grids})
        READING[id(self)] = weakref.ref(self)
        NAMES.take(self._configs)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        read = self._running
        self._stop()
        if read is None or output is None or not read.weights:
            return
        self._known = [known for known in self._known if known.output() is not None]
        self._unread.append(output)
        self._known.append(_Known(weakref.ref(output), entries_of(read, cast("Any", self.base).config)))

    def _stop(self) -> None:
        """Ends the reading of an encoding; its attention is given back when the last reader ends."""
        if not any(other.encoder is self.encoder for other in _reading() if other is not self):
            NAMES.give_back(self._configs)
        READING.pop(id(self), None)
        self._running = None


def _reading() -> list[VisionReader]:
    return [reader for ref in tuple(READING.values()) if (reader := ref()) is not None]


class _Known(NamedTuple):
    """An encoding: its output, as long as someone holds it, and what was read."""

    output: Callable[[], Any]
    entries: tuple[Encoded, ...]


def received_weight(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """The softmax weight each key receives, averaged over heads and queries, in fp32.

    Args:
        query: `(units, heads, queries, head_dim)`.
        key: `(units, heads, keys, head_dim)`.
        scaling: factor on the scores.

    Returns:
        `(units, keys)`; each unit sums to 1.

    Example:
        >>> received_weight(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4), 1.0).tolist()[0][0]
        0.20000000298023224
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    columns = key.to(dtype).transpose(-1, -2)
    total = columns.new_zeros(query.shape[0], key.shape[2])
    for piece in torch.split(query, CHUNK, 2):
        total += ((piece.to(dtype) * scaling) @ columns).softmax(-1).sum((1, 2))
    return total / (query.shape[1] * query.shape[2])


def encoder_attentions(encoder: nn.Module) -> list[nn.Module]:
    """The attention modules of an image encoder, first layer first.

    Raises:
        UnsupportedError: if none are found.
    """
    stacks = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    for stack in sorted(stacks, key=len, reverse=True):
        found = [_attention_of(layer) for layer in stack]
        if found and all(item is not None for item in found):
            return cast("list[nn.Module]", found)
    raise UnsupportedError(
        f"The attention layers of the image encoder {type(encoder).__name__} are not found, so what it attends to "
        f"cannot be read; use a model with a CLIP, SigLIP, InternVL or Qwen encoder."
    )


def layer_with_all_patches(encoder: nn.Module, layer: int, count: int) -> int:
    """The layer nearest to `layer` in which every patch attends to every other one; the earlier of two.

    Raises:
        UnsupportedError: if the encoder has no such layer number.
    """
    if not -count <= layer < count:
        raise UnsupportedError(
            f"The image encoder has {count} layers, so there is no layer {layer}; choose another."
        )
    index = layer % count
    full = getattr(encoder, "fullatt_block_indexes", None)
    return min(full, key=lambda item: (abs(item - index), item)) if full else index


def class_tokens(encoder: nn.Module, tokens: int) -> int:
    """How many of the encoder's tokens stand before the patches: 1 or 0."""
    config = cast("Any", encoder).config
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if size is None or patch is None:
        return 0
    height, width = (size, size) if isinstance(size, int) else size
    tall, wide = (patch, patch) if isinstance(patch, int) else patch
    return int(tokens == (height // tall) * (width // wide) + 1)


def _attention_of(layer: nn.Module) -> nn.Module | None:
    for name in ("self_attn", "attention", "attn"):
        found = getattr(layer, name, None)
        if isinstance(found, nn.Module) and hasattr(found, "config"):
            return found
    return None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any = None,
    *,
    backend: str,
    **kwargs: Any,
) -> Any:
    mask = kwargs.pop("attention_mask", mask)
    for reader in _reading():
        reader.add(module, query, key, kwargs)
    return backend_function(backend, module)(module, query, key, value, mask, **kwargs)


NAMES = AttentionNames("lvlm_attn_vision", _attend, "The image encoder's attention")
"""The names under which an encoder's configuration asks for `_attend`."""

NAMES.over_known()
