"""Every way to generate gives what the samples give one by one and greedily, or is refused.

The reference is `generate` on one unpadded row, which `test_var_vhr` holds against the oracle.
"""

import re
from functools import cache

import pytest
import torch

import lvlm_attn as la
from tests.oracle import oracle
from tests.oracle_setup import DIM, TAU, VAR_RULE, VHR_RULE, generate, relative_error, sink_model, twin
from tests.tiny import IMAGE, NAMES, PAD, tiny_inputs, tiny_rows
from tests.versions import needs_pre_encoding

BATCH = [(1,), (0,), (2,)]
FEW = ["llava_next", "internvl", "qwen2_vl", "qwen3_vl"]
TOKENS = 6


def var():
    return la.VAR(tau=TAU, sink_dims=(DIM,))


def vhr():
    return la.VHR(layers=(1, 3, 4))


EDITS = {"var": lambda: [var()], "vhr": lambda: [vhr()], "both": lambda: [var(), vhr()]}
edits = pytest.mark.parametrize("edit", EDITS)


def bare(model, inputs, **options):
    """What the model generates without a wrap."""
    with torch.no_grad():
        return generate(model, inputs, TOKENS, **options)


@cache
def singles(name, edit):
    """Row by row, greedily. A batch of one without an image has nothing to edit."""
    model, out = sink_model(name), []
    for row in tiny_rows(name, model, BATCH):
        with torch.no_grad(), la.wrap(model, *EDITS[edit](), no_image="pass"):
            out.append(generate(model, row, TOKENS))
    return torch.cat([ids for ids, _ in out]), torch.cat([logits for _, logits in out])


def wrapped(model, inputs, edit, **options):
    with torch.no_grad(), la.wrap(model, *EDITS[edit](), no_image="pass"):
        return generate(model, inputs, TOKENS, **options)


def check(got, want):
    assert torch.equal(got[0], want[0])
    assert relative_error(got[1], want[1].double()) < 2e-5  # two float32 results, each within 1e-5


@edits
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch(name, edit):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    got = wrapped(model, inputs, edit)
    check(got, singles(name, edit))
    assert relative_error(got[1], bare(model, inputs)[1].double()) > 1e-3


@edits
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize(
    "options", [{"use_cache": False}, {"cache_implementation": "static"}], ids=["no cache", "static cache"]
)
def test_caches(name, options, edit):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    assert torch.equal(bare(model, inputs, **options)[0], bare(model, inputs)[0])
    check(wrapped(model, inputs, edit, **options), singles(name, edit))


@pytest.mark.parametrize("name", NAMES)
def test_chunked_prefill_and_vhr(name):
    """The heads depend on the last prompt token and act on the first, so VHR says no."""
    model = sink_model(name)
    inputs = tiny_inputs(name, model, [(1,), (2,)])
    with torch.no_grad(), la.wrap(model, vhr()), pytest.raises(la.UnsupportedError, match="chunk") as caught:
        generate(model, inputs, TOKENS, prefill_chunk_size=7)
    assert "\n" not in str(caught.value)


@needs_pre_encoding
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", ["in the image", "after the image"])
def test_chunked_prefill_and_var(name, cut):
    """VAR does not depend on how the prompt is cut. Families whose grids are read off whole images refuse a
    cut inside one; where a cut leaves the image whole, none may refuse."""
    model = sink_model(name)
    row = tiny_rows(name, model, [(1, 3, 12)])[0]
    last = int((row["input_ids"][0] == IMAGE).nonzero()[-1])
    size = 7 if cut == "in the image" else last + 2
    plain = bare(model, row)[1].double()
    assert relative_error(bare(model, row, prefill_chunk_size=size)[1], plain) < 1e-5
    want = wrapped(model, row, "var")
    try:
        got = wrapped(model, row, "var", prefill_chunk_size=size)
    except la.UnsupportedError as error:
        if cut == "after the image" or name in ("llava", "vipllava"):
            raise
        message = str(error)
        assert re.search("prefill_chunk_size=None", message)
        assert len(message.splitlines()) == 1
    else:
        check(got, want)


@edits
@pytest.mark.parametrize("name", FEW)
def test_prompt_lookup(name, edit):
    model = sink_model(name)
    for row in tiny_rows(name, model, [(1, 3, 12), (2, 3, 12)]):
        options = {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1}
        assert torch.equal(bare(model, row, **options)[0], bare(model, row)[0])
        check(wrapped(model, row, edit, **options), wrapped(model, row, edit))


@edits
@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl"])
@needs_pre_encoding
def test_beams(name, edit):
    """Beams of a batch are the beams of single rows, and their scores add up along a plain wrapped forward."""
    model = sink_model(name)
    batch = [(1,), (2,)]
    inputs, rows = tiny_inputs(name, model, batch), tiny_rows(name, model, batch)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    with torch.no_grad():
        with la.wrap(model, *EDITS[edit]()):
            out = model.generate(**inputs, **options)
            parts = [model.generate(**row, **options) for row in rows]
    got = out.sequences[:, inputs["input_ids"].shape[1] :]
    for index, part in enumerate(parts):
        length = rows[index]["input_ids"].shape[1]
        pair = slice(2 * index, 2 * index + 2)
        assert torch.equal(part.sequences[:, length:], got[pair])
        assert torch.allclose(part.sequences_scores, out.sequences_scores[pair], atol=1e-4)
    # The score of a beam is the sum of the log probabilities that forced greedy steps give its tokens.
    for index, row in enumerate(rows):
        for beam in (0, 1):
            tokens = got[2 * index + beam].tolist()
            # transformers suppresses after the softmax, so compare with that.
            with torch.no_grad(), la.wrap(model, *EDITS[edit]()):
                _, logits = generate(model, row, 5, prefix_allowed_tokens_fn=Force(tokens).allowed)
            steps = logits[0].log_softmax(-1)
            score = sum(float(steps[step, token]) for step, token in enumerate(tokens))
            assert abs(score - float(out.sequences_scores[2 * index + beam])) < 1e-3


class Force:
    """Allows the given tokens one after the other."""

    def __init__(self, tokens):
        self.tokens, self.start = tokens, None

    def allowed(self, sample, ids):
        if self.start is None:
            self.start = len(ids)
        return [self.tokens[len(ids) - self.start]]


@edits
@pytest.mark.parametrize("name", ["internvl", "qwen2_vl"])
@needs_pre_encoding
def test_returned_sequences_of_one_prompt(name, edit):
    """Sampling several sequences with top-1 gives the greedy sequence each time."""
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    got = wrapped(model, inputs, edit, do_sample=True, top_k=1, num_return_sequences=2)
    ids, logits = singles(name, edit)
    check(got, (ids.repeat_interleave(2, 0), logits.repeat_interleave(2, 0)))


@edits
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_sampling_is_seeded_and_finite(name, edit):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(wrapped(model, inputs, edit, do_sample=True, temperature=1.5, top_k=0))
        assert torch.isfinite(draws[-1][1]).all()
    assert torch.equal(draws[0][0], draws[1][0])
    assert not torch.equal(draws[0][0], draws[2][0])


@edits
@pytest.mark.parametrize("name", NAMES)
def test_plain_forward_equals_the_prefill(name, edit):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad(), la.wrap(model, *EDITS[edit]()):
        _, logits = generate(model, inputs, 2)
        plain = model(**inputs).logits[:, -1]
    assert relative_error(logits[:, 0], plain.double()) < 1e-5


@edits
@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl", "qwen2_vl"])
def test_second_turn_with_the_cache_of_the_first(name, edit):
    """The layout goes on, heads stay chosen, and the second prompt's own words may be sinks from then on."""
    model, double = sink_model(name), twin(name)
    row = tiny_rows(name, model, [(1,)])[0]
    words = [31, 44, 12, 37]  # 12 has a massive activation

    def turns(wrap):
        with torch.no_grad(), wrap:
            first = model.generate(**row, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
            ids = torch.cat([first.sequences, torch.tensor([words])], dim=1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if "mm_token_type_ids" in row:
                inputs["mm_token_type_ids"] = (ids == IMAGE).int()
                inputs["image_grid_thw"] = row["image_grid_thw"]
            second, logits = generate(model, inputs, 4, past_key_values=first.past_key_values)
        return ids[0, length:].tolist() + second[0].tolist(), logits[0]

    length = row["input_ids"].shape[1]
    # The last token of the first answer has not been read before the second prompt is.
    later = range(length + 2, length + 3 + len(words))
    here = slice(length + 3 + len(words) - 1, length + 3 + len(words) + 3)
    tail, logits = turns(la.wrap(model))
    assert relative_error(logits, oracle(double, row, tail).logits[here]) < 1e-5
    rules = (VAR_RULE if edit != "vhr" else None, VHR_RULE if edit != "var" else None)
    tail, logits = turns(la.wrap(model, *EDITS[edit]()))
    truth = oracle(double, row, tail, *rules, later_prompts=later)
    assert relative_error(logits, truth.logits[here]) < 1e-5
    if edit == "var":
        assert any(set(later) & found for found in truth.sinks.values())


def test_right_padding_in_generate_is_not_silently_wrong():
    """Rows of a right-padded batch either equal single rows or the call is refused."""
    model = sink_model("llava")
    inputs = tiny_inputs("llava", model, [(1,), (2,)], side="right")
    assert (inputs["input_ids"][:, -1] == PAD).any()
    with torch.no_grad():
        with la.wrap(model, var(), vhr()):
            plain = model(**inputs).logits
        for index, row in enumerate(tiny_rows("llava", model, [(1,), (2,)])):
            with la.wrap(model, var(), vhr()):
                single = model(**row).logits[0]
            assert relative_error(plain[index, : len(single)], single.double()) < 2e-5
