"""What CARVE reads of attention, in every new family, against the rows of a float64 walk."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lvlm_attn.maps.reading import read_attention
from lvlm_attn.prompts.request import Request
from lvlm_attn.wrapping import target_of
from tests.families.oracle import Case, cases, per_token, plain, walk
from tests.oracle_setup import sink_model
from tests.tiny import ALL_NAMES, NAMES, tiny_inputs

NEW = [name for name in ALL_NAMES if name not in NAMES]
BATCH = [(1,), (0,), (2,)]
LAYERS = (1, 3)


def last_rows(case: Case) -> Tensor:
    """`(layers, positions)`: weights of the last position, the mean over heads."""
    seen: dict[int, Tensor] = {}

    def look(layer: int, scores: Tensor, may_read: Tensor, stream: Tensor) -> Tensor:
        weights = plain(layer, scores, may_read, stream)
        seen[layer] = weights[:, -1].mean(0)
        return weights

    walk(case, look)
    return torch.stack([seen[layer] for layer in LAYERS])


def with_other_end(case: Case) -> Case:
    ids = [*case.ids[:-2], 33, 44]
    return dataclasses.replace(case, row=case.row | per_token(case.name, ids, len(ids)))


@pytest.mark.parametrize("name", NEW)
def test_two_questions_about_the_same_images(name: str) -> None:
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH, "left")
    ids = inputs["input_ids"].clone()
    ids[:, -2:] = torch.tensor([33, 44])
    target = target_of(model)
    requests = [Request.of_tensors(target, one) for one in (inputs, inputs | {"input_ids": ids})]
    found: Any = read_attention(requests, LAYERS)
    for index, case in enumerate(cases(name, BATCH)):
        for maps, one in zip(found, (case, with_other_end(case))):
            if not any(image is not None for image in case.image):
                assert maps[index] == []
                continue
            want = last_rows(one)[:, [place for place in range(len(one)) if one.is_patch(place)]].numpy()
            got = np.concatenate(
                [block[0].reshape(len(LAYERS), -1) for image in maps[index] for block in image], 1
            )
            assert np.abs(got - want).max() < 1e-5
