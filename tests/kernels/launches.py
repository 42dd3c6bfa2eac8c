"""Compares what kernels are launched with while an answer is decoded: as at the token before, and looked up anew.

Run as a process of its own, without `TRITON_INTERPRET`: `python -m tests.kernels.launches` compiles for a GPU that is
not there, decodes over the ends of two blocks of keys, and prints how many launches there were.
"""

import warnings
from unittest.mock import patch

import torch

from benchmarks import fake_driver

TOKENS = 90


class Nothing(dict):
    """Keeps nothing."""

    def __setitem__(self, key, value):
        pass


def shown(item):
    """A launch's argument without its place in memory."""
    if isinstance(item, tuple):
        return tuple(map(shown, item))
    if isinstance(item, torch.Tensor):
        return tuple(item.shape), item.stride(), item.dtype
    return item if isinstance(item, int | float | str | bool | None) else type(item).__name__


def main():
    """Decodes with both ways of launching, with a method that moves weight and one that changes scores."""
    warnings.simplefilter("ignore")
    driver = fake_driver.install("sm_90")
    from benchmarks.common import llava_inputs, random_llava
    from benchmarks.host_time import runner
    from lvlm_attn.kernels import dispatch
    from lvlm_attn.kernels.triton.steps import Steps

    dispatch.unavailable = lambda device: None
    launches = []
    driver.watch = lambda *given: launches.append(tuple(map(shown, given)))
    model = random_llava(hidden=64, layers=2, heads=4, kv_heads=2, mlp=64, patches_per_side=4)
    begin, quick = Steps.__init__, []

    def forgetful(self, form):
        begin(self, form)
        self._known = Nothing()

    def counted(self, form):
        begin(self, form)
        quick.append(self)

    for name in ("var", "pai"):
        found = []
        for way in (forgetful, counted):
            launches.clear()
            with torch.no_grad(), patch.object(Steps, "__init__", way):
                runner(model, llava_inputs(model, text=40), name)(TOKENS)
            found.append(list(launches))
        assert found[0] == found[1], name
        assert any(steps._known for steps in quick), name
        print(name, len(launches))


if __name__ == "__main__":
    main()
