"""Premise 1: the first token and empty corners carry a massive activation, and draw attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lvlm_attn.hooks.var import VAR
from lvlm_attn.measures.diagnostics import find_sinks
from lvlm_attn.measures.sinks import sink_score
from lvlm_attn.toy.planting import Planted, marks
from lvlm_attn.toy.premises.asking import Asked, Row, batches
from lvlm_attn.toy.vision_stages import features
from lvlm_attn.wrapping import target_of

_HEAVY = 0.3  # of a row's attention


def measure(model: Any, processor: Any, planted: Planted, asked: Sequence[Asked]) -> list[Row]:
    """Whether ``find_sinks`` and VAR's test find what was planted, and how much attention it draws."""
    found = find_sinks(model, processor)
    fitted = VAR().fit(target_of(model, processor))
    assert fitted.tau is not None
    dims = [planted.dimension]
    hits = tested = fired = 0
    heavy: list[float] = []
    mass: list[float] = []
    model.set_attn_implementation("eager")
    inputs_of = batches(processor, [item.scene.image for item in asked], [item.text for item in asked])
    for inputs in inputs_of:
        with torch.no_grad():
            output = model(**inputs, output_attentions=True, output_hidden_states=True)
            fires = marks(model, features(model, inputs["pixel_values"]), planted) > 0.5
        is_image = inputs["input_ids"] == model.config.image_token_id
        for layer in planted.layers:
            score = sink_score(output.hidden_states[layer], dims)
            is_sink = (score >= fitted.tau) & inputs["attention_mask"].bool()
            on_patches = is_sink[is_image].view(fires.shape)
            hits += int((on_patches & fires).sum())
            tested += int(on_patches.sum())
            fired += int(fires.sum())
            last = is_image.nonzero()[:, 1].view(len(is_image), -1)[:, -1].max()
            rows = output.attentions[layer][:, :, int(last) + 1 :]
            drawn = (rows * is_sink[:, None, None]).sum(-1)
            heavy.append(float((drawn > _HEAVY).float().mean()))
            mass.append(float(drawn.mean()))
    model.set_attn_implementation("sdpa")
    precision, recall = hits / max(1, tested), hits / max(1, fired)
    share, mean = sum(heavy) / len(heavy), sum(mass) / len(mass)
    is_found = found.dims == (planted.dimension,) and found.is_confident
    return [
        Row(
            "Sinks: one dimension marks them",
            f"find_sinks gives {', '.join(map(str, found.dims))} (score {max(found.scores):.1f}"
            f"{', sure' if found.is_confident else ', not sure'}); planted: {planted.dimension}",
            "the planted dimension, surely",
            is_found,
        ),
        Row(
            "Sinks: VAR's test finds the marked patches",
            f"precision {precision:.3f}, recall {recall:.3f} ({fired // max(1, len(planted.layers))} marked patches in "
            f"{len(asked)} prompts)",
            "both at least 0.95",
            min(precision, recall) >= 0.95,
        ),
        Row(
            "Sinks: they draw attention",
            f"{share:.0%} of text rows and heads in layers {planted.layers[0]} to {planted.layers[-1]} put more than "
            f"30 % on them; {mean:.0%} on average",
            "at least 20 % of rows",
            share >= 0.2,
        ),
    ]
