"""Image tokens inside an evaluation's questions: data made for one model says `<image>` where another wants none.

Where a picture stands is for the chat template to say, so they are taken out before anything is asked, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.prompts.template import Marks, without_image_tokens

METRIC = "image_tokens_removed"
"""What counts them in `metrics.json`; absent where there were none."""


def remove_image_tokens(samples: Sequence[Sample], processor: Any) -> tuple[list[Sample], int]:
    """The samples with prompts that name no images, and how many tokens were taken out."""
    marks = Marks.of(processor)
    kept: list[Sample] = []
    total = 0
    for sample in samples:
        text, count = without_image_tokens(sample.prompt, marks)
        kept.append(replace(sample, prompt=text) if count else sample)
        total += count
    return kept, total


def removed_sentence(metrics: Mapping[str, Any]) -> str | None:
    """What to tell the user about the questions of a run, or None if they held no image tokens."""
    count = metrics.get(METRIC)
    if not isinstance(count, int) or count < 1:
        return None
    return f"{count} image tokens were taken out of the questions; pictures stand where the chat template puts them"
