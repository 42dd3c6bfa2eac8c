"""What a mask says of padding, however it is given, and caches that hold more than was processed."""

import pytest
import torch
from transformers import DynamicCache

import lvlm_attn as la
from lvlm_attn.errors import UnsupportedError
from lvlm_attn.runtime.arguments import has_dense_mask, padding_mask
from tests.tiny import tiny_inputs, tiny_model

PADDING = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]).bool()


def dense(queries, start, columns, kind):
    """The mask of `queries` from `start` on over `columns` keys, of which the last may not be written yet."""
    valid = torch.nn.functional.pad(PADDING, (0, max(columns - PADDING.shape[1], 0)))[:, :columns]
    index = torch.arange(columns)
    mask = (index <= index[start : start + queries, None]) & valid[:, None]
    if kind == "bool":
        return mask[:, None]
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo().min)[:, None]


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("columns", [7, 12])
@pytest.mark.parametrize(("start", "length"), [(0, 7), (0, 4), (3, 4), (3, 2), (6, 1)])
def test_a_dense_mask_says_what_the_padding_mask_says(kind, columns, start, length):
    want = padding_mask({"attention_mask": PADDING.long()}, {}, length, start)
    assert torch.equal(want != 0, PADDING[:, start : start + length])
    given = {"attention_mask": dense(7 - start, start, columns, kind)}
    assert has_dense_mask(given)
    assert torch.equal(padding_mask(given, {}, length, start), want != 0)
    assert torch.equal(padding_mask({}, given, length, start), want != 0)
    per_kind = {"attention_mask": {"sliding_attention": None, "full_attention": given["attention_mask"]}}
    assert torch.equal(padding_mask(per_kind, {}, length, start), want != 0)
    only = {"attention_mask": {"sliding_attention": given["attention_mask"]}}
    assert torch.equal(padding_mask(only, {}, length, start), want != 0)


def test_no_mask_says_nothing():
    assert padding_mask({}, {"attention_mask": None}, 3) is None
    assert not has_dense_mask({"attention_mask": PADDING})


def test_a_later_turn_with_a_dense_mask_of_the_callers_own():
    """Two rows, the first padded on the left; the second turn's mask is queries by keys."""
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, [(1, 2, 3), (1, 4, 5)])
    words, start = torch.tensor([[20, 21, 22], [23, 24, 25]]), inputs["input_ids"].shape[1]
    valid = torch.cat([inputs["attention_mask"], torch.ones(2, 3, dtype=torch.long)], 1)
    columns = torch.arange(start + 3)
    own = ((columns <= columns[start:, None]) & valid.bool()[:, None])[:, None]
    # Positions are given, since a mask of queries by keys says nothing of them.
    position = (valid.cumsum(1) - 1)[:, start:]
    logits = []
    for mask in (valid, own):
        with torch.no_grad(), la.wrap(model, la.PAI(alpha=0.5, gamma=1.0)):
            cache = model(**inputs, use_cache=True).past_key_values
            given = {"input_ids": words, "attention_mask": mask, "position_ids": position}
            logits.append(model(**given, past_key_values=cache).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        bare = model(
            input_ids=words, attention_mask=valid, position_ids=position, past_key_values=cache
        ).logits
    assert (bare - logits[0]).abs().max() > 1e-3


def test_a_cache_that_holds_more_than_was_processed_is_refused():
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    word = torch.tensor([[20]])
    with torch.no_grad(), la.wrap(model, la.PAI(alpha=0.5, gamma=1.0)):
        cache = model(**inputs, past_key_values=DynamicCache(), use_cache=True).past_key_values
        length = cache.get_seq_length()
        model(input_ids=word, past_key_values=cache)
        for index, layer in enumerate(cache.layers):
            cache.update(layer.keys[:, :, -1:].clone(), layer.values[:, :, -1:].clone(), index)
        assert cache.get_seq_length() == length + 2
        with pytest.raises(UnsupportedError, match=f"holds {length + 2} tokens that were not processed"):
            model(input_ids=word, past_key_values=cache)
        other = model(**inputs, past_key_values=DynamicCache(), use_cache=True).past_key_values
        assert other.get_seq_length() == length
        cache.crop(-2)
        for _ in range(2):  # being refused does not make a cache known
            with pytest.raises(UnsupportedError, match="not processed inside this wrap"):
                model(input_ids=word, past_key_values=cache)
        model(input_ids=word, past_key_values=other)
