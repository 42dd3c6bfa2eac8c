"""Float64 all the way, so that a comparison does not depend on how a CPU rounds.

Models of transformers compute norms, rotary angles and softmaxes in float32 whatever their weights are. In this
mode a request for float32 gives float64.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Doubled(TorchFunctionMode):
    """Turns every cast to float32 into one to float64.

    Example:
        >>> with Doubled():
        ...     torch.ones(2, dtype=torch.float64).float().dtype, torch.ones(2).to(torch.float32).dtype
        (torch.float64, torch.float64)
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is Tensor.float:
            return args[0].double()
        kwargs = {key: _doubled(value) for key, value in (kwargs or {}).items()}
        return function(*(_doubled(value) for value in args), **kwargs)


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
