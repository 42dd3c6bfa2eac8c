"""CHAIR: which objects of a caption are not in the picture.

CHAIR_s is the share of captions with at least one hallucinated object, CHAIR_i the share of hallucinated
mentions among all object mentions, pooled over captions. Lower values with lower recall or length are no
progress, so recall, precision, F1 and length always come along. All shares are fractions of 1.

Sources: Rohrbach et al. 2018 (CHAIR_s, CHAIR_i); recall as in Maxlinn's CHAIR-metric-standalone; length as in
OPERA; precision (distinct objects, so not 1 - CHAIR_i) and F1 as in PAI.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.vocab import read_caption
from lvlm_attn.evals.core.parsers import without_reasoning

COLUMNS = ("bad_captions", "captions", "bad_mentions", "mentions", "recalled", "truth", "named", "tokens")
MAIN_METRICS = ("chair_s", "chair_i", "recall", "precision", "f1", "len")


@dataclass(frozen=True)
class Caption:
    """A generated caption.

    Attributes:
        image: key of the picture, as in the ground truth.
        text: the caption.
        truncated: whether it ended at the token limit; None where that is not known.
    """

    image: str
    text: str
    truncated: bool | None = None


@dataclass(frozen=True)
class CaptionScore:
    """One caption's counts.

    Attributes:
        image: key of the picture.
        totals: counts in the order of :data:`COLUMNS`, ready to be summed or resampled.
        hallucinated: categories mentioned that are not in the picture, once per mention.
        first_hallucination: token and sentence index of the first, or None.
        words_before: share of the caption's tokens before the first hallucination, or None.
    """

    image: str
    totals: tuple[int, ...]
    hallucinated: tuple[str, ...]
    first_hallucination: tuple[int, int] | None
    words_before: float | None


def drop_unfinished_sentence(text: str) -> str:
    """Cuts a caption after its last full stop, question or exclamation mark; without one it stays whole.

    Used with short token limits, where the last sentence breaks off (OPERA at 64 tokens).
    """
    ends = [found.end() for found in re.finditer(r"[.!?]+[\"')\]]*(?=\s|$)", text)]
    return text[: ends[-1]] if ends else text


def score_caption(caption: Caption, truth: Iterable[str], mode: str = "strict") -> CaptionScore:
    """Compares the objects of one caption with those in the picture."""
    present = set(truth)
    reading = read_caption(caption.text, mode)
    bad = [mention for mention in reading.mentions if mention.node not in present]
    named = {mention.node for mention in reading.mentions}
    totals = (
        int(bool(bad)),
        1,
        len(bad),
        len(reading.mentions),
        len(named & present),
        len(present),
        len(named),
        reading.tokens,
    )
    first = (bad[0].token, bad[0].sentence) if bad else None
    before = bad[0].token / reading.tokens if bad else None
    return CaptionScore(caption.image, totals, tuple(mention.node for mention in bad), first, before)


def metrics(totals: Sequence[float]) -> dict[str, float]:
    """Turns summed counts (order of :data:`COLUMNS`) into metrics; a quotient without a denominator is 0."""
    bad_captions, captions, bad_mentions, mentions, recalled, truth, named, tokens = totals
    recall, precision = _ratio(recalled, truth), _ratio(recalled, named)
    return {
        "chair_s": _ratio(bad_captions, captions),
        "chair_i": _ratio(bad_mentions, mentions),
        "recall": recall,
        "precision": precision,
        "f1": _ratio(2 * recall * precision, recall + precision),
        "len": _ratio(tokens, captions),
        "mentions_per_caption": _ratio(mentions, captions),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def score_chair(
    captions: Sequence[Caption],
    truth: Mapping[str, Iterable[str]],
    mode: str = "strict",
    drop_incomplete_sentence: bool = False,
    failed: int = 0,
) -> dict[str, Any]:
    """Scores captions against the objects known to be in each picture.

    Args:
        captions: the captions.
        truth: for each picture the categories in it.
        mode: how words become categories, see :mod:`lvlm_attn.evals.chair.vocab`.
        drop_incomplete_sentence: cut each caption after its last full stop first.
        failed: pictures left out because no caption could be generated; reported, not scored.

    Returns:
        One JSON-ready object: metrics as fractions of 1 (``len`` in tokens, punctuation counted, words of one
        object joined), counts, ``truncated`` (share that ended at the token limit, None if unknown), ``reasoning``
        (captions with a reasoning block, which only ``strict`` skips), where
        hallucination begins, and the categories hallucinated most.

    Raises:
        LvlmAttnError: nothing to score, or a caption whose picture has no ground truth.
    """
    if not captions:
        raise LvlmAttnError("there are no captions to score; did every sample fail?")
    scores = score_each(captions, truth, mode, drop_incomplete_sentence)
    totals = [sum(column) for column in zip(*(score.totals for score in scores), strict=True)]
    firsts = [score for score in scores if score.first_hallucination is not None]
    known = [caption.truncated for caption in captions if caption.truncated is not None]
    top = Counter(node for score in scores for node in score.hallucinated)
    return {
        "benchmark": "chair",
        "mode": mode,
        "drop_incomplete_sentence": drop_incomplete_sentence,
        **metrics(totals),
        "n": len(captions),
        "failed": failed,
        "reasoning": sum(without_reasoning(caption.text)[1] for caption in captions),
        "mentions": totals[3],
        "hallucinated_mentions": totals[2],
        "hallucinated_captions": totals[0],
        "truncated": _ratio(sum(known), len(known)) if known else None,
        "first_hallucination_token": _mean(
            [score.first_hallucination[0] for score in firsts if score.first_hallucination]
        ),
        "first_hallucination_sentence": _mean(
            [score.first_hallucination[1] for score in firsts if score.first_hallucination]
        ),
        "first_hallucination_at": _mean(
            [score.words_before for score in firsts if score.words_before is not None]
        ),
        "top_hallucinated": dict(top.most_common(10)),
    }


def score_each(
    captions: Sequence[Caption],
    truth: Mapping[str, Iterable[str]],
    mode: str = "strict",
    drop_incomplete_sentence: bool = False,
) -> list[CaptionScore]:
    """Scores caption by caption, for paired comparisons.

    Raises:
        LvlmAttnError: a caption whose picture has no ground truth.
    """
    missing = [caption.image for caption in captions if caption.image not in truth]
    if missing:
        raise LvlmAttnError(
            f"{len(missing)} captions have no ground truth (first: image {missing[0]}); "
            "add these pictures to the ground-truth file, or score with the one the captions belong to."
        )
    scores = []
    for caption in captions:
        text = drop_unfinished_sentence(caption.text) if drop_incomplete_sentence else caption.text
        scores.append(score_caption(Caption(caption.image, text), truth[caption.image], mode))
    return scores


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
