"""The loss on captions that name an object again."""

import numpy as np
import pytest
import torch

from lvlm_attn.toy.data import Turn, encode
from lvlm_attn.toy.repeats import again_loss
from lvlm_attn.toy.tokenizer import build_tokenizer, object_ids


def test_a_name_that_comes_again_costs_what_is_left_for_others():
    """By hand: before "cup" a quarter goes to "dog"; before the second "dog" nothing counts, nor before the first."""
    tokenizer = build_tokenizer()
    turn = Turn("Describe the image.", "A dog and a cup. The dog is at the left.")
    batch = encode(tokenizer, [[turn], [turn]], patches=4)
    names = torch.tensor(object_ids(tokenizer))
    answers = batch.labels[:1, 1:][batch.labels[:1, 1:] != -100]
    logits = torch.full((len(answers), len(tokenizer)), -50.0)
    logits[torch.arange(len(answers)), answers] = 0.0
    dog, cup = tokenizer.convert_tokens_to_ids(["dog", "cup"])
    logits[answers.tolist().index(cup), dog] = -float(np.log(3))
    logits[answers.tolist().index(dog), cup] = 2.0
    part = again_loss(logits, batch, slice(0, 1), names)
    assert float(part) == pytest.approx(-np.log(0.75) / 2, rel=1e-5)
    both = again_loss(torch.cat([logits, logits]), batch, slice(None), names)
    assert float(both) == pytest.approx(2 * float(part))
