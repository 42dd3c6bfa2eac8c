"""Tokens of an answer that go on by a plan on the torch path: as those computed anew, whatever becomes of the cache."""

import inspect
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lvlm_attn as la
from lvlm_attn.kernels import correction
from lvlm_attn.runtime import edits
from lvlm_attn.runtime.continued import Continued
from tests.oracle_setup import generate
from tests.runtime.watched_plans import watched
from tests.tiny import tiny_inputs, tiny_model

LAYERS, TOKENS = 2, 6
ONE, PADDED = [(1, 2, 3)], [(1, 2, 3), (0, 2, 2), (1, 5, 9)]


def var(**more):
    """Sinks that are few, and so little of them moved that few keys suffice."""
    given = {"tau": 1.5, "sink_dims": (1, 5), "layers": "0:", "rho": 0.1, "mass_floor": 0.2}
    return la.VAR(**{**given, "removed_fraction": 0.1, **more})


def model(family="llava", kv_heads=4):
    return tiny_model(family, layers=LAYERS, kv_heads=kv_heads)


def none_planned():
    return patch.object(Continued, "plan", staticmethod(lambda *given: None))


@pytest.mark.parametrize("batch", [ONE, PADDED], ids=["one", "padded"])
@pytest.mark.parametrize(("family", "kv_heads"), [("llava", 4), ("llava", 2), ("qwen2_vl", 4)])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_continued_tokens_are_those_of_no_plan(family, kv_heads, batch, static):
    made = model(family, kv_heads)
    inputs = tiny_inputs(family, made, batch)
    options = {"cache_implementation": "static", "disable_compile": True} if static else {}

    def run():
        with la.wrap(made, var()) as lvlm:
            found = made.generate(
                **inputs,
                max_new_tokens=TOKENS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                **options,
            )
            return torch.stack(found.logits, 1), lvlm.report().rows

    done, watching = watched(Continued)
    with watching:
        logits, rows = run()
    # With a mask heads that share keys stand in the place of queries, and nothing is planned.
    is_grouped = kv_heads < 4 and (static or batch is PADDED)
    assert sum(done) == (0 if is_grouped else LAYERS * (TOKENS - 2))
    assert any(row["rows_changed"] > 0 for row in rows[0])
    with none_planned():
        others, other_rows = run()
    assert torch.equal(logits, others)
    assert rows == other_rows
    with none_planned(), patch.object(edits, "may_correct", return_value=False):
        assert torch.allclose(run()[0], logits, rtol=0, atol=1e-4)


def zeroed(cache, made):
    for layer in cache.layers:
        layer.keys.data[:, :, 3:9] = 0
        layer.values[:, :, -2:] *= 2


def replaced(cache, made):
    for layer in cache.layers:
        layer.keys, layer.values = -layer.keys, layer.values.flip(2)


def cropped(cache, made):
    cache.crop(-1)


def reordered(cache, made):
    cache.reorder_cache(torch.tensor([1, 0, 2]))


@pytest.mark.parametrize("change", [zeroed, replaced, cropped, reordered])
def test_a_cache_may_change_between_tokens(change):
    """Samples are of one length, and nothing of them is told apart but what the cache holds."""
    made = model()
    inputs = tiny_inputs("llava", made, [(1, 2, 3)] * 3)
    shape, generator = inputs["pixel_values"].shape, torch.Generator().manual_seed(1)
    inputs["pixel_values"] = torch.randn(shape, generator=generator)

    def run():
        with la.wrap(made, var()), torch.no_grad():
            found, logits = made(**inputs, use_cache=True), []
            for step in range(6):
                if step >= 3:
                    change(found.past_key_values, made)
                token = torch.tensor([[25 + step], [26], [27]])
                found = made(input_ids=token, past_key_values=found.past_key_values)
                logits.append(found.logits)
        return torch.cat(logits, 1)

    done, watching = watched(Continued)
    with watching:
        got = run()
    assert sum(done) == LAYERS * 5
    with none_planned(), patch.object(edits, "may_correct", return_value=False):
        assert torch.allclose(got, run(), rtol=0, atol=1e-4)


SEEN = []


def own_backend(*given, **more):
    SEEN.append("backend")
    return sdpa_attention_forward(*given, **more)


def own_function(*given, **more):
    SEEN.append("function")
    return scaled_dot_product_attention(*given, **more)


DISTURBED = {
    "backend": lambda: patch.dict(ALL_ATTENTION_FUNCTIONS._global_mapping, sdpa=own_backend),
    "function": lambda: patch.object(torch.nn.functional, "scaled_dot_product_attention", own_function),
    "gradients": torch.enable_grad,
    "other weights": nullcontext,
    "another kernel": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
}


@pytest.mark.parametrize("kind", DISTURBED)
def test_what_comes_between_is_noticed(kind):
    """A user's own functions are called, gradients flow, and another intervention's answer counts."""
    made = model()
    inputs = tiny_inputs("llava", made, ONE)
    SEEN.clear()

    def run(at):
        with la.wrap(made, var()) as lvlm, torch.no_grad():
            found, logits = made(**inputs, use_cache=True), []
            for step in range(5):
                if kind == "other weights" and step == 3:
                    ((_, state),) = lvlm._session.editors
                    for key in [key for key in state.memory if key[0] == "decoding"]:
                        del state.memory[key]
                with DISTURBED[kind]() if step == at else nullcontext():
                    found = made(input_ids=torch.tensor([[25]]), past_key_values=found.past_key_values)
                logits.append(found.logits)
        return torch.cat(logits, 1)

    done, watching = watched(Continued)
    with watching:
        got = run(3)
    assert done == [True] * 2 * LAYERS + [False] * LAYERS + [kind != "other weights"] * LAYERS
    assert len(SEEN) == (LAYERS if kind in ("backend", "function") else 0)
    assert got.requires_grad == (kind == "gradients")
    with none_planned(), patch.object(edits, "may_correct", return_value=False):
        assert torch.allclose(got, run(None), rtol=0, atol=1e-4)


def test_rows_that_stop_being_touched_stay():
    """A tensor of rows that is written to between two tokens."""
    made = model()
    inputs = tiny_inputs("llava", made, ONE)
    done, watching = watched(Continued)
    with watching, la.wrap(made, var()) as lvlm, torch.no_grad():
        found = made(**inputs, use_cache=True)
        for step in range(4):
            found = made(input_ids=torch.tensor([[25]]), past_key_values=found.past_key_values)
            if step == 2:
                before = [list(row.values()) for row in lvlm.report().rows[0]]
                ((_, state),) = lvlm._session.editors
                for layer in range(LAYERS):
                    state.memory["decoding", layer].is_touched[:] = False
        after = lvlm.report().rows[0]
    assert sum(done) == LAYERS * 3
    assert before == [list(row.values()) for row in after]  # no row could be changed, and none was


def test_a_layer_that_needs_all_keys_is_not_planned_again():
    made = model()
    inputs = tiny_inputs("llava", made, ONE)
    with la.wrap(made, var()), none_planned():
        want = generate(made, inputs, TOKENS)[1]
    done, watching = watched(Continued)
    planned = []
    straight = Continued.plan

    def noted(call, *given):
        straight(call, *given)
        planned.append(dict(call.plans or {}))
        if len(planned) == LAYERS:  # no factor is small enough from now on
            for dtype in correction.LIMITS:
                correction.LIMITS[dtype] = -1.0

    changed = patch.object(Continued, "plan", staticmethod(noted))
    with watching, patch.dict(correction.LIMITS), changed, la.wrap(made, var()):
        got = generate(made, inputs, TOKENS)[1]
    assert all(planned[LAYERS - 1].values())
    assert done == [False] * LAYERS
    assert not any(planned[-1].values())
    assert torch.allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("planning", [True, False])
def test_a_later_mask_may_open_what_was_hidden_when_keys_were_listed(planning):
    """Words are read again that were padding at the first token."""
    made = model()
    inputs = tiny_inputs("llava", made, ONE)
    length = inputs["input_ids"].shape[1]

    def run():
        with la.wrap(made, var()), torch.no_grad():
            found, logits = made(**inputs, use_cache=True), []
            for step in range(4):
                mask = torch.ones(1, length + step + 1, dtype=torch.long)
                mask[:, 0] = int(step >= 2)
                mask[:, -3] = int(step != 3)
                found = made(
                    input_ids=torch.tensor([[25]]),
                    attention_mask=mask,
                    past_key_values=found.past_key_values,
                )
                logits.append(found.logits)
        return torch.cat(logits, 1)

    with nullcontext() if planning else none_planned():
        got = run()
    with none_planned(), patch.object(edits, "may_correct", return_value=False):
        assert torch.allclose(got, run(), rtol=0, atol=1e-5)


def test_all_that_sdpa_of_transformers_looks_at_is_looked_at():
    """When a parameter is added here, `planned._settings` has to hold it."""
    known = {"module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal"}
    names = {name for name in inspect.signature(sdpa_attention_forward).parameters if name != "kwargs"}
    assert names <= known | {"position_bias", "cache"}
