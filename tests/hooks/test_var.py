"""The invariants of VAR, each by name."""

import itertools
from dataclasses import replace

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.kernels.spec import Geometry, Redistribution
from lvlm_attn.kernels.torch_path import redistribute
from tests.oracle import read, sinks_of
from tests.oracle_setup import DIM, TAU, VAR_RULE, generate, relative_error, sink_model, truths, twin
from tests.tiny import IMAGE, NAMES, tiny_inputs, tiny_rows

BATCH = [(1,), (0,), (2,)]
TEXT, TEXT_SINK, PATCH, PATCH_SINK = range(4)


def var(**changes):
    return la.VAR(**{"tau": TAU, "sink_dims": (DIM,)} | changes)


def rows_of_weights(seed=0, heads=6, rows=24, keys=24):
    """Softmax rows of every sharpness, classes of keys, and where they stand."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, heads, rows, keys, generator=generator) * torch.linspace(0.3, 4, rows)[:, None]
    weights = scores.masked_fill(torch.rand(1, heads, rows, keys, generator=generator) < 0.1, -torch.inf)
    classes = torch.randint(0, 4, (1, keys), generator=generator)
    return weights.softmax(-1), classes, Geometry(0, rows, keys)


def moved(weights, classes, geometry, c=0.375, rho=0.5, floor=0.2):
    is_touched = torch.ones(1, weights.shape[2], dtype=torch.bool)
    return redistribute(weights, Redistribution(classes, is_touched, c, rho, floor), geometry)


def heads_before_projection(model, inputs, *interventions):
    """What enters each output projection, and the logits."""
    caught, handles = {}, []
    with torch.no_grad(), la.wrap(model, *interventions):
        for index, layer in enumerate(model.model.language_model.layers):
            handles.append(
                layer.self_attn.o_proj.register_forward_hook(
                    lambda module, args, out, index=index: caught.__setitem__(index, args[0].clone())
                )
            )
        try:
            logits = model(**inputs).logits
        finally:
            for handle in handles:
                handle.remove()
    return caught, logits


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "neutral",
    [{"removed_fraction": 0.0}, {"rho": 1.0, "mass_floor": 1.0}, {"tau": 32**0.5}],
    ids=["nothing removed", "nothing selected", "no sinks"],
)
def test_a1_nothing_to_do_keeps_bits(name, neutral):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare = model(**inputs).logits
        with la.wrap(model, var(**neutral)):
            assert torch.equal(model(**inputs).logits, bare)


@pytest.mark.parametrize("seed", range(5))
def test_a2_sum_and_support(seed):
    weights, classes, geometry = rows_of_weights(seed)
    new, is_changed, _ = moved(weights, classes, geometry)
    assert 0 < is_changed.float().mean() < 1
    assert (new.sum(-1) - 1).abs().max() < 1e-6
    assert (new >= 0).all()
    assert (new[weights == 0] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_a3_ratios(seed):
    weights, classes, geometry = rows_of_weights(seed)
    new, is_changed, mass = moved(weights.double(), classes, geometry)
    for head, row in is_changed[0].nonzero().tolist():
        before, after = weights[0, head, row].double(), new[0, head, row]
        seen = before > 0
        ratio = after[seen] / before[seen]
        kind = classes[0][seen]
        is_sink, is_plain = (kind == TEXT_SINK) | (kind == PATCH_SINK), kind == PATCH
        torch.testing.assert_close(ratio[is_sink], torch.full_like(ratio[is_sink], 0.625))
        assert (ratio[is_plain] - ratio[is_plain][0]).abs().max() < 1e-12
        assert ratio[is_plain][0] >= 1
        assert torch.equal(ratio[kind == TEXT], torch.ones_like(ratio[kind == TEXT]))
        budget = 0.375 * before[seen][is_sink].sum()
        torch.testing.assert_close((after - before)[seen][is_plain].sum(), budget)
        torch.testing.assert_close(mass[0, head, row], budget)


@pytest.mark.parametrize("name", NAMES)
def test_a4_locality(name):
    """With one layer edited, only text rows after the image change there, and only where selected."""
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    rows = tiny_rows(name, model, BATCH)
    bare, _ = heads_before_projection(model, inputs)
    edited, _ = heads_before_projection(model, inputs, var(layers=(2,)))
    expected = truths(name, rows, None, replace(VAR_RULE, layers=(2,)))
    for layer in (0, 1):
        assert torch.equal(bare[layer], edited[layer])
    heads = model.config.text_config.num_attention_heads
    changed = (bare[2] != edited[2]).unflatten(-1, (heads, -1)).any(-1)
    count = 0
    for index, truth in enumerate(expected):
        length = len(truth.logits)
        found = {(h, r) for r, h in changed[index, -length:].nonzero().tolist()}
        assert found == truth.rows[2]
        assert not changed[index, :-length].any()
        count += len(found)
    assert count > 0


def test_a4_last_layer_and_first_two_are_left_by_default():
    model = sink_model("llava")
    assert model.config.text_config.num_hidden_layers == 5
    with la.wrap(model, var()) as lvlm:
        assert [row["layer"] for row in lvlm.report().rows[0]] == []  # nothing has run yet
        with torch.no_grad():
            model(**tiny_inputs("llava", model, BATCH))
        assert [row["layer"] for row in lvlm.report().rows[0]] == [2, 3]


def test_a4_later_tokens_do_not_change_earlier_rows():
    model = sink_model("llava")
    row = tiny_rows("llava", model, [(1, 3, 6)])[0]
    other = dict(row, input_ids=row["input_ids"].clone())
    other["input_ids"][0, -1] = 10 if int(row["input_ids"][0, -1]) != 10 else 11  # a sink word
    with torch.no_grad(), la.wrap(model, var()):
        a, b = model(**row).logits, model(**other).logits
    assert torch.equal(a[:, :-1], b[:, :-1])
    assert not torch.equal(a[:, -1], b[:, -1])


@pytest.mark.parametrize("seed", range(3))
def test_a5_selection_is_monotonic(seed):
    weights, classes, geometry = rows_of_weights(seed)
    for key, values in (("rho", (0.0, 0.3, 0.5, 0.8, 1.0)), ("floor", (0.0, 0.2, 0.5, 0.9))):
        sets = [moved(weights, classes, geometry, **{key: value})[1] for value in values]
        for larger, smaller in itertools.pairwise(sets):
            assert (smaller <= larger).all()
        assert sets[0].sum() > sets[-1].sum()


def test_a5_a_higher_tau_finds_fewer_sinks():
    model = twin("llava")
    with torch.no_grad():
        x = read(model, tiny_rows("llava", model, [(2,)])[0]).embeds

    def sinks(tau):
        return sinks_of(x, replace(VAR_RULE, tau=tau))

    assert sinks(1.0) > sinks(2.0) >= sinks(4.0) > sinks(6.0) == set()
    counts = []
    inputs = tiny_inputs("llava", sink_model("llava"), [(2,)])
    for tau in (1.0, 2.0, 5.6):
        with torch.no_grad(), la.wrap(sink_model("llava"), var(tau=tau)) as lvlm:
            sink_model("llava")(**inputs)
            layer = lvlm.report().rows[0][0]
            counts.append(sum(value for key, value in layer.items() if "sink" in key))
    assert counts[0] > counts[1] > counts[2]


@pytest.mark.parametrize("seed", range(3))
def test_a6_three_forms_agree(seed):
    """Weights, a bias on the scores, and a correction of the output."""
    weights, classes, geometry = rows_of_weights(seed)
    weights = weights.double() / weights.double().sum(-1, keepdim=True)
    new, is_changed, _ = moved(weights, classes, geometry)
    value = torch.randn(weights.shape[-1], 5, dtype=torch.float64)
    sink = ((classes == TEXT_SINK) | (classes == PATCH_SINK))[0].double()
    plain = (classes == PATCH)[0].double()
    mass, room = (weights @ sink)[..., None], (weights @ plain)[..., None]
    gain = 1 - 0.375 * sink + 0.375 * plain * mass / room
    selected = is_changed[..., None]
    biased = torch.where(selected, (weights.log() + gain.log()).softmax(-1), weights)
    corrected = weights @ value - selected * (
        0.375 * (weights * sink) @ value - 0.375 * mass / room * ((weights * plain) @ value)
    )
    torch.testing.assert_close(torch.where(selected, new, weights), biased, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.where(selected, new, weights) @ value, corrected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llava_next", "internvl", "qwen2_5_vl"])
def test_a7_cache_equals_recompute(name):
    """Eight cached steps equal the walk over prompt and generated tokens with sinks in the prompt alone."""
    model = sink_model(name)
    decoded = 0
    for row in tiny_rows(name, model, [(2,), (1,), (2,)]):
        with torch.no_grad(), la.wrap(model, var()):
            ids, steps = generate(model, row)
        truth = truths(name, [row], ids, VAR_RULE)[0]
        length = row["input_ids"].shape[1]
        assert relative_error(steps[0], truth.logits[length - 1 : length + 8]) < 1e-5
        decoded += sum(r >= length for rows in truth.rows.values() for _, r in rows)
    assert decoded > 0


@pytest.mark.parametrize("name", NAMES)
def test_a7_sample_order_does_not_matter(name):
    model = sink_model(name)
    x, y = tiny_rows(name, model, [(2,), (1,)])
    with torch.no_grad():
        with la.wrap(model, var()):
            _, alone = generate(model, y)
        with la.wrap(model, var()):
            generate(model, x)
            _, after = generate(model, y)
    assert torch.equal(alone, after)


@pytest.mark.parametrize("name", NAMES)
def test_a7_rows_of_a_batch_equal_single_rows(name):
    model = sink_model(name)
    batch = [(2,), (1,)]
    with torch.no_grad(), la.wrap(model, var()):
        ids, steps = generate(model, tiny_inputs(name, model, batch))
        for index, row in enumerate(tiny_rows(name, model, batch)):
            single_ids, single = generate(model, row)
            assert torch.equal(single_ids[0], ids[index])
            assert relative_error(steps[index], single[0].double()) < 1e-5


def test_text_between_images_is_treated_and_images_are_not():
    """Queries start after the first image; the second image's tokens keep their rows."""
    model = sink_model("qwen2_vl")
    row = tiny_rows("qwen2_vl", model, [(2,)])[0]
    settings = {"layers": (2,), "rho": 0.0, "mass_floor": 0.0}
    bare, _ = heads_before_projection(model, row)
    edited, _ = heads_before_projection(model, row, var(**settings))
    changed = (bare[2] != edited[2]).any(-1)[0]
    is_image = row["input_ids"][0] == IMAGE
    first, last = (int(is_image.nonzero()[i]) for i in (0, -1))
    between = ~is_image & (torch.arange(len(is_image)) > first) & (torch.arange(len(is_image)) < last)
    assert between.any()
    assert changed[between].any()
    assert not changed[is_image].any()
    assert not changed[:first].any()
