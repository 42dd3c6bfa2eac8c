"""CrossLMM on whole models against the oracle: pooling, the rules of reuse with all sources, and adapters."""

from functools import cache

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.crosslmm.adapter import CrossLMMAdapter
from lvlm_attn.hooks.crosslmm.method import CrossLMM
from tests.hooks.crosslmm.oracle import Rule, answer
from tests.oracle_setup import relative_error
from tests.tiny import tiny_inputs, tiny_model, tiny_rows

FAMILIES = pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
BATCH = [(1, 2, 6), (2, 3, 4), (0,)]
TOLERANCE = 1e-5  # the model's norms are in float32, the oracle's are not
STEPS = 3


@cache
def double(name):
    return tiny_model(name, seed=3, dtype=torch.float64)


def random_adapter(model, seed=0, **settings):
    """An adapter whose gates are open."""
    adapter = CrossLMMAdapter.for_model(model, init="random", **settings).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in adapter.named_parameters():
            if name.endswith("gate"):
                value.copy_(torch.randn(1, generator=generator))
            else:
                value.copy_(torch.randn(value.shape, generator=generator) * value.shape[-1] ** -0.5)
    return adapter


def check(name, item, rule):
    """Prefill of a batch with unequal spans and left padding, and some cached steps, against single samples."""
    model = double(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), la.wrap(model, item):
        prefill = model(**inputs).logits
        out = model.generate(
            **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    steps = torch.stack(out.logits, 1)
    for index, row in enumerate(rows):
        tail = tuple(out.sequences[index, length:].tolist())
        truth = answer(name, model, row, rule, tail)
        count = row["input_ids"].shape[1]
        here = [place for place, position in enumerate(truth.kept) if position < count]
        got = prefill[index, length - count :][[truth.kept[place] for place in here]]
        assert relative_error(got, truth.logits[here]) < TOLERANCE
        assert relative_error(steps[index], truth.logits[-STEPS - 1 : -1]) < TOLERANCE
    return prefill


@FAMILIES
def test_pooling_is_dropping_tokens_and_keeping_positions(name):
    check(name, CrossLMM.reuse(grid=(2, 3), w=0.0), Rule(grid=(2, 3)))


@FAMILIES
@pytest.mark.parametrize("source", ["S0", "S1", "S2"])
def test_joint_softmax(name, source):
    rule = Rule("R2", source=source, w=0.4, layers=(1, 2))
    check(name, CrossLMM.reuse(grid=2, source=source, w=0.4, layers=(1, 2)), rule)


@FAMILIES
@pytest.mark.parametrize("source", ["S0", "S1"])
def test_gated_residual(name, source):
    rule = Rule("R1", source=source, lam=0.5, layers=(0, 3))
    check(name, CrossLMM.reuse(grid=2, rule="R1", source=source, lam=0.5, layers=(0, 3)), rule)


@pytest.mark.parametrize("scope", ["global", "frame"])
@pytest.mark.parametrize("branches", ["both", "t2v", "v2v"])
def test_branches_and_scopes(scope, branches):
    options = {"branches": branches, "v2v_scope": scope}
    rule = Rule("R2", source="S1", w=0.6, branches=branches, scope=scope)
    check("llava_next", CrossLMM.reuse(grid=2, source="S1", w=0.6, **options), rule)


def test_patches_alone_replace_the_pooled_tokens():
    check("llava", CrossLMM.reuse(grid=2, source="S1", w=1.0), Rule("R2", source="S1", w=1.0))


def test_images_behind_the_text_may_be_read():
    rule = Rule("R2", source="S1", w=0.5, causal_images=False)
    check("qwen2_5_vl", CrossLMM.reuse(grid=2, source="S1", w=0.5, causal_images=False), rule)


@FAMILIES
def test_adapter(name):
    adapter = random_adapter(double(name), K=2, grid=(2, 2))
    rule = Rule("adapter", weights=dict(adapter.state_dict()), layers=(1, 3))
    check(name, CrossLMM(adapter=adapter), rule)


@pytest.mark.parametrize(
    "settings",
    [
        {"v2v_scope": "frame", "K": 4},
        {"K": 3, "offset": 0, "kv_norm": True},
        {"K": 1, "causal_images": False},
        {"K": 2, "t2v_rows": "response"},
    ],
    ids=str,
)
def test_adapter_settings(settings):
    adapter = random_adapter(double("qwen2_5_vl"), grid=(2, 2), **settings)
    rule = Rule(
        "adapter",
        weights=dict(adapter.state_dict()),
        layers=tuple(range(settings.get("offset", settings["K"] - 1), 4, settings["K"])),
        scope=settings.get("v2v_scope", "global"),
        causal_images=settings.get("causal_images", True),
        rows=settings.get("t2v_rows", "all_text"),
        kv_norm=settings.get("kv_norm", False),
    )
    check("qwen2_5_vl", CrossLMM(adapter=adapter), rule)
