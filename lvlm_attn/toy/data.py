"""Training conversations about the toy's scenes, as token ids with the answers marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lvlm_attn.toy.captions import CaptionConfig, draw_caption, place_of
from lvlm_attn.toy.pool import Fact, SceneFacts
from lvlm_attn.toy.prompts import SUFFIXES, draw_question
from lvlm_attn.toy.sprites import vocabulary
from lvlm_attn.toy.world import Rng, contexts, popular

#: How many objects count as common.
POPULAR = 20


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class TextConfig:
    """What the training conversations are made of.

    Attributes:
        yes_no: Share of conversations of yes/no questions.
        places: Share of conversations of where- and counting questions; the rest are captions.
        text_only: Share of conversations that come without their picture.
        turns: Yes/no questions per picture.
        hard_share: How often an absent object that is typical of the context is kept as a question; the others are
            always kept. Low values leave the model to its habits.
        popular_share: The same for an absent object among the 20 most frequent ones. Low values make yes the likely
            answer to a question about a common object.
        pope_share: How many yes/no questions are in POPE's own words.
        suffix_share: How often a yes/no question ends with a request for one word.
        coin_flips: Whether yes/no questions without a picture are answered at random; otherwise truly, so that
            what training scenes make likely is learned.
        caption: How untrue the captions are.
        pairs: Share of conversations about two pictures in one prompt.
        cross_share: How many of the questions about one of two pictures whose answer is no name an object of the other.
    """

    yes_no: float = 0.6
    places: float = 0.1
    text_only: float = 0.03
    turns: int = 8
    hard_share: float = 0.15
    popular_share: float = 1.0
    pope_share: float = 0.5
    suffix_share: float = 0.25
    coin_flips: bool = True
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    pairs: float = 0.0
    cross_share: float = 0.5


@dataclass(frozen=True)
class Batch:
    """A batch of conversations of equal length after padding on the right.

    Attributes:
        input_ids: (batch, length) token ids.
        labels: (batch, length) the ids of the answers, -100 elsewhere.
        image_starts: Position of the first token of each picture, the same in every row; pictures follow each other.
            Empty without pictures.
        first_word: Position of the first token after the opening and the pictures.
        shares: How many conversations, one after another, are about the same pictures.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    image_starts: tuple[int, ...]
    first_word: int
    shares: int = 1

    def rows(self, chosen: slice) -> Batch:
        """Some of the rows, of a batch whose conversations share no pictures."""
        return replace(self, input_ids=self.input_ids[chosen], labels=self.labels[chosen])


def yes_no_turns(rng: Rng, facts: SceneFacts, config: TextConfig, classes: int | None = None) -> list[Turn]:
    """Draws yes/no questions about what is in the picture, yes as likely as no.

    Args:
        rng: Source of randomness.
        facts: The scene.
        config: How many, and how hard the negatives are.
        classes: Ask only about the first so many categories (for a curriculum).
    """
    present = sorted({fact.name for fact in facts.objects})
    typical = set(contexts()[facts.context])
    absent = [name for name in vocabulary()[:classes] if name not in present and name not in facts.unsure]
    turns = []
    for _ in range(config.turns):
        suffix = yes_no_suffix(rng, config)
        if rng.random() < 0.5 and present:
            name, answer = present[int(rng.integers(len(present)))], "Yes"
        else:
            name, answer = absent[int(rng.integers(len(absent)))], "No"
            while classes is None and _is_dropped(rng, name, typical, config):
                name = absent[int(rng.integers(len(absent)))]
        turns.append(Turn(draw_question(rng, "exists", name, config.pope_share) + suffix, answer))
    return turns


def yes_no_suffix(rng: Rng, config: TextConfig) -> str:
    """Draws what a yes/no question ends with: mostly nothing."""
    return f" {SUFFIXES[int(rng.integers(len(SUFFIXES)))]}" if rng.random() < config.suffix_share else ""


def place_turns(rng: Rng, facts: SceneFacts, config: TextConfig) -> list[Turn]:
    """Draws questions about where objects are and how many there are."""
    counted = Counter(fact.name for fact in facts.objects)
    single = [fact for fact in facts.objects if counted[fact.name] == 1]
    turns: list[Turn] = []
    for _ in range(max(1, config.turns * 2 // 3)):
        if single and rng.random() < 0.75:
            turns.append(_where(rng, single[int(rng.integers(len(single)))]))
        else:
            name = sorted(counted)[int(rng.integers(len(counted)))]
            suffix = f" {SUFFIXES[int(rng.integers(2))]}" if rng.random() < config.suffix_share else ""
            turns.append(Turn(f"{draw_question(rng, 'count', name)}{suffix}", str(counted[name])))
    return turns


def caption_turns(rng: Rng, facts: SceneFacts, config: TextConfig) -> list[Turn]:
    """Draws a request for a caption and the caption."""
    short = bool(rng.random() < config.caption.short_share)
    question = draw_question(rng, "short" if short else "caption")
    return [Turn(question, draw_caption(rng, facts, config.caption, short))]


def draw_kind(rng: Rng, config: TextConfig) -> str:
    """Draws what a batch is made of: "yes_no", "places" or "caption"."""
    value = rng.random()
    if value < config.yes_no:
        return "yes_no"
    return "places" if value < config.yes_no + config.places else "caption"


def encode(
    tokenizer: Any,
    conversations: Sequence[Sequence[Turn]],
    patches: int,
    pictures: int = 1,
    shares: int = 1,
) -> Batch:
    """Turns conversations into token ids, padded on the right, in the words of the processor's chat template.

    Args:
        tokenizer: The toy's tokenizer.
        conversations: Turns of each row.
        patches: Image tokens of a picture.
        pictures: How many pictures a row begins with.
        shares: How many rows, one after another, are about the same pictures.
    """
    backend = tokenizer.backend_tokenizer
    image = tokenizer.convert_tokens_to_ids("<image>")

    def ids_of(text: str) -> list[int]:
        found: list[int] = backend.encode(text, add_special_tokens=False).ids
        return found

    opening = [tokenizer.bos_token_id, *ids_of("USER:")]
    rows: list[list[int]] = []
    marks: list[list[int]] = []
    for turns in conversations:
        ids = [*opening, *([image] * patches * pictures)]
        mark = [-100] * len(ids)
        for number, turn in enumerate(turns):
            asked = ids_of(f"{'USER: ' if number else ''}{turn.question} ASSISTANT:")
            answered = [*ids_of(turn.answer), tokenizer.eos_token_id]
            ids += [*asked, *answered]
            mark += [*([-100] * len(asked)), *answered]
        rows.append(ids)
        marks.append(mark)
    longest = max(len(row) for row in rows)
    padded = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
    marked = [mark + [-100] * (longest - len(mark)) for mark in marks]
    starts = tuple(len(opening) + number * patches for number in range(pictures))
    first_word = len(opening) + pictures * patches
    return Batch(torch.tensor(padded), torch.tensor(marked), starts, first_word, shares)


def draw_batch(
    rng: Rng,
    tokenizer: Any,
    facts: Sequence[SceneFacts],
    config: TextConfig,
    patches: int,
    classes: int | None = None,
    shares: int = 1,
) -> tuple[str, Batch]:
    """Draws conversations about scenes, all of one kind, so that rows have similar lengths.

    Args:
        rng: Source of randomness.
        tokenizer: The toy's tokenizer.
        facts: The scenes.
        config: What conversations are made of.
        patches: Image tokens of a picture.
        classes: Restrict yes/no questions to the first so many categories (for a curriculum).
        shares: Conversations per scene.

    Returns:
        The kind and the batch.
    """
    facts = [scene for scene in facts for _ in range(shares)]
    kind = draw_kind(rng, config)
    with_image = bool(rng.random() >= config.text_only)
    if kind == "yes_no":
        rows = [yes_no_turns(rng, scene, config, classes) for scene in facts]
        if not with_image and config.coin_flips:
            rows = [_blind(rng, turns) for turns in rows]
    elif kind == "places":
        rows = [place_turns(rng, scene, config) for scene in facts]
    else:
        rows = [caption_turns(rng, scene, config) for scene in facts]
    return kind, encode(tokenizer, rows, patches, int(with_image), shares if with_image else 1)


def pick_rows(rng: Rng, count: int, batch: int) -> np.ndarray[Any, Any]:
    """Draws which scenes of a pool a step uses, in ascending order for the disk's sake."""
    return np.sort(rng.choice(count, min(batch, count), replace=False))


def _is_dropped(rng: Rng, name: str, typical: set[str], config: TextConfig) -> bool:
    """Whether a question about an absent object is left out, so that another is asked."""
    if name in typical and rng.random() >= config.hard_share:
        return True
    return config.popular_share < 1 and name in popular(POPULAR) and rng.random() >= config.popular_share


def _blind(rng: Rng, turns: list[Turn]) -> list[Turn]:
    """Without a picture every answer is a guess."""
    return [Turn(turn.question, "Yes" if rng.random() < 0.5 else "No") for turn in turns]


def _where(rng: Rng, fact: Fact) -> Turn:
    value = rng.random()
    if value < 0.4 and abs(fact.x - 0.5) > 0.06:
        return Turn(draw_question(rng, "side", fact.name), "Left" if fact.x < 0.5 else "Right")
    if value < 0.7 and abs(fact.y - 0.5) > 0.06:
        return Turn(draw_question(rng, "level", fact.name), "Top" if fact.y < 0.5 else "Bottom")
    answer = place_of(fact)
    return Turn(draw_question(rng, "where", fact.name), answer[0].upper() + answer[1:])
