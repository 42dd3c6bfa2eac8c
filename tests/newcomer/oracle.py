"""Attention by its formula, registered with transformers by its public calls; nothing here knows of lvlm_attn."""

import copy
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "by_the_formula"
CHANGE = []


def _attend(module, query, key, value, mask, scaling, **kwargs):
    group = query.shape[1] // key.shape[1]
    key, value = (item.repeat_interleave(group, 1) for item in (key, value))
    scores = scaling * torch.einsum("bhqd,bhkd->bhqk", query, key)
    scores = CHANGE[-1](module.layer_idx, scores)
    scores = scores.masked_fill(mask[..., : key.shape[2]] < torch.finfo(mask.dtype).min / 2, -torch.inf)
    output = torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1), value)
    return output.contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, eager_mask)


def twin(model):
    """A copy in float64 whose language model attends by the formula."""
    double = copy.deepcopy(model).double()
    double.set_attn_implementation({"text_config": NAME})
    return double


@contextmanager
def changing(change):
    """Within the block, scores `(1, heads, queries, keys)` of a layer become `change(layer, scores)`."""
    CHANGE.append(change)
    try:
        yield
    finally:
        CHANGE.pop()


def leaning(ids, image_id, image, system, layers):
    """Scores of text after the first image token: times `image` at image tokens, `system` before the first of them."""
    is_image = [token == image_id for token in ids]

    def change(layer, scores):
        if layer not in layers or not any(is_image):
            return scores
        first, scores = is_image.index(True), scores.clone()
        for row in range(scores.shape[2]):
            for column in range(scores.shape[3]):
                if row > first and not is_image[row]:
                    factor = image if is_image[column] else system if column < first else 1
                    scores[:, :, row, column] *= factor
        return scores

    return change
