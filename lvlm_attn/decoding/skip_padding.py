"""Linear layers that skip padding while a prompt is processed.

A view without its image is as short as its text, but shares a batch as long as the prompt with the image. Nearly all
work of a prefill is in the linear layers, and they treat each position by itself; so they are given the tokens
alone, and padding comes out as zeros. Attention still sees the whole batch, padding masked as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LEAST_PADDING = 0.1
"""With a smaller share of padding, moving values costs more than it saves."""


@contextmanager
def skipped_padding(modules: Iterable[nn.Module], mask: Tensor | None) -> Iterator[None]:
    """Lets linear layers compute the tokens of a padded batch only. The hooks are gone after the block.

    Args:
        modules: the decoder layers.
        mask: `(batch, length)`, nonzero at tokens, or None without padding. Inputs of another batch or length are
            computed as ever.

    Example:
        >>> layer, rows = nn.Linear(8, 3), torch.ones(1, 4, 8)
        >>> with skipped_padding([layer], torch.tensor([[0, 0, 1, 1]])):
        ...     output = layer(rows)
        >>> bool((output[0, :2] == 0).all()), torch.allclose(output[0, 2:], layer(rows)[0, 2:])
        (True, True)
    """
    is_token = None if mask is None or mask.dim() != 2 else mask.bool()
    if is_token is None or int(is_token.sum()) > (1 - LEAST_PADDING) * is_token.numel():
        yield
        return
    shape, places = is_token.shape, is_token.flatten().nonzero()[:, 0]
    on_device = {places.device: places}

    def places_at(device: torch.device) -> Tensor:
        if device not in on_device:
            on_device[device] = places.to(device)
        return on_device[device]

    def hook(layer: nn.Module, stack: ExitStack) -> None:
        packed: list[bool] = []

        def pack(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            # A graph would go on packing after this, so what is compiled packs nothing.
            if torch.compiler.is_compiling():
                return None
            # Arguments beside the input may be about rows (PEFT's adapter of each row), which packing mixes.
            alone = len(args) == 1 and not kwargs
            packed[:] = [alone and isinstance(args[0], Tensor) and args[0].shape[:-1] == shape]
            if not packed[0]:
                return None
            rows = args[0].flatten(0, 1)
            return (rows.index_select(0, places_at(rows.device))[None],), kwargs

        def unpack(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if torch.compiler.is_compiling() or not packed.pop():
                return None
            full = output.new_zeros(shape.numel(), output.shape[-1])
            return full.index_copy_(0, places_at(output.device), output[0]).view(*shape, -1)

        # In this order the hooks of others are given the whole batch and the whole output.
        stack.enter_context(layer.register_forward_pre_hook(pack, with_kwargs=True))
        stack.enter_context(layer.register_forward_hook(unpack, prepend=True))

    with ExitStack() as stack:
        for module in modules:
            for layer in linear_layers(module):
                hook(layer, stack)
        yield


def linear_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The linear layers of a module, of any kind, and no parts of them.

    `nn.Linear`, quantised layers (bitsandbytes, GPTQ, AWQ, HQQ, torchao) and adapters around either (PEFT's LoRA
    and its kin) all say how many features go in and come out. An adapter is one linear layer with all it wraps.

    Example:
        >>> [type(layer).__name__ for layer in linear_layers(nn.Sequential(nn.Linear(8, 3), nn.ReLU()))]
        ['Linear']
    """
    if all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features")):
        yield module
        return
    for child in module.children():
        yield from linear_layers(child)
