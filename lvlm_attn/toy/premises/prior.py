"""Premise 3: without the picture the model answers from what training scenes make likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from lvlm_attn.evals.chair.vocab import read_caption
from lvlm_attn.hooks.vcd import noisy
from lvlm_attn.prompts.chat import encode_prompts
from lvlm_attn.toy import contexts, vocabulary
from lvlm_attn.toy.data import POPULAR, TextConfig
from lvlm_attn.toy.premises.asking import Asked, Row, yes_margin
from lvlm_attn.toy.prompts import QUESTIONS, pope_question
from lvlm_attn.toy.recipe import BUNDLED
from lvlm_attn.toy.world import draw_context, draw_names, popular

_SCENES = 20_000
_CAPTIONS = 24
_NOISE_STEP = 900


def measure(model: Any, processor: Any, asked: Sequence[Asked]) -> list[Row]:
    """How yes without a picture follows training, and whether captions without one stay in a context."""
    names = vocabulary()
    margin = yes_margin(model, processor, None, [pope_question(name) for name in names])
    related = float(spearmanr(margin.numpy(), yes_share(BUNDLED.prior.unseen)).statistic)
    forms = QUESTIONS["caption"][:_CAPTIONS]
    chosen = [item.scene.image for item in asked[:: max(1, len(asked) // _CAPTIONS)]][: len(forms)]
    blind = typical_share(_captions(model, processor, None, forms))
    noise = typical_share(_captions(model, processor, chosen, forms[: len(chosen)]))
    chance, true = chance_share(), _fit([item.scene.names for item in asked])
    return [
        Row(
            "Prior: yes without a picture",
            f"rank correlation {related:.2f} with how often yes was right in training, over {len(names)} objects",
            "at least 0.3",
            related >= 0.3,
        ),
        Row(
            "Prior: captions without a picture",
            f"{blind:.0%} of the objects named without a picture fit one context, {noise:.0%} with noise at step "
            f"{_NOISE_STEP}; {chance:.0%} of objects drawn at random and {true:.0%} of those in dev scenes do",
            "nearer to dev scenes than to chance",
            min(blind, noise) >= (chance + true) / 2,
        ),
    ]


def yes_share(config: TextConfig) -> np.ndarray[Any, Any]:
    """How often yes is the right answer when training asks about each object of the vocabulary.

    Args:
        config: which absent objects are asked about.
    """
    names = list(vocabulary())
    rng = np.random.default_rng(0)
    yes, no = np.zeros(len(names)), np.zeros(len(names))
    kept = np.where(np.isin(names, popular(POPULAR)), config.popular_share, 1.0)
    for _ in range(_SCENES):
        context = draw_context(rng)
        present = set(draw_names(rng, context, int(rng.integers(2, 6))))
        for name in present:
            yes[names.index(name)] += 0.5 / len(present)
        weight = kept * np.where(np.isin(names, contexts()[context]), config.hard_share, 1.0)
        weight[[names.index(name) for name in present]] = 0
        no += 0.5 * weight / weight.sum()
    share: np.ndarray[Any, Any] = yes / (yes + no)
    return share


def typical_share(captions: Sequence[str]) -> float:
    """Share of the objects named that are typical of one context, the one that fits a caption best."""
    return _fit([sorted({item.node for item in read_caption(text).mentions}) for text in captions])


def chance_share() -> float:
    """The same for four objects drawn at random."""
    rng = np.random.default_rng(0)
    names = list(vocabulary())
    return _fit([[names[int(at)] for at in rng.choice(len(names), 4, replace=False)] for _ in range(500)])


def _fit(named: Sequence[Sequence[str]]) -> float:
    best = [max(sum(name in usual for name in found) for usual in contexts().values()) for found in named]
    return sum(best) / max(1, sum(map(len, named)))


@torch.no_grad()
def _captions(model: Any, processor: Any, images: Sequence[Any] | None, prompts: Sequence[str]) -> list[str]:
    inputs = encode_prompts(processor, images, prompts)
    if images is not None:
        inputs["pixel_values"] = torch.cat(
            [noisy(picture[None], _NOISE_STEP, seed) for seed, picture in enumerate(inputs["pixel_values"])]
        )
    tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    texts: list[str] = processor.batch_decode(
        tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return texts
