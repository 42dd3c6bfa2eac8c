"""What `generate` knows and does not pass on to the model: where the prompt ends.

A forward call sees tokens, not whether they are prompt or answer. Without a cache the answer comes back with
every step as part of one growing sequence; a chunked prefill looks like a second turn; candidates of prompt
lookup look like a prompt. `generate` holds the prompt in its own frame, so that is where it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lvlm_attn.families.unwrap import unwrapped
from lvlm_attn.runtime.transformers_private import generate_variables


@dataclass(frozen=True)
class GenerateCall:
    """The running `generate` call of a model.

    Attributes:
        prompt_length: number of prompt positions, padding included.
        is_chunked: whether the prompt is processed in several passes.
        beams: number of beams; with several, rows change places between calls.
        max_length: the longest that prompt and answer may become together, or None if that is not known.
    """

    prompt_length: int
    is_chunked: bool
    beams: int = 1
    max_length: int | None = None


def running_generate(base: nn.Module) -> GenerateCall | None:
    """Finds the `generate` call on the stack that drives a base model, or None in a plain forward."""
    for variables in generate_variables():
        if not _drives(variables.get("self"), base):
            continue
        ids = variables.get("input_ids")
        if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
            return None
        config = variables.get("generation_config")
        chunk = getattr(config, "prefill_chunk_size", None)
        beams = getattr(config, "num_beams", None) or 1
        longest = getattr(config, "max_length", None)
        return GenerateCall(ids.shape[1], bool(chunk and chunk < ids.shape[1]), beams, longest)
    return None


def _drives(owner: Any, base: nn.Module) -> bool:
    if not isinstance(owner, nn.Module):
        return False
    parts = (owner, *owner.children())
    return any(module is base for module in parts) or any(unwrapped(module) is base for module in parts[1:])
