"""Losses and gradients of the lean language model are those of transformers' own, in one process or in parts."""

import numpy as np
import pytest
import torch

from lvlm_attn.toy.data import TextConfig, draw_batch
from lvlm_attn.toy.language_stage import answer_loss, answers_loss, embed_batch, name_weights
from lvlm_attn.toy.lean_text import lean_hidden
from lvlm_attn.toy.model import ModelSizes, build_model
from lvlm_attn.toy.pair_texts import draw_pair_batch
from lvlm_attn.toy.pool import Fact, SceneFacts
from lvlm_attn.toy.team import Team
from lvlm_attn.toy.tokenizer import build_tokenizer, token_ids

SIZES = ModelSizes(image=48, vision_width=32, vision_layers=1, vision_heads=2, width=64, layers=3, inner=96)
SCENES = [
    SceneFacts("kitchen", (Fact("fork", 0.1, 0.1, 0.1, 1, 1), Fact("cup", 0.8, 0.6, 0.1, 1, 1))),
    SceneFacts("farm", (Fact("dog", 0.4, 0.9, 0.1, 1, 1),)),
    SceneFacts("farm", (Fact("sheep", 0.4, 0.2, 0.1, 1, 1), Fact("dog", 0.7, 0.2, 0.1, 1, 1))),
    SceneFacts("kitchen", (Fact("cup", 0.5, 0.5, 0.1, 1, 1),)),
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_model(SIZES, token_ids(tokenizer), seed=0)


def drawn(tokenizer, what):
    """A batch of one kind, and the features it needs."""
    rng = np.random.default_rng(3)
    generator = torch.Generator().manual_seed(1)
    kinds = {"yes_no": (1.0, 0.0), "caption": (0.0, 0.0)}
    kind, shares, pictures = what
    yes_no, places = kinds[kind]
    config = TextConfig(yes_no=yes_no, places=places, text_only=float(pictures == 0), turns=3)
    if pictures == 2:
        _, batch = draw_pair_batch(rng, tokenizer, SCENES, config, SIZES.patches, shares)
    else:
        _, batch = draw_batch(rng, tokenizer, SCENES, config, SIZES.patches, shares=shares)
    openings = len(batch.input_ids) // batch.shares
    if pictures == 0:
        return batch, None
    return batch, torch.randn(openings, pictures * SIZES.patches, SIZES.vision_width, generator=generator)


def gradients(model, losses):
    """What the losses give together: their sum and its gradients."""
    model.zero_grad(set_to_none=True)
    total = sum(losses)
    total.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return float(total.detach()), found


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        assert torch.allclose(found[1][name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max())), name


CASES = [
    ("yes_no", 1, 1), ("caption", 1, 1), ("yes_no", 2, 1), ("caption", 3, 1),
    ("yes_no", 2, 2), ("caption", 4, 2), ("yes_no", 1, 0), ("caption", 2, 0),
]  # fmt: skip


@pytest.mark.parametrize("what", CASES, ids=lambda what: "-".join(map(str, what)))
def test_loss_and_gradients_are_those_of_the_plain_model(model, tokenizer, what):
    batch, features = drawn(tokenizer, what)
    weight = name_weights(tokenizer, 5.0) if what[0] == "caption" else None
    text = model.model.language_model
    hidden = text(inputs_embeds=embed_batch(model, batch, features), use_cache=False).last_hidden_state
    plain, right = answers_loss(model, hidden, batch, weight)
    lean, lean_right = answer_loss(model, batch, features, weight)
    assert lean_right == pytest.approx(right)
    assert_same(gradients(model, [lean]), gradients(model, [plain]))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("what", [("yes_no", 1, 1), ("caption", 2, 1), ("yes_no", 2, 2), ("caption", 1, 0)])
def test_parts_add_up_to_the_whole_and_none_is_nothing(model, tokenizer, what, size):
    batch, features = drawn(tokenizer, what)
    weight = name_weights(tokenizer, 5.0)
    whole, right = answer_loss(model, batch, features, weight)
    parts = [answer_loss(model, batch, features, weight, Team(rank, size)) for rank in range(size)]
    assert sum(part[1] for part in parts) == pytest.approx(right)
    assert_same(gradients(model, [part[0] for part in parts]), gradients(model, [whole]))


def test_a_conversation_neither_sees_another_nor_what_comes_after(model):
    text = model.model.language_model
    generator = torch.Generator().manual_seed(0)
    opening = torch.randn(1, 5, 64, generator=generator)
    words = torch.randn(2, 6, 64, generator=generator)
    is_asked = torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad():
        before = lean_hidden(text, opening, words, is_asked).view(2, 6, 64)
        words[1] += 1
        words[0, 4:] += 1
        after = lean_hidden(text, opening, words, is_asked).view(2, 6, 64)
    assert torch.allclose(before[0, :4], after[0, :4], atol=1e-5)
    assert not torch.allclose(before[0, 4:], after[0, 4:], atol=1e-2)
    assert not torch.allclose(before[1], after[1], atol=1e-2)
