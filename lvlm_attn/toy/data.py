"""Training conversations about the toy's scenes, as token ids with the answers marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lvlm_attn.toy.captions import CaptionConfig, draw_caption, place_of
from lvlm_attn.toy.pool import Fact, SceneFacts
from lvlm_attn.toy.prompts import SUFFIXES, draw_question
from lvlm_attn.toy.sprites import vocabulary
from lvlm_attn.toy.tokenizer import object_ids
from lvlm_attn.toy.world import Rng, contexts, popular

#: How many objects count as common.
POPULAR = 20
#: How the two pictures of a prompt are called, in their order.
ORDINALS = ("first", "second")
#: Stands for the category of an object that a question names and the picture does not show.
ABSENT = 10_000


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        question: What is asked.
        answer: What is to be said.
        which: Which of two pictures it is about, 0 or 1; None where it is about all that there are.
        is_there: Whether the picture shows the object that the question names; None where that is not so simple.
    """

    question: str
    answer: str
    which: int | None = None
    is_there: bool | None = None


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
        image_starts: Position of the first token of each picture, the same in every row. Empty without pictures.
        first_word: Position of the first token after the opening and the pictures.
        shares: How many conversations, one after another, are about the same pictures.
        which: (batch, length) which picture a word is about once that was said, 0 or 1; -1 elsewhere. None where a
            conversation has one picture.
        named: (batch, length) at the name of an object in a question about one picture: which category if the picture
            shows it, ``ABSENT`` if not; -1 elsewhere.
        read: (batch, length) at the last token of such a question: where the name stands; -1 elsewhere.
        told: (batch, length) at names: where "first" or "second" stands; -1 elsewhere. None like ``which``.
        saying: (batch, length) before a token of an answer that names an object: which category; -1 elsewhere.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    image_starts: tuple[int, ...]
    first_word: int
    shares: int = 1
    which: torch.Tensor | None = None
    named: torch.Tensor | None = None
    read: torch.Tensor | None = None
    told: torch.Tensor | None = None
    saying: torch.Tensor | None = None

    @property
    def pictures(self) -> list[slice]:
        """Positions of each picture."""
        if not self.image_starts:
            return []
        size = self.first_word - self.image_starts[-1]
        return [slice(start, start + size) for start in self.image_starts]

    def rows(self, chosen: slice) -> Batch:
        """Some of the rows, of a batch whose conversations share no pictures."""
        parts = (self.which, self.named, self.read, self.told, self.saying)
        kept = (None if item is None else item[chosen] for item in parts)
        return Batch(
            self.input_ids[chosen],
            self.labels[chosen],
            self.image_starts,
            self.first_word,
            self.shares,
            *kept,
        )


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
        question = draw_question(rng, "exists", name, config.pope_share) + suffix
        turns.append(Turn(question, answer, is_there=answer == "Yes"))
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
            question = f"{draw_question(rng, 'count', name)}{suffix}"
            turns.append(Turn(question, str(counted[name]), is_there=True))
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

    opening, starts = [tokenizer.bos_token_id, *ids_of("USER:")], []
    for number in range(pictures):
        opening += ids_of(f"Image {number + 1}:") if pictures > 1 else []
        starts.append(len(opening))
        opening += [image] * patches
    words = _Words(
        tokenizer.convert_tokens_to_ids(list(ORDINALS)),
        {word: at for at, word in enumerate(object_ids(tokenizer))},
    )
    lines = []
    for turns in conversations:
        line = _Line(list(opening), [-100] * len(opening), *([-1] * len(opening) for _ in range(5)))
        for number, turn in enumerate(turns):
            asked = ids_of(f"{'USER: ' if number else ''}{turn.question} ASSISTANT:")
            line.add(turn, asked, [*ids_of(turn.answer), tokenizer.eos_token_id], words)
        lines.append(line)
    longest = max(len(line.ids) for line in lines)

    def padded(name: str, value: int = -1) -> torch.Tensor:
        kept = [getattr(line, name) for line in lines]
        return torch.tensor([line + [value] * (longest - len(line)) for line in kept])

    ids, labels = padded("ids", tokenizer.pad_token_id), padded("labels", -100)
    which, told = (padded("which"), padded("told")) if pictures > 1 else (None, None)
    named, read, saying = padded("named"), padded("read"), padded("saying")
    return Batch(ids, labels, tuple(starts), len(opening), shares, which, named, read, told, saying)


@dataclass(frozen=True)
class _Words:
    """Ids of "first" and "second", and the category that each object's id stands for."""

    ordinals: Sequence[int]
    category: Mapping[int, int]


@dataclass(frozen=True)
class _Line:
    """One conversation while it is encoded, each field a list as long as its ids; see ``Batch``."""

    ids: list[int]
    labels: list[int]
    which: list[int]
    named: list[int]
    read: list[int]
    told: list[int]
    saying: list[int]

    def add(self, turn: Turn, asked: Sequence[int], answered: Sequence[int], words: _Words) -> None:
        """Puts a turn at the end."""
        start, answer = len(self.ids), len(self.ids) + len(asked)
        end = answer + len(answered)
        self.ids.extend([*asked, *answered])
        self.labels.extend([*([-100] * len(asked)), *answered])
        for line in (self.which, self.named, self.read, self.told, self.saying):
            line.extend([-1] * (end - start))
        for at, word in enumerate(answered, answer):
            self.saying[at - 1] = words.category.get(word, -1)
        telling = -1
        if turn.which is not None:
            telling = start + asked.index(words.ordinals[turn.which])
            self.which[telling:end] = [turn.which] * (end - telling)
        names = [at for at in range(start, answer) if self.ids[at] in words.category]
        if names and turn.is_there is not None:
            self.named[names[0]] = words.category[self.ids[names[0]]] if turn.is_there else ABSENT
            self.told[names[0]] = telling
            self.read[answer - 1] = names[0]


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
        return Turn(draw_question(rng, "side", fact.name), "Left" if fact.x < 0.5 else "Right", is_there=True)
    if value < 0.7 and abs(fact.y - 0.5) > 0.06:
        return Turn(
            draw_question(rng, "level", fact.name), "Top" if fact.y < 0.5 else "Bottom", is_there=True
        )
    answer = place_of(fact)
    return Turn(draw_question(rng, "where", fact.name), answer[0].upper() + answer[1:], is_there=True)
