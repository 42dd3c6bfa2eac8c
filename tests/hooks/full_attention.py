"""An oracle: one forward over a whole sequence with dense attention, whose scores a test may edit."""

from contextlib import contextmanager

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.tiny import IMAGE

NAME = "dense_oracle"
EDIT = []


def _attend(module, query, key, value, mask, scaling, **kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    length = query.shape[2]
    assert key.shape[2] == length
    scores = query @ key.transpose(-1, -2) * scaling
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(future, -torch.inf)
    for edit in EDIT:
        scores = edit(module.layer_idx, scores)
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


@contextmanager
def dense(model, edit=None):
    """Runs the language model's attention densely; `edit(layer, scores)` changes `(1, heads, rows, keys)` scores."""
    config = model.model.language_model.config
    before = config._attn_implementation
    config._attn_implementation_internal = NAME
    EDIT.append(edit or (lambda layer, scores: scores))
    try:
        with torch.no_grad():
            yield
    finally:
        EDIT.pop()
        config._attn_implementation_internal = before


def extended(row, ids):
    """A single row with tokens added."""
    longer = {**row, "input_ids": torch.cat((row["input_ids"], ids), 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    if "mm_token_type_ids" in row:
        zeros = torch.zeros_like(ids, dtype=row["mm_token_type_ids"].dtype)
        longer["mm_token_type_ids"] = torch.cat((row["mm_token_type_ids"], zeros), 1)
    return longer


def image_positions(row):
    """Positions of all image tokens of a single row."""
    return (row["input_ids"][0] == IMAGE).nonzero().flatten()
