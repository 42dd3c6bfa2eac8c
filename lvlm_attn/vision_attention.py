"""Reading what the image encoder attends to, while it runs, on the backend it runs on.

The encoder's attention is sent through a function of ours for the length of one encoding: it runs the encoder's own
backend and computes again only the rows that are asked for. So the encoder is never switched to eager attention,
and rotary positions, query norms and windows are those of the model.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.models import named_arguments
from lvlm_attn.registry import backend_function

PREFIX = "lvlm_attn_vision|"
CHUNK = 512
"""Query rows of the encoder whose weights are held at a time."""

READING: ContextVar[tuple[VisionReader, ...]] = ContextVar("lvlm_attn_vision", default=())
"""Who reads the encoding that runs now."""


class VisionRows(NamedTuple):
    """Which weights of the image encoder are read.

    Attributes:
        layer: index of a layer, counted from the end if negative.
        rows: `"class"`, the row of the class token, or the mean over all rows in encoders without one; `"all"`,
            the mean over all rows.
    """

    layer: int
    rows: Literal["class", "all"]


@dataclass
class VisionRead:
    """The weights that the patches of one encoding received, averaged over heads.

    Attributes:
        grid_thw: `(images, 3)` frames, rows and columns of patches of each image, in encoders that take them.
        image_sizes: height and width in pixels of each image, in families that cut images into tiles.
        weights: for each `VisionRows`, pieces `(units, patches)` in the order of the encoder, fp32. A unit is an
            image or a tile; encoders of images of any size give one piece per image.
    """

    grid_thw: Tensor | None = None
    image_sizes: Tensor | None = None
    weights: dict[VisionRows, list[Tensor]] = field(default_factory=dict)


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
        self._modules = attentions
        self._running: VisionRead | None = None
        self._before: list[tuple[Any, str]] = []
        self._known: list[tuple[weakref.ref[Tensor], VisionRead]] = []
        self._latest: VisionRead | None = None

    def install(self) -> list[RemovableHandle]:
        """Puts the hooks on the encoder."""
        return [
            self.encoder.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.encoder.register_forward_hook(self._leave, always_call=True),
        ]

    def find(self, given: Mapping[str, Any]) -> VisionRead | None:
        """What was read when the images of a forward were encoded.

        Args:
            given: the arguments of the base model's forward.

        Returns:
            None if there are no images, or if they were encoded out of sight.
        """
        if given.get("pixel_values") is not None:
            return self._latest
        output = (given.get("mm_encoder_outputs") or {}).get("image")
        if output is None:
            return None
        last = getattr(output, "last_hidden_state", None)
        if last is None:
            return self._latest
        return next((read for known, read in self._known if known() is last), None)

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
        grids = named_arguments(module, args, kwargs).get("grid_thw")
        self._running = VisionRead(grids, _sizes_of_caller(self.base))
        READING.set((*READING.get(), self))
        for config in {id(item.config): item.config for item in cast("list[Any]", self._modules)}.values():
            current = config._attn_implementation
            self._before.append((config, current))
            config._attn_implementation_internal = _registered(current)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        while self._before:
            config, before = self._before.pop()
            config._attn_implementation_internal = before
        READING.set(tuple(item for item in READING.get() if item is not self))
        read, self._running = self._running, None
        last = getattr(output, "last_hidden_state", None)
        if read is None or last is None:
            return
        self._known = [pair for pair in self._known if pair[0]() is not None]
        self._known.append((weakref.ref(last), read))
        self._latest = read


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
        f"The attention layers of the image encoder {type(encoder).__name__} are not found, so what it looks at "
        f"cannot be read; use a model with a CLIP, SigLIP, InternVL or Qwen encoder."
    )


def layer_with_all_patches(encoder: nn.Module, layer: int, count: int) -> int:
    """The layer nearest to `layer` in which every patch reads every other one; the earlier of two.

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
    for reader in READING.get():
        reader.add(module, query, key, kwargs)
    return backend_function(backend, module)(module, query, key, value, mask, **kwargs)


def _registered(backend: str) -> str:
    """The name under which a backend runs while it is read."""
    if backend.startswith(PREFIX):
        return backend
    name = PREFIX + backend
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        if backend not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
            raise UnsupportedError(
                f"The image encoder's attention backend {backend!r} has no mask function in transformers; load the "
                f"model with attn_implementation='sdpa'."
            )
        ALL_ATTENTION_FUNCTIONS.register(name, partial(_attend, backend=backend))
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[backend])
    return name


def _sizes_of_caller(base: nn.Module) -> Tensor | None:
    """The sizes of the images, which `get_image_features` was given and does not pass on to the encoder."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "get_image_features" and frame.f_locals.get("self") is base:
            return cast("Tensor | None", frame.f_locals.get("image_sizes"))
        frame = frame.f_back
    return None
