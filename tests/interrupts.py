"""Ctrl-C at a chosen line of the package, and everything of a model that a wrap could leave behind."""

import sys
from pathlib import Path

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lvlm_attn

PACKAGE = str(Path(lvlm_attn.__file__).parent)


class Interrupt:
    """Raises KeyboardInterrupt as the package is about to run its n-th line from `start` on.

    Args:
        line: which one; 0 for none, to count them.
    """

    def __init__(self, line=0):
        self.line, self.count, self.place = line, 0, None

    def start(self):
        sys.settrace(self._call)

    def stop(self):
        sys.settrace(None)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def _call(self, frame, event, argument):
        return self._step if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _step(self, frame, event, argument):
        if event == "line":
            self.count += 1
            if self.count == self.line:
                self.place = f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self._step


def state(model):
    """Everything a wrap could leave on a model or in the process, weights aside."""
    hooks, names, backends = {}, {}, {}
    for path, module in model.named_modules():
        own = vars(module)
        names[path] = {key: id(value) for key, value in own.items() if key not in _MOVES}
        for key, value in own.items():
            if "hooks" in key and isinstance(value, dict):
                hooks[path, key] = list(value.items())
        if hasattr(module, "config"):
            backends[path] = module.config._attn_implementation
    return {
        "hooks": hooks,
        "attributes": names,
        "backends": backends,
        "config": model.config.to_json_string(),
        "generation": model.generation_config.to_json_string(),
        "attention registry": sorted(ALL_ATTENTION_FUNCTIONS.keys()),
        "mask registry": sorted(ALL_MASK_ATTENTION_FUNCTIONS.keys()),
        "global hooks": len(torch.nn.modules.module._global_forward_pre_hooks),
        "gradients": torch.is_grad_enabled(),
    }


_MOVES = ("rope_deltas",)
"""What a model remembers of its last prompt by itself."""


def changes(before, after):
    """The parts of a state that differ, with what differs."""
    found = {}
    for key, value in before.items():
        if value != after[key]:
            if isinstance(value, dict):
                parts = {part for part in {*value, *after[key]} if value.get(part) != after[key].get(part)}
                found[key] = sorted(map(str, parts))
            else:
                found[key] = [str(value)[:200], str(after[key])[:200]]
    return found
