"""Recorded rows against transformers' eager weights: every family, prefill and decode, both paddings, every mode."""

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.families import parts_of
from tests.doubled import Doubled
from tests.hooks.recorded import check_sample, doubled, sdpa_model
from tests.tiny import ALL_NAMES, tiny_inputs, tiny_rows
from tests.versions import skip_faults

BATCH = [(1,), (0,), (2,)]
FEW = ["llava_next", "internvl", "qwen2_vl"]
TOKENS = 5


def generated(name, recorder, batch=BATCH, side="left", **options):
    """The maps of a generated batch, and the sequences."""
    model = sdpa_model(name)
    inputs = doubled(tiny_inputs(name, model, batch, side))
    with torch.no_grad(), Doubled(), la.wrap(model, recorder) as lvlm:
        output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, **options)
        return lvlm.maps, output


def depth(name):
    """How many layers have weights to record."""
    return len(parts_of(sdpa_model(name)).softmax_layers)


def check(name, maps, sequences, batch=BATCH, repeats=1):
    rows = tiny_rows(name, sdpa_model(name), batch)
    counts = [
        check_sample(name, maps, sample, doubled(rows[sample // repeats]), sequences[sample])
        for sample in range(len(sequences))
    ]
    assert min(counts) > 0
    return counts


@pytest.mark.parametrize("name", ALL_NAMES)
def test_generated_rows_of_a_left_padded_batch(name):
    maps, sequences = generated(name, la.record())
    prompt = sequences.shape[1] - TOKENS
    assert maps.rows.tolist() == [list(range(prompt - 1, prompt + TOKENS - 1))] * 3
    assert torch.equal(maps.targets, maps.rows + 1)
    assert check(name, maps, sequences) == [depth(name) * TOKENS] * 3
    assert maps.layout.length == sequences.shape[1] - 1
    assert torch.equal(maps.ids, sequences)


@pytest.mark.parametrize("rows", ["prompt", "all", "last"])
@pytest.mark.parametrize("name", ALL_NAMES)
def test_prompt_rows(name, rows):
    maps, sequences = generated(name, la.record(rows=rows))
    lengths = [row["input_ids"].shape[1] for row in tiny_rows(name, sdpa_model(name), BATCH)]
    extra = {"prompt": 0, "all": TOKENS, "last": 1}[rows]
    wanted = [depth(name) * ((0 if rows == "last" else length) + extra) for length in lengths]
    assert check(name, maps, sequences) == wanted


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_plain_forward(name, side):
    """Without `generate` there is no answer; the last prompt token's row is about itself."""
    model = sdpa_model(name)
    inputs = doubled(tiny_inputs(name, model, BATCH, side))
    with torch.no_grad(), Doubled(), la.wrap(model, la.record(rows="prompt")) as lvlm:
        model(**inputs)
        maps = lvlm.maps
    check(name, maps, inputs["input_ids"])
    with torch.no_grad(), Doubled(), la.wrap(model, la.record()) as lvlm:
        model(**inputs)
    last = inputs["attention_mask"].cumsum(1).argmax(1)
    assert lvlm.maps.rows[:, 0].tolist() == last.tolist()
    assert torch.equal(lvlm.maps.targets, lvlm.maps.rows)
    check(name, lvlm.maps, inputs["input_ids"])


@pytest.mark.parametrize("name", ALL_NAMES)
def test_right_padded_batches(name):
    """What stands right of a prompt as padding is no key, and the answer comes after it."""
    maps, sequences = generated(name, la.record(), side="right")
    last = tiny_inputs(name, sdpa_model(name), BATCH, "right")["attention_mask"].cumsum(1).argmax(1)
    assert maps.rows[:, 0].tolist() == last.tolist()
    check_first_rows(name, maps, sequences)


def check_first_rows(name, maps, sequences):
    """transformers chooses the first token of a right-padded row at its padding, so only prompts are compared."""
    first = maps.pick([0])
    rows = tiny_rows(name, sdpa_model(name), BATCH)
    for sample in range(len(sequences)):
        check_sample(name, first, sample, doubled(rows[sample]), sequences[sample])


@pytest.mark.parametrize("name", ALL_NAMES)
def test_layers_heads_and_means(name):
    whole, _ = generated(name, la.record())
    some, _ = generated(name, la.record(layers=(1, 3), heads=(0, 2)))
    assert some.layers == (1, 3)
    assert some.heads == (0, 2)
    assert torch.equal(some.weights[3], whole.weights[3][:, [0, 2]])
    heads, _ = generated(name, la.record(reduce="heads"))
    assert heads.heads == ()
    assert torch.allclose(heads.weights[3], whole.weights[3].mean(1, keepdim=True), atol=1e-7)
    layers, _ = generated(name, la.record(reduce="layers", layers=(1, 3)))
    assert layers.layers == ("mean",)
    assert torch.allclose(layers.weights["mean"], (whole.weights[1] + whole.weights[3]) / 2, atol=1e-7)
    both, _ = generated(name, la.record(reduce="all", heads=(1, 3)))
    wanted = torch.stack([value[:, [1, 3]] for value in whole.weights.values()]).mean((0, 2))[:, None]
    assert torch.allclose(both.weights["mean"], wanted, atol=1e-7)


@pytest.mark.parametrize("name", FEW)
def test_positions_of_ones_own(name):
    maps, sequences = generated(name, la.record(rows=[-1, 6]))
    prompt = sequences.shape[1] - TOKENS
    assert sorted({int(row) for row in maps.rows.flatten()} - {-1}) == [6, prompt - 1]
    check(name, maps, sequences)
    assert len(maps.sample(2)) == 2


BROKEN = {"llama4": "transformers itself does not repeat the features of Llama 4 for beams"}
MODES = {
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "sampling": {"do_sample": True, "temperature": 2.0},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ALL_NAMES)
def test_ways_to_generate(name, mode):
    skip_faults(name, mode)
    if mode == "prompt lookup" and parts_of(sdpa_model(name)).softmax_layers != (0, 1, 2, 3):
        pytest.skip("layers that keep a state cannot take back candidates, so transformers refuses")
    batch = [(1,)] if mode == "prompt lookup" else BATCH
    torch.manual_seed(0)
    options = {"do_sample": False} | MODES[mode]
    model = sdpa_model(name)
    inputs = doubled(tiny_inputs(name, model, batch))
    with torch.no_grad(), Doubled(), la.wrap(model, la.record()) as lvlm:
        sequences = model.generate(**inputs, max_new_tokens=TOKENS, **options)
        maps = lvlm.maps
    assert check(name, maps, sequences, batch) == [depth(name) * TOKENS] * len(batch)
    prompt = sequences.shape[1] - TOKENS
    assert maps.targets.tolist() == [list(range(prompt, prompt + TOKENS))] * len(batch)


@pytest.mark.parametrize("name", ALL_NAMES)
@pytest.mark.parametrize("returned", [1, 2])
def test_beams_give_the_returned_answers(name, returned):
    if name in BROKEN:
        pytest.skip(BROKEN[name])
    batch = [(1,), (0,), (1,)]
    maps, sequences = generated(name, la.record(), batch, num_beams=3, num_return_sequences=returned)
    assert len(sequences) == 3 * returned
    assert torch.equal(maps.ids, sequences)
    assert check(name, maps, sequences, batch, returned) == [depth(name) * TOKENS] * len(sequences)


def test_several_sequences_of_a_prompt():
    torch.manual_seed(0)
    model = sdpa_model("llava")
    inputs = doubled(tiny_inputs("llava", model, [(1,), (1,)]))
    with torch.no_grad(), Doubled(), la.wrap(model, la.record()) as lvlm:
        sequences = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=True, num_return_sequences=2)
    assert check("llava", lvlm.maps, sequences, [(1,), (1,)], 2) == [4 * TOKENS] * 4


@pytest.mark.parametrize("name", FEW)
def test_a_prompt_in_chunks(name):
    model = sdpa_model(name)
    row = doubled(tiny_rows(name, model, [(1, 3, 12)])[0])
    size = row["input_ids"].shape[1] - 4
    with torch.no_grad(), Doubled(), la.wrap(model, la.record(rows="all")) as lvlm:
        try:
            sequences = model.generate(**row, max_new_tokens=TOKENS, do_sample=False, prefill_chunk_size=size)
        except Exception as error:
            pytest.skip(f"chunks fail here without a recorder as well: {error}")
        maps = lvlm.maps
    assert check_sample(name, maps, 0, row, sequences[0]) == 4 * (row["input_ids"].shape[1] + TOKENS)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_several_turns_on_one_cache(name):
    """The maps grow with the conversation: the answers of both turns have rows."""
    model = sdpa_model(name)
    row = doubled(tiny_rows(name, model, [(1,)])[0])
    options = {"max_new_tokens": TOKENS, "do_sample": False, "return_dict_in_generate": True}
    with torch.no_grad(), Doubled(), la.wrap(model, la.record()) as lvlm:
        first = model.generate(**row, **options)
        turn_one = lvlm.maps
        more = torch.tensor([[21, 22, 23]])
        ids = torch.cat((first.sequences, more), 1)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in row:
                given[key] = torch.nn.functional.pad(row[key], (0, TOKENS + 3))
        second = model.generate(**given, past_key_values=first.past_key_values, **options)
        maps = lvlm.maps
    assert len(turn_one) == TOKENS
    start = row["input_ids"].shape[1]
    later = start + TOKENS + 3
    wanted = [*range(start, start + TOKENS), *range(later, later + TOKENS)]
    assert maps.targets[0].tolist() == wanted
    assert check_sample(name, maps, 0, row, second.sequences[0]) == depth(name) * 2 * TOKENS
