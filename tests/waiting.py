"""Finding where a device would have to be waited for, on a machine without one.

A value that is read (`bool(tensor)`, `.tolist()`), an operation whose result's shape depends on values (`nonzero`,
indices of booleans), a copy between device and host: on a GPU each waits until all work before it is done. `Waits`
notes such operations of CPU tensors and where they were asked for. Code that takes a short cut where reading is free
asks `reading_is_free`, to which `as_on_a_gpu` says no.
"""

import sys
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

import lvlm_attn
from lvlm_attn.kernels import host

_ROOT, _TORCH = lvlm_attn.__path__[0], torch.__path__[0]
_OF_THE_HOST = {
    ("families/family.py", "prompt_layout"),  # the ids that it is given were brought there in one copy
    ("runtime/text_pass.py", "of"),
    ("runtime/prompt_state.py", "_check_images"),
    ("runtime/prompt_state.py", "_set_layout"),
    ("maps/recording.py", "of"),
    ("maps/recording.py", "wanted_rows"),
    ("hooks/record.py", "_begin_call"),
    ("hooks/record.py", "_on_device"),
}
"""Functions whose tensors lie on the host on every machine, and what they call."""
_READS = {
    *(
        "item",
        "tolist",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__complex__",
        "cpu",
        "numpy",
        "__contains__",
    ),
    *(
        "nonzero",
        "argwhere",
        "masked_select",
        "unique",
        "unique_consecutive",
        "equal",
        "allclose",
        "is_nonzero",
    ),
    *("bincount", "histc", "masked_scatter"),
}
_OPERATORS = {
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero"),
    *("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::item"),
}


class _Function(TorchFunctionMode):
    def __init__(self, note):
        super().__init__()
        self._note = note

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = (resolve_name(function) or getattr(function, "__name__", "")).rpartition(".")[2]
        if name in _READS or _copies(name, args, kwargs):
            self._note(name)
        return function(*args, **kwargs)


class _Dispatch(TorchDispatchMode):
    def __init__(self, note):
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition(".")[0]
        by_bool = name in (
            "aten::index",
            "aten::index_put",
            "aten::index_put_",
            "aten::_index_put_impl_",
        ) and any(item is not None and item.dtype in (torch.bool, torch.uint8) for item in args[1])
        if name in _OPERATORS or by_bool:
            self._note(name)
        return function(*args, **(kwargs or {}))


def _copies(name, args, kwargs):
    """Whether something of the host becomes a tensor on the device."""
    if name in ("tensor", "as_tensor", "asarray", "from_numpy"):
        data = args[0] if args else kwargs.get("data")
        return not isinstance(data, Tensor) and (
            kwargs.get("device") is not None or not isinstance(data, int | float)
        )
    if name in ("__getitem__", "__setitem__"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(item, list) for item in index)
    if name == "repeat_interleave":
        repeats = args[1] if len(args) > 1 else kwargs.get("repeats")
        return isinstance(repeats, Tensor) and kwargs.get("output_size") is None
    return name == "where" and len(args) == 1


class Waits:
    """What would wait for the device, and where.

    Args:
        layers: decoder layers; what happens in them, hooks and attention included, is told apart.

    Attributes:
        in_layers: `operation file:line` of each wait while a decoder layer ran.
        elsewhere: the others that this package asked for.
    """

    def __init__(self, layers):
        self._layers = {id(layer) for layer in layers}
        self.in_layers, self.elsewhere = [], []

    def _note(self, name):
        frame, asked_at, in_layer = sys._getframe(2), None, False
        while frame is not None:
            path, function = frame.f_code.co_filename, frame.f_code.co_name
            is_ours, within = path.startswith(_ROOT), path[len(_ROOT) + 1 :]
            if asked_at is None and not path.startswith(_TORCH) and path != __file__:
                if not is_ours:
                    return  # transformers and the test itself may wait as they like
                asked_at = f"{within}:{frame.f_lineno}"
            if is_ours and (within, function) in _OF_THE_HOST:
                return
            if function == "_call_impl":
                in_layer = in_layer or id(frame.f_locals.get("self")) in self._layers
            frame = frame.f_back
        if asked_at is not None:
            (self.in_layers if in_layer else self.elsewhere).append(f"{name} {asked_at}")

    @contextmanager
    def noted(self):
        """Notes waits inside the block, as they would be on a GPU."""
        with as_on_a_gpu(), _Function(self._note), _Dispatch(self._note):
            yield self


@contextmanager
def as_on_a_gpu():
    """Lets code take the ways that it takes on a GPU."""
    before, host.FREE = host.FREE, frozenset()
    try:
        yield
    finally:
        host.FREE = before
