"""The tiny models are fit to test with: batches equal rows, backends agree, attention is far from uniform."""

from functools import cache

import pytest
import torch

from tests.tiny import NAMES, tiny_inputs, tiny_model, tiny_rows

BATCH = [(1,), (0,), (2,), (1, 0, 9)]
model_of = cache(tiny_model)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_batch_rows_equal_rows_alone(name: str, side: str) -> None:
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH, side)  # type: ignore[arg-type]
    with torch.no_grad():
        logits = model(**inputs).logits
        for row, single in enumerate(tiny_rows(name, model, BATCH)):
            valid = inputs["attention_mask"][row].bool()
            torch.testing.assert_close(logits[row][valid], model(**single).logits[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_generated_rows_equal_rows_alone(name: str) -> None:
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    rows = tiny_rows(name, model, BATCH)
    for beams in (1, 2):
        options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams}
        batch = model.generate(**inputs, **options)
        for row, single in enumerate(rows):
            assert torch.equal(batch[row, -4:], model.generate(**single, **options)[0, -4:])


@pytest.mark.parametrize("name", NAMES)
def test_eager_attention_agrees_and_is_not_uniform(name: str) -> None:
    model, eager = model_of(name), tiny_model(name, attn="eager")
    inputs = tiny_inputs(name, model, [(1,)])
    with torch.no_grad():
        out = eager(**inputs, output_attentions=True)
        torch.testing.assert_close(out.logits, model(**inputs).logits, atol=2e-5, rtol=1e-4)
    text = model.config.text_config
    assert text.num_key_value_heads < text.num_attention_heads
    last = torch.stack([weights[0, :, -1] for weights in out.attentions])
    entropy = -(last * last.clamp_min(1e-30).log()).sum(-1)
    assert entropy.mean() < 0.85 * torch.log(torch.tensor(last.shape[-1] * 1.0))


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_model_and_other_seed_another(name: str) -> None:
    first = model_of(name).state_dict()
    again = tiny_model(name).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = tiny_model(name, seed=1).state_dict()
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
