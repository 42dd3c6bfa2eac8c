"""What a recorder has to keep: transformers' own eager weights over the whole sequence, one unpadded row at a time."""

from functools import cache

import torch

from tests.doubled import Doubled
from tests.families.oracle import decoder_of
from tests.tiny import KITS, tiny_model


@cache
def sdpa_model(name):
    """In float64, so that nothing but a fault makes a difference."""
    return doubled_model(name, "sdpa")


@cache
def eager_model(name):
    return doubled_model(name, "eager")


def doubled_model(name, attn):
    model = tiny_model(name, dtype=torch.float64, attn=attn)
    for module in model.modules():
        if hasattr(module, "scalar_embed_scale"):  # Gemma keeps the root of a whole number in float32
            module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
    return model


def eager_weights(name, row, answer):
    """By layer `(heads, length, length)` of one unpadded row with its answer after it; softmax layers alone.

    Args:
        name: the family.
        row: inputs of one row, as `tiny_rows` gives them.
        answer: token ids that follow.
    """
    model = eager_model(name)
    ids = torch.cat((row["input_ids"], torch.as_tensor(answer, dtype=torch.long)[None]), 1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if KITS[name].per_token is not None:
        given |= KITS[name].per_token(ids, given["attention_mask"])
    if name == "paligemma":
        given["token_type_ids"][:, row["input_ids"].shape[1] :] = 1  # an answer is no part of the prefix
    given |= {key: value for key, value in doubled(row).items() if key not in given}
    with torch.no_grad(), Doubled():
        found = model(**given, output_attentions=True, use_cache=False).attentions
    layers = [index for index, one in enumerate(decoder_of(model).layers) if hasattr(one, "self_attn")]
    full = [one for one in found if one is not None and one.shape[-2:] == (ids.shape[1], ids.shape[1])]
    assert len(full) == len(layers)
    return {layer: one[0] for layer, one in zip(layers, full)}


def doubled(inputs):
    return {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}


def check_sample(name, maps, sample, row, sequence):
    """Every recorded row of a sample equals the eager row, key by key; padding gets nothing.

    Args:
        name: the family.
        maps: of the whole batch.
        sample: which sample.
        row: the same sample's inputs, unpadded.
        sequence: `(length,)`, the padded sequence that was generated or read.
    """
    valid = maps.layout.is_valid[sample]
    kept = valid.nonzero().flatten()
    prompt = row["input_ids"].shape[1]
    full = eager_weights(name, row, sequence[kept[prompt:]])
    place = {int(position): index for index, position in enumerate(kept)}
    count = 0
    for number, position in enumerate(maps.rows[sample].tolist()):
        for layer in maps.layers:
            got = maps.weights[layer][sample, :, number]
            if position < 0:
                assert not got.any()
                continue
            wanted = full[layer][:, place[position], : len(kept)][list(maps.heads)]
            assert float((got[:, kept].double() - wanted).abs().max()) < 1e-6
            assert not got[:, ~valid].any()
            count += 1
    return count
