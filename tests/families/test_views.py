"""Second views of a prompt in every new family: joined logits against each view read by itself in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import lvlm_attn as la
from tests.families.oracle import Case, cases, per_token, walk
from tests.oracle_setup import relative_error, sink_model
from tests.tiny import ALL_NAMES, KITS, NAMES, tiny_inputs, tiny_samples

BATCH = [(1,), (0,), (2,)]
TOKENS = 3
WORDS = [31, 45, 12, 77, 60]
NEW = [name for name in ALL_NAMES if name not in NAMES]


class Tokenizer:
    """Reads any text as the same words, put in behind the first token."""

    bos_token_id = 1

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return WORDS


class Pixels(la.Intervention):
    """Contrasts with other pixels."""

    def views(self, request: Any) -> Sequence[Any]:
        return (request.with_pixels(lambda pixels, index: pixels.flip(-1) * (1 + index) + 0.5),)

    def fuse(self, main: Tensor, views: Sequence[Tensor], step: int) -> Tensor:
        return 2 * main - views[0]


class Words(la.Intervention):
    """Adds the view without images."""

    def views(self, request: Any) -> Sequence[Any]:
        return (request.without_images(),)

    def fuse(self, main: Tensor, views: Sequence[Tensor], step: int) -> Tensor:
        return main + 0.5 * views[0]


class Longer(la.Intervention):
    """Contrasts with a longer prompt."""

    def views(self, request: Any) -> Sequence[Any]:
        return (request.with_instruction("any", "Longer"),)

    def fuse(self, main: Tensor, views: Sequence[Tensor], step: int) -> Tensor:
        return 1.5 * main - 0.5 * views[0]


def with_pixels(case: Case, sample: Any) -> Case:
    pictures = [
        type(one)(**{**vars(one), "pixels": one.pixels.flip(-1) * (1 + place) + 0.5})
        for place, one in enumerate(sample.pictures)
    ]
    row = case.row | KITS[case.name].images([pictures])
    return Case(case.name, row, case.image, case.prompt, case.blocks)


def with_words(case: Case) -> Case:
    ids = [case.ids[0], *WORDS, *case.ids[1:]]
    image = [case.image[0], *[None] * len(WORDS), *case.image[1:]]
    row = case.row | per_token(case.name, ids, len(ids))
    return Case(case.name, row, image, len(ids), case.blocks)


VIEWS = {
    "pixels": (Pixels, lambda main, view: 2 * main - view, with_pixels),
    "words": (Words, lambda main, view: main + 0.5 * view, lambda case, sample: case.without_images()),
    "longer": (Longer, lambda main, view: 1.5 * main - 0.5 * view, lambda case, sample: with_words(case)),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", NEW)
def test_joined_logits_equal_views_read_alone(name: str, view: str) -> None:
    kind, join, change = VIEWS[view]
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad(), la.wrap(model, kind(), processor=Tokenizer()) as lvlm:
        out = lvlm.generate(
            **inputs, max_new_tokens=TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    tokens, logits = out.sequences[:, -TOKENS:], torch.stack(out.logits, 1)
    samples = tiny_samples(name, model, BATCH)
    for index, (case, sample) in enumerate(zip(cases(name, BATCH), samples)):
        other = change(case, sample)
        pair = [
            walk(one.with_tokens(tokens[index])).logits[one.prompt - 1 : one.prompt - 1 + TOKENS]
            for one in (case, other)
        ]
        assert relative_error(logits[index], join(*pair)) < 5e-5
        if view == "longer" or (sample.pictures and view == "words"):
            assert relative_error(pair[1], pair[0]) > 1e-2  # so the equality can fail
