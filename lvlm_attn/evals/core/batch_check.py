"""Whether a model answers in a batch what it answers alone.

With left padding and exact arithmetic it does. In half precision the order of additions changes with the shape of a
batch, and an answer that hangs on the last digit can flip: on LLaVA-1.5 two of MME's did at a batch of 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lvlm_attn.evals.core.plan import Group
from lvlm_attn.evals.core.runner import sample_seed
from lvlm_attn.prompts.images import as_image

if TYPE_CHECKING:
    from lvlm_attn.evals.core.answerer import ModelAnswerer

TOKENS = 8


def check_batch(answerer: ModelAnswerer, batch: Sequence[Group], seed: int = 0) -> dict[str, Any] | None:
    """Asks the shortest and the longest prompt of a batch together and alone.

    Args:
        answerer: the model, its interventions in place.
        batch: a batch of at least two prompts.
        seed: the run's seed.

    Returns:
        How many of the two answers differ in their first tokens, and by how much the probabilities of yes and no do
        (None where they are not kept); None where prompts go one by one anyway or pictures cannot be read.
    """
    if len(batch) < 2 or answerer.rows_at_once == 1:
        return None
    samples = [group[0] for group in sorted(batch, key=lambda group: len(group[0].prompt))]
    chosen = [samples[0], samples[-1]]
    try:
        images = [as_image(sample.image) for sample in chosen]
    except ValueError:
        return None
    prompts = [sample.prompt for sample in chosen]
    seeds = [sample_seed(seed, sample.sample_id) for sample in chosen]
    together = answerer.answer_prepared(answerer.prepare(images, prompts), seeds, TOKENS)
    alone = [
        answerer.answer_prepared(answerer.prepare([image], [prompt]), [own], TOKENS)[0]
        for image, prompt, own in zip(images, prompts, seeds, strict=True)
    ]
    gaps = [
        abs(first.first_token[word] - second.first_token[word])
        for first, second in zip(together, alone, strict=True)
        if first.first_token is not None and second.first_token is not None
        for word in first.first_token
    ]
    return {
        "prompts": len(chosen),
        "tokens": TOKENS,
        "differing": sum(
            first.raw_text != second.raw_text for first, second in zip(together, alone, strict=True)
        ),
        "largest_gap": max(gaps) if gaps else None,
    }


def batch_warning(found: dict[str, Any] | None) -> str | None:
    """What to tell the user about a check, or None if all is well."""
    if found is None or not found["differing"]:
        return None
    return (
        f"{found['differing']} of {found['prompts']} answers differ between a batch and the prompt alone, as happens "
        "in half precision; compare runs of one batch size only, or use --dtype float32 or --batch-size 1."
    )
