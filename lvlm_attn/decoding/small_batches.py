"""Linear layers of a few rows on the CPU at the cost of one.

Decoding reads every weight for one row. A second row should come for free, but the usual product of a `(2, n)` input
with a weight takes twice as long on x86 processors, and four rows three times; the same product with the weight first
does not (`python -m benchmarks.branches`). So while views ride in a batch, small inputs are multiplied from the right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MOST_ROWS = 8
"""Inputs of more rows are left to torch."""


class WeightFirst(TorchFunctionMode):
    """Computes `linear` of 2 to 8 rows in fp32 on the CPU as weight times input; everything else is as it was.

    It acts in the thread and for the block it is entered in, as torch's own modes do. Results agree with
    `torch.nn.functional.linear` up to the order of additions.

    Example:
        >>> x, weight = torch.randn(2, 8), torch.randn(3, 8)
        >>> with WeightFirst():
        ...     fast = torch.nn.functional.linear(x, weight)
        >>> torch.allclose(fast, x @ weight.T, atol=1e-5)
        True
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Takes over `linear`."""
        if func is torch.nn.functional.linear and not kwargs and _is_small(args[0]):
            return weight_first(*args)
        return func(*args, **(kwargs or {}))


@contextmanager
def weight_first_layers(model: nn.Module) -> Iterator[None]:
    """Lets the linear layers of a model on the CPU compute a few fp32 rows with the weight first.

    The mode is entered by hooks around each layer and nowhere else, because every operation under a mode costs some
    microseconds. The hooks are gone behind the block.

    Example:
        >>> layer = nn.Linear(8, 3)
        >>> with weight_first_layers(layer):
        ...     fast = layer(torch.ones(2, 8))
        >>> torch.allclose(fast, layer(torch.ones(2, 8)), atol=1e-5)
        True
    """
    entered: list[WeightFirst] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and _is_small(args[0]):
            mode = WeightFirst()
            mode.__enter__()  # type: ignore[no-untyped-call]
            entered.append(mode)

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        while entered:
            entered.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    with ExitStack() as stack:
        stack.callback(leave, model, (), None)
        for module in model.modules():
            if type(module) is nn.Linear and module.weight.device.type == "cpu":
                stack.enter_context(module.register_forward_pre_hook(enter))
                stack.enter_context(module.register_forward_hook(leave, always_call=True))
        yield


def weight_first(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`rows @ weight.T + bias` for `(..., inputs)` rows, computed as `weight @ rows.T`."""
    flat = rows.reshape(-1, rows.shape[-1])
    output = (weight @ flat.t()).t().contiguous().view(*rows.shape[:-1], weight.shape[0])
    return output if bias is None else output + bias


def _is_small(rows: Any) -> bool:
    if not isinstance(rows, Tensor) or rows.device.type != "cpu" or rows.dtype != torch.float32:
        return False
    return 1 < rows.numel() // max(rows.shape[-1], 1) <= MOST_ROWS
