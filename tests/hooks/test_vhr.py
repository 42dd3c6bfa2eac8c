"""The invariants of VHR, each by name."""

import copy
from dataclasses import replace

import pytest
import torch

import lvlm_attn as la
from tests.oracle import VhrRule, oracle, outliers, read, walk, without_images
from tests.oracle_setup import VHR_RULE, generate, relative_error, sink_model, truths, twin
from tests.tiny import NAMES, QWEN, tiny_inputs, tiny_rows

BATCH = [(1,), (0,), (2,)]
LAYERS = VHR_RULE.layers


def vhr(**changes):
    return la.VHR(**{"layers": LAYERS} | changes)


def watch(model, inputs, *interventions):
    """Per layer, what was about to enter the output projection and what entered it; and the logits.

    Each entry is `(batch, queries, heads, head_dim)`, of the last call only.
    """
    heads = model.config.text_config.num_attention_heads
    before, after, handles = {}, {}, []
    layers = list(enumerate(model.model.language_model.layers))
    for index, layer in layers:

        def early(module, args, index=index):
            before[index] = args[0].unflatten(-1, (heads, -1)).clone()

        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(early))
    try:
        with torch.no_grad(), la.wrap(model, *interventions):
            for index, layer in layers:

                def late(module, args, out, index=index):
                    after[index] = args[0].unflatten(-1, (heads, -1)).clone()

                handles.append(layer.self_attn.o_proj.register_forward_hook(late))
            logits = model(**inputs).logits
    finally:
        for handle in handles:
            handle.remove()
    return before, after, logits


def scaled_heads(before, after, sample):
    """Per layer, the heads whose outputs were changed anywhere in a sample."""
    return {
        index: set(
            (before[index][sample] != after[index][sample]).any(-1).any(0).nonzero().flatten().tolist()
        )
        for index in before
    }


class Counter:
    """Counts the calls of the language model."""

    def __init__(self, model):
        self.calls = 0
        self.handle = model.model.language_model.register_forward_pre_hook(self.count)

    def count(self, module, args):
        self.calls += 1


@pytest.mark.parametrize("name", NAMES)
def test_b1_alpha_one_keeps_bits_and_reads_no_text(name):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    counter = Counter(model)
    try:
        with torch.no_grad():
            bare = model(**inputs).logits
            with la.wrap(model, vhr(alpha=1)):
                assert torch.equal(model(**inputs).logits, bare)
            assert counter.calls == 2
            with la.wrap(model, vhr()):
                assert not torch.equal(model(**inputs).logits, bare)
            assert counter.calls > 3  # so the count above can fail
    finally:
        counter.handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_b2_samples_without_images_keep_bits(name):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare_ids, bare = generate(model, inputs)
        with la.wrap(model, vhr()):
            ids, got = generate(model, inputs)
    assert torch.equal(got[1], bare[1])
    assert torch.equal(ids[1], bare_ids[1])
    assert not torch.equal(got[0], bare[0])


def test_b2_a_batch_without_images_is_refused_or_passed():
    model = sink_model("llava")
    inputs = tiny_inputs("llava", model, [(0,), (0,)])
    with torch.no_grad():
        bare = model(**inputs).logits
        with la.wrap(model, vhr(), no_image="pass"):
            assert torch.equal(model(**inputs).logits, bare)
        with la.wrap(model, vhr()), pytest.raises(la.LvlmAttnError, match="image"):
            model(**inputs)
        assert torch.equal(model(**inputs).logits, bare)


def test_b2_an_image_nobody_reads_changes_nothing():
    """With values of zero in every layer both branches are alike, so no head stands out."""
    model = copy.deepcopy(sink_model("llava"))
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.v_proj.weight.zero_()
        inputs = tiny_inputs("llava", model, BATCH)
        bare = model(**inputs).logits
        with la.wrap(model, vhr(layers=(0, 1, 2, 3, 4))):
            assert torch.equal(model(**inputs).logits, bare)


@pytest.mark.parametrize("heads", [4, 8])
@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl"])
def test_b3_half_the_heads(name, heads):
    model = sink_model(name, heads=heads, kv_heads=2, hidden=8 * heads)
    inputs = tiny_inputs(name, model, [(1,), (2,)])
    chosen = []
    for power in (1, 2):
        before, after, _ = watch(model, inputs, vhr(outlier_filter=False, vhd_power=power))
        for sample in range(2):
            found = scaled_heads(before, after, sample)
            assert [len(found[layer]) for layer in LAYERS] == [heads // 2] * len(LAYERS)
            assert not any(found[layer] for layer in found if layer not in LAYERS)
            chosen.append(found)
    assert chosen[:2] == chosen[2:]


def test_b3_permuted_heads_are_chosen_alike():
    """Permuting the heads of the weights permutes the choice and leaves the logits."""
    shape = {"kv_heads": 4}
    model = sink_model("llava", **shape)
    other = copy.deepcopy(model)
    order = [2, 0, 3, 1]
    width = 8
    with torch.no_grad():
        for layer in other.model.language_model.layers:
            attention = layer.self_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                projection.weight.copy_(projection.weight.unflatten(0, (4, width))[order].flatten(0, 1))
            weight = attention.o_proj.weight
            weight.copy_(weight.unflatten(1, (4, width))[:, order].flatten(1, 2))
    inputs = tiny_inputs("llava", model, [(1,), (2,)])
    before, after, logits = watch(model, inputs, vhr())
    before_other, after_other, logits_other = watch(other, inputs, vhr())
    for sample in range(2):
        found, moved = (
            scaled_heads(before, after, sample),
            scaled_heads(before_other, after_other, sample),
        )
        for layer in LAYERS:
            assert {order[head] for head in moved[layer]} == found[layer] != set()
    assert relative_error(logits_other, logits.double()) < 1e-5


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl"])
def test_b4_same_as_scaled_columns_of_the_projection(name):
    """For one sample the hook is a multiplication of the columns of the chosen heads by alpha."""
    model = sink_model(name)
    row = tiny_rows(name, model, [(1,)])[0]
    before, after, logits = watch(model, row, vhr(alpha=3.0))
    found = scaled_heads(before, after, 0)
    for layer in LAYERS:
        for head in range(4):
            factor = 3.0 if head in found[layer] else 1.0
            assert torch.equal(after[layer][:, :, head], factor * before[layer][:, :, head])
    other = copy.deepcopy(model)
    with torch.no_grad():
        for index, heads in found.items():
            weight = other.model.language_model.layers[index].self_attn.o_proj.weight
            for head in heads:
                weight[:, 8 * head : 8 * head + 8] *= 3.0
        assert relative_error(other(**row).logits, logits.double()) < 1e-5
        # And with these frozen heads, decoding is ordinary decoding of the changed model.
        with la.wrap(model, vhr(alpha=3.0)):
            ids, steps = generate(model, row)
        other_ids, other_steps = generate(other, row)
    assert torch.equal(ids, other_ids)
    assert relative_error(steps, other_steps.double()) < 1e-5


@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_b5_layers_are_judged_in_turn(name):
    """The second layer sees the first one scaled; the first sees the plain model."""
    model, double = sink_model(name), twin(name)
    first, second = 1, 3
    differing = 0
    for row in tiny_rows(name, model, [(1,), (2,)] * 4):
        stream = read(double, row)
        with torch.no_grad():
            plain, text = walk(double, stream), walk(double, without_images(stream))
        rule = VhrRule(layers=(first, second))
        truth = oracle(double, row, (), None, rule)
        with torch.no_grad():
            scaled = walk(double, stream, None, replace(rule, layers=(first,)), text.outputs)

        def distance(a, b):
            return ((a - b) ** 2).sum(-1)

        two_forwards = distance(plain.outputs[first], text.outputs[first])
        in_turn = distance(scaled.outputs[second], text.outputs[second])
        at_once = distance(plain.outputs[second], text.outputs[second])
        assert torch.allclose(torch.tensor(truth.divergence[first]).double(), two_forwards, rtol=1e-6)
        assert torch.allclose(torch.tensor(truth.divergence[second]).double(), in_turn, rtol=1e-6)
        before, after, _ = watch(model, row, la.VHR(layers=(first, second), outlier_filter=False))
        found = scaled_heads(before, after, 0)
        assert found[first] == set(two_forwards.topk(2).indices.tolist())
        choice = oracle(double, row, (), None, replace(rule, outlier_filter=False)).heads[second]
        assert found[second] == choice
        differing += choice != set(at_once.topk(2).indices.tolist())
    assert differing > 0  # judging both layers in the plain model would have chosen others


@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl"])
def test_b6_cache_equals_recompute(name):
    model = twin(name)  # in float64, where rounding cannot hide in the tolerance
    for row in tiny_rows(name, model, [(2,), (1,)]):
        with torch.no_grad(), la.wrap(model, vhr()):
            ids, steps = generate(model, row)
        truth = truths(name, [row], ids, None, VHR_RULE)[0]
        length = row["input_ids"].shape[1]
        assert relative_error(steps[0], truth.logits[length - 1 : length + 8]) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_b6_text_pass_leaves_no_trace(name):
    """The random state, the cache and the rotary offset are those of the bare model."""
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        out = model(**inputs, use_cache=True)
        deltas = copy.deepcopy(getattr(model.model, "rope_deltas", None))
        length = out.past_key_values.get_seq_length()
        first_keys = out.past_key_values.layers[0].keys.clone()
        torch.manual_seed(5)
        state = torch.get_rng_state()
        with la.wrap(model, vhr()):
            wrapped = model(**inputs, use_cache=True)
            assert wrapped.past_key_values.get_seq_length() == length
            # Layer 0 is not scaled, so its keys must be the bare ones.
            assert torch.equal(wrapped.past_key_values.layers[0].keys, first_keys)
            assert torch.equal(torch.get_rng_state(), state)
            if name in QWEN:
                assert torch.equal(model.model.rope_deltas, deltas)
        if name in QWEN:
            assert torch.equal(model.model.rope_deltas, deltas)
        assert torch.equal(model(**inputs).logits, out.logits)


def test_b7_outlier_rule_on_made_up_vectors():
    """The oracle's own rule: both conditions, the guard, and a dropped head is never chosen."""
    rule = VhrRule(layers=())
    assert outliers([1, 1, 1, 9], [1, 1, 1, 9], rule) == {3}
    assert outliers([1, 1, 1, 9], [9, 1, 1, 1], rule) == set()
    assert outliers([0.1, 0.1, 0.1, 0.9], [1, 1, 1, 9], rule) == set()
    assert outliers([0.1, 0.1, 0.1, 0.9], [1, 1, 1, 9], replace(rule, std_guard=False)) == {3}
    assert outliers([1, 1, 1, 9], [1, 1, 1, 9], replace(rule, outlier_filter=False)) == set()


def test_b7_an_outlier_is_never_scaled():
    seen = 0
    for seed in range(3):
        model, double = sink_model("llava"), twin("llava")
        rows = tiny_rows("llava", model, [(1,)] * 3, seed)
        for row, truth in zip(rows, truths("llava", rows, None, None, VHR_RULE, double)):
            before, after, _ = watch(model, row, vhr())
            found = scaled_heads(before, after, 0)
            for layer in LAYERS:
                assert not found[layer] & truth.outliers[layer]
                assert found[layer] == truth.heads[layer]
                seen += len(truth.outliers[layer])
    assert seen > 0


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_b8_rows_of_a_batch_equal_single_rows(name, side):
    model = sink_model(name)
    batch = [(1,), (2,)]
    inputs, rows = tiny_inputs(name, model, batch, side), tiny_rows(name, model, batch)
    before, after, logits = watch(model, inputs, vhr())
    for index, row in enumerate(rows):
        single_before, single_after, single = watch(model, row, vhr())
        assert scaled_heads(before, after, index) == scaled_heads(single_before, single_after, 0)
        length = row["input_ids"].shape[1]
        valid = slice(-length, None) if side == "left" else slice(length)
        assert relative_error(logits[index, valid], single[0].double()) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_sample_order_does_not_matter(name):
    model = sink_model(name)
    x, y = tiny_rows(name, model, [(2,), (1,)])
    with torch.no_grad():
        with la.wrap(model, vhr()):
            _, alone = generate(model, y)
        with la.wrap(model, vhr()):
            generate(model, x)
            _, after = generate(model, y)
    assert torch.equal(alone, after)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_bfloat16_follows_its_own_heads(name):
    """Heads are judged in float32 from what the bfloat16 model computed, and scaled exactly."""
    model = sink_model(name, torch.bfloat16)
    for row in tiny_rows(name, model, [(1,), (2,), (1,)]):
        texts, handles = {}, []
        for index, layer in enumerate(model.model.language_model.layers):

            def first(module, args, texts=texts, index=index):
                if index not in texts:
                    texts[index] = args[0][0, -1].unflatten(0, (4, -1)).clone()

            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(first))
        try:  # the text pass comes first
            before, after, _ = watch(model, row, vhr(outlier_filter=False))
        finally:
            for handle in handles:
                handle.remove()
        found = scaled_heads(before, after, 0)
        for layer in LAYERS:
            gap = ((before[layer][0, -1].float() - texts[layer].float()) ** 2).sum(-1)
            assert found[layer] == {head for head in range(4) if gap[head] > gap.median()}
            assert torch.equal(
                after[layer][0, :, list(found[layer])], 2 * before[layer][0, :, list(found[layer])]
            )
