"""The oracle of every second view: whole sequences read again from the start, one view at a time, in float64.

Nothing here knows of caches, batches or padding.
"""

import copy
from functools import cache

import pytest
import torch

import lvlm_attn as la
from tests.tiny import IMAGE, tiny_inputs, tiny_model


@cache
def model_of(name, **shape):
    """Shared between tests, which leave it as it was."""
    return tiny_model(name, **shape)


@cache
def double(name, **shape):
    return copy.deepcopy(model_of(name, **shape)).double()


def full_logits(model, row, tokens):
    """Next-token logits `(len(tokens), vocabulary)` along an unpadded row that goes on with `tokens`."""
    ids = torch.cat((row["input_ids"], torch.tensor([list(tokens)], dtype=torch.long)), dim=1)
    inputs = {key: value for key, value in row.items() if key not in ("input_ids", "attention_mask")}
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        if not bool((ids == IMAGE).any()):
            inputs.pop("image_grid_thw", None)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, **inputs).logits[0]
    length = row["input_ids"].shape[1]
    return logits[length - 1 : length - 1 + len(tokens)].double()


def without_images(row):
    """The row's words alone."""
    ids = row["input_ids"][row["input_ids"] != IMAGE][None]
    kept = {"input_ids": ids}
    if "mm_token_type_ids" in row:
        kept["mm_token_type_ids"] = torch.zeros_like(ids)
    return kept


def with_words(row, words, place):
    """The row with words put in at `place`."""
    ids = row["input_ids"]
    ids = torch.cat((ids[:, :place], torch.tensor([words]), ids[:, place:]), dim=1)
    return {key: value for key, value in row.items() if key != "attention_mask"} | {"input_ids": ids}


def cut(fused, main, beta):
    """Keeps the tokens that are at least beta times as likely as the likeliest."""
    share = main.softmax(-1)
    return torch.where(share >= beta * share.amax(-1, keepdim=True), fused, -torch.inf)


def error(got, want):
    """Largest difference of finite logits beside the largest; infinities have to agree."""
    assert got.shape == want.shape
    got = got.double()
    assert not torch.isnan(got).any()
    assert torch.equal(torch.isinf(got), torch.isinf(want))
    finite = torch.isfinite(want)
    return float((got - want)[finite].abs().max() / want[finite].abs().max())


def generated(lvlm, inputs, tokens=5, **options):
    """Tokens `(rows, tokens)` and joined logits `(rows, tokens, vocabulary)`."""
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True} | options
    out = lvlm.generate(**inputs, max_new_tokens=tokens, **options)
    return out.sequences[:, -tokens:], torch.stack(out.logits, dim=1)


def check_an_exception_restores(name, batch, kind, **options):
    """A method that fails while it joins logits leaves outputs, hooks and attention as they were."""

    class Breaks(kind):
        def fuse(self, main, views, step):
            raise RuntimeError("broken")

    model = tiny_model(name)
    inputs = tiny_inputs(name, model, batch)
    before = generated(model, inputs)
    with pytest.raises(RuntimeError, match="broken"), la.wrap(model, Breaks(), **options) as lvlm:
        generated(lvlm, inputs)
    assert torch.equal(generated(model, inputs)[1], before[1])
    assert model.model.language_model.config._attn_implementation == "sdpa"
    assert not any(module._forward_pre_hooks for module in model.model.language_model.modules())
