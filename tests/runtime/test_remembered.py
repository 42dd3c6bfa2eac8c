"""What a model was asked once is not asked again while it would answer the same, to the bit."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import lvlm_attn as la
from lvlm_attn.measures import sinks
from lvlm_attn.runtime import probe, text_pass
from lvlm_attn.runtime.remembered import Remembered, forget_all
from tests.oracle_setup import DIM, TAU, generate, make_sinks
from tests.tiny import BOS, FIRST_WORD, IMAGE, NAMES, tiny_inputs, tiny_model, tiny_rows

BATCH = [(1,), (0,), (2,)]
LAYERS = (1, 2)


def vhr():
    return la.VHR(layers=LAYERS)


def fresh(name="llava", **changes):
    return make_sinks(tiny_model(name, **changes))


def language(model):
    return model.model.language_model


@pytest.fixture
def runs(monkeypatch):
    """The text passes that were really made."""
    made, real = [], text_pass._run

    def counted(*args, **kwargs):
        made.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(text_pass, "_run", counted)
    return made


def logits(model, inputs, *items):
    with torch.no_grad(), la.wrap(model, *items or (vhr(),)):
        return model(**inputs).logits


def cold(model, inputs, *items):
    forget_all()
    return logits(model, inputs, *items)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_text_is_run_once_with_the_same_bits(name, side, runs):
    model = fresh(name)
    inputs = tiny_inputs(name, model, BATCH, side=side)
    first = cold(model, inputs)
    assert len(runs) == 1
    assert torch.equal(logits(model, inputs), first)
    assert len(runs) == 1
    assert torch.equal(cold(model, inputs), first)
    assert len(runs) == 2


def test_another_picture_is_the_same_text_and_another_word_is_not(runs):
    model = fresh()
    inputs = tiny_inputs("llava", model, [(1,)])
    cold(model, inputs)
    other = {**inputs, "pixel_values": inputs["pixel_values"] + 1}
    warm = logits(model, other)
    assert len(runs) == 1
    assert torch.equal(warm, cold(model, other))
    assert not torch.equal(warm, logits(model, inputs))
    ids = inputs["input_ids"].clone()
    at = int((ids[0] != IMAGE).nonzero()[-1])
    ids[0, at] = FIRST_WORD + (ids[0, at] == FIRST_WORD)
    changed = {**inputs, "input_ids": ids}
    seen = len(runs)
    assert torch.equal(logits(model, changed), cold(model, changed))
    assert len(runs) == seen + 2


def test_rows_alone_and_rows_together_are_told_apart(runs):
    """A batch is compared as a whole, since a product of more rows rounds otherwise."""
    model = fresh()
    rows = tiny_rows("llava", model, [(1,), (1,)])
    both = tiny_inputs("llava", model, [(1,), (1,)])
    forget_all()
    for given in (*rows, both):
        first = logits(model, given)
        assert torch.equal(first, cold(model, given))
    assert len(runs) == 6


def halve(model):
    with torch.no_grad():
        language(model).layers[0].mlp.down_proj.weight.mul_(0.5)


def add_through_data(model):
    """As PEFT merges an adapter: neither the tensor's version nor its place changes."""
    weight = language(model).layers[0].self_attn.v_proj.weight
    torch.manual_seed(0)
    before = weight._version, weight.data_ptr()
    weight.data += 0.3 * torch.randn(len(weight), 1) @ torch.randn(1, weight.shape[1])
    assert (weight._version, weight.data_ptr()) == before


def exchange(model):
    layer = language(model).layers[0].mlp
    layer.gate_proj.weight = nn.Parameter(layer.gate_proj.weight.detach() * 2)


def load(model):
    model.load_state_dict({name: 0.9 * value for name, value in model.state_dict().items()})


def rescale(model):
    language(model).layers[0].self_attn.scaling *= 3


def reset_config(model):
    language(model).config.rms_norm_eps = 1.0
    for layer in language(model).layers:
        layer.input_layernorm.variance_epsilon = 1.0


def swap_module(model):
    layers = language(model).layers
    layers[0].mlp = copy.deepcopy(layers[1].mlp)


def swap_words(model):
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[FIRST_WORD:] = table[FIRST_WORD:].flip(0)


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


CHANGES = (halve, add_through_data, exchange, load, rescale, reset_config, swap_module, swap_words, step)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_asked_again(change, runs):
    model = fresh()
    inputs = tiny_inputs("llava", model, BATCH)
    before = cold(model, inputs)
    sunk = sinks.find_sink_dims(la.wrapping.target_of(model, None))
    change(model)
    warm = logits(model, inputs)
    warm_sinks = sinks.find_sink_dims(la.wrapping.target_of(model, None))
    assert len(runs) == 2
    assert not torch.equal(warm, before)
    assert torch.equal(warm, cold(model, inputs))
    assert warm_sinks == sinks.find_sink_dims(la.wrapping.target_of(model, None))
    # A first token attends to itself alone, however scores are scaled, and its embedding is that of a special token.
    assert warm_sinks.scores != sunk.scores or change in (rescale, swap_words)


def hook(model):
    module = language(model).layers[0].mlp
    module.register_forward_hook(lambda module, args, output: output * 0.5)


def own_forward(model):
    module = language(model).layers[0].mlp
    real = module.forward
    module.forward = lambda x: 0.5 * real(x)


def train(model):
    language(model).layers[0].train()


@pytest.mark.parametrize("change", [hook, own_forward, train])
def test_where_a_change_cannot_be_told_nothing_is_remembered(change, runs):
    model = fresh()
    inputs = tiny_inputs("llava", model, BATCH)
    cold(model, inputs)
    change(model)
    first, second = logits(model, inputs), logits(model, inputs)
    assert len(runs) == 3
    assert torch.equal(first, second)


def test_a_backend_that_is_set_or_registered_anew_is_asked_again(runs):
    model = fresh()
    inputs = tiny_inputs("llava", model, BATCH)
    cold(model, inputs)
    model.set_attn_implementation("eager")
    assert torch.equal(logits(model, inputs), cold(model, inputs))
    assert len(runs) == 3
    with torch.no_grad(), la.wrap(model, vhr()):
        first = model(**inputs).logits
        model.set_attn_implementation("sdpa")
        second = model(**inputs).logits
        model.set_attn_implementation("eager")
        assert torch.equal(model(**inputs).logits, first)
    model.set_attn_implementation("sdpa")
    assert torch.equal(second, cold(model, inputs))


def test_with_others_acting_and_after_other_prompts(runs):
    """What is remembered is the bare model's, whatever acts beside it; Y after X equals Y alone, also in sampling."""
    model = fresh()
    x, y = (tiny_inputs("llava", model, batch) for batch in (BATCH, [(2,), (1,)]))
    items = (la.VAR(tau=TAU, sink_dims=(DIM,), layers=LAYERS), vhr(), la.Hollow())
    alone = cold(model, y, *items)
    forget_all()
    logits(model, y)  # VHR alone leaves what it found
    logits(model, x, *items)
    seen = len(runs)
    assert torch.equal(logits(model, y, *items), alone)
    assert len(runs) == seen  # also for those who act beside it
    options = {"do_sample": True, "top_k": 20, "temperature": 1.5}

    def sampled(given):
        torch.manual_seed(3)
        return generate(model, given, **options)

    with la.wrap(model, *items):
        forget_all()
        ids, values = sampled(y)
        sampled(x)
        again_ids, again = sampled(y)
    assert torch.equal(ids, again_ids)
    assert torch.equal(values, again)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_that_is_switched_scaled_or_merged_is_told(runs):
    peft = pytest.importorskip("peft")
    model = fresh()
    inputs = tiny_inputs("llava", model, BATCH)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    before = cold(model, inputs)
    made = [before]

    def check():
        count = len(runs)
        made.append(logits(model, inputs))
        assert len(runs) == count + 1
        assert torch.equal(made[-1], cold(model, inputs))
        assert not torch.equal(made[-1], made[-2])

    with adapted.disable_adapter():
        check()
    check()
    for module in adapted.modules():
        if hasattr(module, "scaling") and isinstance(module.scaling, dict):
            module.scaling["default"] *= 3
    check()
    adapted.merge_adapter()
    count = len(runs)
    assert torch.equal(logits(model, inputs), cold(model, inputs))
    assert len(runs) == count + 2


def test_inference_mode_leaves_nothing_that_training_cannot_use():
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    forget_all()
    with torch.inference_mode(), la.wrap(model, vhr()):
        model(**inputs)
    with la.wrap(model, vhr()):
        model(**inputs).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad is not None


def test_the_pass_ends_at_the_last_wanted_layer(monkeypatch):
    model = fresh()
    inputs = tiny_inputs("llava", model, [(1,)])
    called, kind = [], type(language(model).layers[0].mlp)
    real = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: called.append(self) or real(self, x))
    forget_all()
    logits(model, inputs, la.VHR(layers=(0, 1)))
    mlps = [layer.mlp for layer in language(model).layers]
    assert [called.count(mlp) for mlp in mlps] == [2, 1, 1, 1]
    want = cold(model, inputs, la.VHR(layers=(0, 1)))
    language(model).layers[3].register_forward_hook(
        lambda module, args, output: None
    )  # and so it runs to its end
    called.clear()
    assert torch.equal(logits(model, inputs, la.VHR(layers=(0, 1))), want)
    assert [called.count(mlp) for mlp in mlps] == [2, 2, 2, 2]


# The look at a model on entering, and the search for sinks.


def test_a_model_is_looked_at_once_for_each_backend(monkeypatch):
    model, looks = fresh(), []
    real = probe.without_interventions
    monkeypatch.setattr(probe, "without_interventions", lambda function: looks.append(1) or real(function))

    def enter(expected):
        with la.wrap(model, la.VAR(tau=TAU, sink_dims=(DIM,))):
            pass
        assert len(looks) == expected

    forget_all()
    enter(1)
    enter(1)
    model.set_attn_implementation("eager")
    enter(2)
    model.set_attn_implementation("sdpa")
    enter(2)
    language(model).layers[0].self_attn = copy.deepcopy(language(model).layers[0].self_attn)
    enter(3)
    language(model).layers[0].register_forward_hook(lambda module, args, output: None)
    enter(4)
    enter(5)  # with hooks of others every time


@pytest.mark.parametrize("how", ["one type", "forward", "its type"])
def test_attention_out_of_reach_is_refused_after_it_was_in_reach(how, monkeypatch):
    model = fresh()
    var = la.VAR(tau=TAU, sink_dims=(DIM,))
    with la.wrap(model, var):
        pass
    attention = language(model).layers[1].self_attn
    kind = type(attention)

    def own(self, hidden_states, **kwargs):
        return self.o_proj(hidden_states), None

    if how == "one type":
        attention.__class__ = type("Own", (kind,), {"forward": own})
    elif how == "forward":
        attention.forward = own.__get__(attention)
    else:
        monkeypatch.setattr(kind, "forward", own)
    for _ in range(2):  # an error is not remembered, either
        with pytest.raises(la.UnsupportedError, match="does not go through"), la.wrap(model, var):
            pass


def test_sinks_are_searched_once_for_the_same_texts(monkeypatch):
    model, searches = fresh(), []
    real = sinks._first_token_scores
    monkeypatch.setattr(sinks, "_first_token_scores", lambda *args: searches.append(1) or real(*args))
    target = la.wrapping.target_of(model, None)
    forget_all()
    first = sinks.find_sink_dims(target)
    assert sinks.find_sink_dims(target) == first
    assert len(searches) == 1
    monkeypatch.setattr(sinks, "_prompt_ids", lambda target: [torch.tensor([BOS, 8, 9])])
    sinks.find_sink_dims(target)
    assert len(searches) == 2


def test_no_model_is_kept_alive_and_little_is_kept():
    model = fresh()
    inputs = tiny_inputs("llava", model, [(1,)])
    logits(model, inputs, la.VAR(tau=TAU), vhr())
    assert copy.deepcopy(model) is not None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None

    known, key = Remembered(most=2), nn.Linear(1, 1)
    for number in (0, 1, 0, 2):
        known.found(key, number, lambda number=number: number)
    assert known.found(key, 0, lambda: "new") == 0
    assert known.found(key, 1, lambda: "new") == "new"
