"""Which samples are asked together: decided for a whole benchmark before anything is asked.

What a model says can depend, in its last digits, on what it is asked beside. So batches are cut from all samples and
not from those that happen to be left: a run that was stopped, one with several ranks, and one in a single go ask the
same batches, and write the same lines.
"""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.prompts.images import image_area

Group = list[Sample]
"""Samples with one picture and one prompt, which take one answer."""
_WINDOW = 32
"""Samples change places within so many batches, so that a run still goes through its benchmark from front to back."""


def groups(samples: Sequence[Sample], share_identical: bool) -> list[Group]:
    """Samples that are asked as one, in order of their first."""
    if not share_identical:
        return [[sample] for sample in samples]
    found: dict[tuple[str, str], Group] = {}
    for sample in samples:
        found.setdefault((sample.image_name, sample.prompt), []).append(sample)
    return list(found.values())


def batches(samples: Sequence[Sample], batch_size: int, share_identical: bool) -> list[list[Group]]:
    """Cuts a benchmark into batches: questions about one picture together, prompts of about the same length.

    A picture is encoded once for all questions of its batch, and little is padded.

    Args:
        samples: all samples.
        batch_size: groups per batch.
        share_identical: whether equal prompts about equal pictures are one.
    """
    found: list[list[Group]] = []
    listed = groups(samples, share_identical)
    sizes: dict[str, int] = {}
    for start in range(0, len(listed), batch_size * _WINDOW):
        window = listed[start : start + batch_size * _WINDOW]
        if batch_size > 1:
            window = _sorted(window, sizes)
        found += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return found


def _sorted(window: Sequence[Group], sizes: dict[str, int]) -> list[Group]:
    """By size of picture, then by its longest question, then by picture; questions about one picture by length."""
    longest: dict[str, int] = {}
    for group in window:
        name, length = group[0].image_name, len(group[0].prompt)
        longest[name] = max(longest.get(name, 0), length)
    first = {name: place for place, name in enumerate(longest)}

    def key(group: Group) -> tuple[int, int, int, int]:
        name = group[0].image_name
        return _pixels(group[0], sizes), longest[name], first[name], len(group[0].prompt)

    return sorted(window, key=key)


def _pixels(sample: Sample, known: dict[str, int]) -> int:
    """Size of a picture, which in many models decides its number of tokens; 0 where it cannot be read."""
    if sample.image_name not in known:
        known[sample.image_name] = image_area(sample.image)
    return known[sample.image_name]


def left_to_ask(
    planned: Sequence[Sequence[Group]], answered: set[str], present: set[str]
) -> list[list[Group]]:
    """The batches that still have to be asked.

    A batch of which a sample was never asked comes whole, so that its answers are those of an uninterrupted run; of
    a batch in which samples failed, only these are tried again.

    Args:
        planned: all batches.
        answered: ids with an answer.
        present: ids with an answer or an error.
    """
    found = []
    for batch in planned:
        lacking = [group for group in batch if any(sample.sample_id not in answered for sample in group)]
        if any(sample.sample_id not in present for group in lacking for sample in group):
            found.append(list(batch))
        elif lacking:
            found.append(lacking)
    return found
