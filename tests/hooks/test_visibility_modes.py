"""Methods that change visibility in every way to run a model, and together."""

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.kernels.readouts import Readout
from tests.hooks.masked import BATCH, FEW, LAYERS, TOKENS, at_all, check, masked, model_of, sample_of, twin_of
from tests.hooks.test_delayed import blind
from tests.hooks.test_hollow import hollow
from tests.hooks.test_mma import to_prompt_end
from tests.hooks.test_neighborhood import near
from tests.hooks.test_power import power
from tests.hooks.test_visual_self import alone, with_prefix
from tests.oracle import _queries, redistributed, sinks_of
from tests.oracle_setup import DIM, TAU, VAR_RULE, generate, relative_error, sink_model, twin
from tests.tiny import IMAGE, tiny_inputs, tiny_model, tiny_rows
from tests.versions import needs_pre_encoding

METHODS = {
    "mma": lambda: la.MMA(),
    "mma strength": lambda: la.MMA(strength=0.5),
    "visual_self": lambda: la.VisualSelf(),
    "visual_self self": lambda: la.VisualSelf("self"),
    "frozen_visual": lambda: la.FrozenVisual(layers=(1, 2)),
    "hollow": lambda: la.Hollow(window=3),
    "delayed": lambda: la.Delayed(start=2),
    "neighborhood": lambda: la.Neighborhood(k=3),
    "power": lambda: la.Power(block=2, window=1),
}
methods = pytest.mark.parametrize("method", METHODS)


def run(model, inputs, method, **options):
    with torch.no_grad(), la.wrap(model, METHODS[method]()):
        return generate(model, inputs, TOKENS, **options)


def same(got, want, tolerance=2e-5):
    assert torch.equal(got[0], want[0])
    assert relative_error(got[1], want[1].double()) < tolerance


@methods
@pytest.mark.parametrize(
    "options",
    [{"use_cache": False}, {"cache_implementation": "static"}, {"do_sample": True, "top_k": 1}],
    ids=["no cache", "static cache", "sampling"],
)
def test_ways_to_generate(method, options):
    name = "qwen2_5_vl" if method in ("mma", "visual_self", "power") else "llava_next"
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    same(run(model, inputs, method, **options), run(model, inputs, method))


@methods
def test_prompt_lookup(method):
    name = "llava"
    model = model_of(name)
    row = tiny_rows(name, model, [(2, 3, 12)])[0]
    options = {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1}
    same(run(model, row, method, **options), run(model, row, method))


@methods
def test_beams_of_a_batch_are_the_beams_of_single_rows(method):
    name = "qwen2_5_vl"
    model = model_of(name)
    batch = [(1,), (2,)]
    inputs, rows = tiny_inputs(name, model, batch), tiny_rows(name, model, batch)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    with torch.no_grad(), la.wrap(model, METHODS[method]()):
        out = model.generate(**inputs, **options)
        parts = [model.generate(**row, **options) for row in rows]
    got = out.sequences[:, inputs["input_ids"].shape[1] :]
    for index, part in enumerate(parts):
        pair = slice(2 * index, 2 * index + 2)
        assert torch.equal(part.sequences[:, rows[index]["input_ids"].shape[1] :], got[pair])
        assert torch.allclose(part.sequences_scores, out.sequences_scores[pair], atol=1e-4)


@methods
@pytest.mark.parametrize("name", FEW)
def test_eager_attention_and_the_weights_it_returns(name, method):
    """Eager agrees with sdpa, and the weights it returns are those of the masked rows: they give the outputs."""
    inputs = tiny_inputs(name, model_of(name), BATCH)
    results = []
    for attn in ("sdpa", "eager"):
        model = model_of(name, attn)
        with torch.no_grad(), la.wrap(model, METHODS[method]()):
            results.append(model(**inputs).logits[:, -1])
    assert relative_error(results[1], results[0].double()) < 1e-5
    model, row = model_of(name, "eager"), tiny_rows(name, model_of(name), [(2,)])[0]
    seen = {}
    attention = model.model.language_model.layers[0].self_attn
    hooks = [
        attention.v_proj.register_forward_hook(lambda m, args, out: seen.update(value=out[0])),
        attention.o_proj.register_forward_pre_hook(lambda m, args: seen.update(heads=args[0][0])),
    ]
    try:
        with torch.no_grad(), la.wrap(model, METHODS[method]()):
            weights = model(**row, output_attentions=True).attentions[0][0]
    finally:
        for hook in hooks:
            hook.remove()
    value = seen["value"].view(len(seen["value"]), 2, -1).repeat_interleave(2, 1)
    heads = torch.einsum("hqk,khd->qhd", weights, value).flatten(1)
    torch.testing.assert_close(heads, seen["heads"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=1e-5)
    ahead = weights.triu(1).amax((0, 1)) > 0
    assert bool(ahead.any()) == method.startswith("mma")


@methods
def test_bfloat16_is_finite_and_near(method):
    name = "qwen2_5_vl"
    half = tiny_model(name, dtype=torch.bfloat16, layers=LAYERS)
    inputs = tiny_inputs(name, half, BATCH)
    double = tiny_model(name, dtype=torch.bfloat16, layers=LAYERS).double()
    exact = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    with torch.no_grad():
        with la.wrap(half, METHODS[method]()):
            got = model_logits(half, inputs)
        with la.wrap(double, METHODS[method]()):
            want = model_logits(double, exact)
        drift = relative_error(model_logits(half, inputs), model_logits(double, exact))
    # A random model in bfloat16 is some way off by itself.
    assert relative_error(got, want) < 3 * drift


def model_logits(model, inputs):
    return model(**inputs).logits[:, -1]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@methods
def test_sliding_windows(method, attn):
    """Mistral with a window of 9: it bounds what is behind a query and not what MMA opens ahead of it."""
    name, window = "llava_next", 9
    model = tiny_model(name, attn=attn, layers=LAYERS)
    model.config.text_config.sliding_window = window
    double = tiny_model(name, layers=LAYERS).double()
    rules = {
        "mma": to_prompt_end,
        "mma strength": lambda s, i, j: float(j <= i) or 0.5 * to_prompt_end(s, i, j),
        "visual_self": with_prefix,
        "visual_self self": alone,
        "hollow": hollow(3),
        "delayed": blind,
        "neighborhood": near(name, BATCH, 3),
        "power": power(2, 1),
    }
    base = rules.get(method, lambda s, i, j: j <= i)
    layers = range(2) if method == "delayed" else range(LAYERS)

    def causal(s, i, j):
        return float(j <= i and i - j < window)

    def rule(s, i, j):
        return base(s, i, j) * float(j > i or i - j < window)

    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with torch.no_grad(), la.wrap(model, METHODS[method]()):
        tokens, steps = generate(model, inputs, TOKENS)
    frozen = (1, 2) if method == "frozen_visual" else ()
    for index, row in enumerate(rows):
        table = {layer: rule if layer in layers else causal for layer in range(LAYERS)}
        want, _ = masked(double, row, tokens[index], table, frozen)
        prompt = row["input_ids"].shape[1]
        assert relative_error(steps[index], want[prompt - 1 : prompt - 1 + TOKENS]) < 1e-5


@pytest.mark.parametrize("name", FEW)
def test_mma_and_visual_self_together(name):
    """Earlier keys have to be allowed by both, keys ahead by one: images attend to themselves and the question."""

    def rule(sample, i, j):
        return to_prompt_end(sample, i, j) if j > i else alone(sample, i, j)

    for items in ([la.MMA(), la.VisualSelf("self")], [la.VisualSelf("self"), la.MMA()]):
        check(name, items, at_all(rule))


@pytest.mark.parametrize("name", FEW)
def test_two_restrictions_together(name):
    """What both allow."""
    close = near(name, BATCH, 3)

    def rule(sample, i, j):
        return close(sample, i, j) and hollow(2)(sample, i, j)

    check(name, [la.Neighborhood(k=3), la.Hollow(window=2)], at_all(rule))


def test_wraps_inside_one_another_act_together():
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    with torch.no_grad():
        with la.wrap(model, la.MMA(), la.Hollow(window=3)):
            want = model(**inputs).logits
        with la.wrap(model, la.MMA()), la.wrap(model, la.Hollow(window=3)):
            got = model(**inputs).logits
    assert torch.equal(got, want)


@pytest.mark.parametrize("order", ["mma first", "var first"])
@pytest.mark.parametrize("name", FEW)
def test_var_and_mma_in_one_wrap(name, order):
    """VAR redistributes the weights of a model whose image tokens attend to the question, whatever the order."""
    model, double = sink_model(name), twin(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    items = [la.MMA(), la.VAR(tau=TAU, sink_dims=(DIM,))]
    changed = []

    def edit(layer, hidden, weights, stream):
        if layer in VAR_RULE.layers:
            sinks = {place for place in sinks_of(hidden, VAR_RULE) if place < stream.prompt_length}
            for row in _queries(stream):
                new = redistributed(weights[row], sinks, stream.is_patch, VAR_RULE)
                if new is not None:
                    weights[row] = new
                    changed.append(row)
        return weights

    with torch.no_grad(), la.wrap(model, *(items if order == "mma first" else items[::-1])):
        tokens, steps = generate(model, inputs, TOKENS)
    for index, row in enumerate(rows):
        prompt = row["input_ids"].shape[1]
        rules = dict.fromkeys(range(len(double.model.language_model.layers)), to_prompt_end)
        want, _ = masked(double, row, tokens[index], rules, edit=edit)
        assert relative_error(steps[index], want[prompt - 1 : prompt - 1 + TOKENS]) < 1e-5
    assert changed


@methods
def test_gradients_flow(method):
    """Training through a wrap: the gradient of a float64 model is that of finite differences."""
    double = twin_of("llava")
    row = dict(tiny_rows("llava", model_of("llava"), [(1,)])[0])
    row["pixel_values"] = row["pixel_values"].double()
    weight = double.model.language_model.layers[0].self_attn.v_proj.weight
    step = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss():
        return double(**row).logits[0, -1].pow(2).mean()

    with la.wrap(double, METHODS[method]()):
        slope = float((torch.autograd.grad(loss(), weight)[0] * step).sum())
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                weight += sign * 1e-3 * step
                values.append(float(loss()))
                weight -= sign * 1e-3 * step
    assert abs((values[0] - values[1]) / 2e-3 - slope) < 1e-2 * abs(slope) + 1e-3


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("mma")])
@pytest.mark.parametrize("size", [7, 31])
@needs_pre_encoding
def test_chunked_prefill(method, size):
    """Restrictions look back only, so it does not matter how the prompt is cut, inside an image or behind it."""
    model = model_of("llava")
    row = tiny_rows("llava", model, [(1, 3, 12)])[0]
    same(run(model, row, method, prefill_chunk_size=size), run(model, row, method))


@pytest.mark.parametrize("method", ["delayed", "power", "frozen_visual", "visual_self"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_second_turn_with_the_cache_of_the_first(name, method):
    """The words of the second question follow the rule that the first ones did."""
    model, double = model_of(name), twin_of(name)
    row = tiny_rows(name, model, [(1,)])[0]
    words = torch.tensor([[31, 44, 12, 37]])
    rule = {"delayed": blind, "power": power(2, 1), "visual_self": with_prefix}.get(method)
    rules = dict.fromkeys(range(2 if method == "delayed" else LAYERS), rule) if rule else None
    with torch.no_grad(), la.wrap(model, METHODS[method]()):
        first = model.generate(**row, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, words], 1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in row:
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
            inputs["image_grid_thw"] = row["image_grid_thw"]
        tokens, steps = generate(model, inputs, 4, past_key_values=first.past_key_values)
    tail = ids[0, row["input_ids"].shape[1] :].tolist() + tokens[0].tolist()
    want, _ = masked(double, row, tail, rules, (1, 2) if method == "frozen_visual" else ())
    assert relative_error(steps[0], want[ids.shape[1] - 1 : -1]) < 1e-5


@pytest.mark.parametrize("name", FEW)
def test_readouts_see_the_weights_of_the_mask(name):
    """An image row read under MMA includes the question; a text row read under Delayed has no image in it."""
    model = model_of(name)
    row = tiny_rows(name, model, [(1,)])[0]
    image = torch.tensor([sample_of(row).is_image(k) for k in range(row["input_ids"].shape[1])])
    last = int(image.nonzero().max())
    seen = {}

    class Look(la.Intervention):
        layers = 1

        def readout(self, layer):
            asked = torch.zeros(1, len(image), dtype=torch.bool)
            asked[0, [last, len(image) - 1]] = True
            return Readout(asked, rows="heads")

        def read(self, layer, reading):
            seen.update(zip(reading.index[0].tolist(), reading.rows[0].transpose(0, 1)))

    for item, ahead, back in (
        (None, False, True),
        (la.MMA(), True, True),
        (la.Delayed(start=2), False, False),
    ):
        seen.clear()
        with torch.no_grad(), la.wrap(model, *([item] if item else []), Look()):
            model(**row)
        assert bool((seen[last][:, last + 1 :] > 0).any()) == ahead
        assert bool((seen[len(image) - 1][:, image] > 0).any()) == back
        for weights in seen.values():
            torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)), rtol=0, atol=1e-5)
