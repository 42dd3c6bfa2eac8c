"""The training recipe of the bundled toy: sizes, stages, curriculum. Everything that was tuned stands here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from lvlm_attn.toy.captions import CaptionConfig
from lvlm_attn.toy.data import TextConfig
from lvlm_attn.toy.language_stage import Lesson
from lvlm_attn.toy.loops import Plan
from lvlm_attn.toy.model import ModelSizes
from lvlm_attn.toy.pool import LATER_POOLS, POOLS, PoolSpec
from lvlm_attn.toy.prior_stage import PriorConfig
from lvlm_attn.toy.sink_keys import SinkTargets

_VISION = Plan("vision", steps=2200, rate=1.2e-3)
_PLACING = Plan("placing", steps=300, rate=8e-4, warmup=30)
_PROJECTOR = Plan("projector", steps=700, rate=3e-3)
_LANGUAGE = Plan("language", steps=2600, rate=1.5e-3, warmup=150, decay=0.6)
_DESCRIBING = Plan("describing", steps=1400, rate=1.5e-3, warmup=40, decay=0.7, every=100)
_POLISHING = Plan("polishing", steps=800, rate=1.0e-3, warmup=40, decay=0.8, every=100)
_SETTLING = Plan("settling", steps=3000, rate=1.0e-3, warmup=40, decay=0.8, every=100)
_PAIRS = 0.35  # share of conversations about two pictures
_READINGS = Plan("readings", steps=150, rate=1e-2, warmup=10, every=50)
_VIEWS = Plan("views", steps=600, rate=6e-4, warmup=30, every=50)
_PRIORS = Plan("priors", steps=900, rate=3e-4, warmup=50, weight_decay=0.0, every=50)
_RECALLING = Plan("recalling", steps=2000, rate=6e-4, warmup=30, weight_decay=0.0, every=50)
_WIDENING = Plan("widening", steps=1000, rate=5e-4, warmup=30, weight_decay=0.0, every=50)
_DESCRIPTIONS = TextConfig(
    yes_no=0.25,
    places=0.05,
    hard_share=0.3,
    caption=CaptionConfig(habit_scale=0.8, mood_share=0.9, short_share=0.5),
    pairs=_PAIRS,
)
_PRIOR = PriorConfig()
_RECALL = PriorConfig(
    none=0.08,
    blank=0.04,
    noise=0.08,
    glimpse=0.06,
    pairs=0.14,
    seen=replace(
        _PRIOR.seen, yes_no=0.25, caption=replace(_PRIOR.seen.caption, habit_scale=0.1, stray_share=0.04)
    ),
    joint_weights=(4.0, 5.5),
    again=1.0,
)


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        sizes: The model's sizes.
        pools: Training pictures by name; "vision" trains the tower and "full" the projector.
        vision: Schedule of stage 1, naming objects.
        placing: Schedule of stage 1, naming objects and places.
        projector: Schedule of stage 2.
        language: Schedule of stage 3.
        lessons: Curriculum of stage 3.
        text: What its conversations are made of.
        language_until: Step after which stage 3 stops, before its schedule ends; None for the whole of it.
        describing: Schedule of stage 4.
        describing_lessons: Curriculum of stage 4.
        polishing: Schedule of stage 5: on with the last lesson of stage 4.
        settling: Schedule of stage 6: the same lesson, with more yes/no questions, and captions shown what they name.
        describing_text: What the conversations of stages 4 and 5 are made of: mostly captions, in reading order.
        settling_text: What the conversations of stage 6 are made of.
        vision_batch: Pictures per step of stages 1 and 2.
        language_batch: Conversations per step of stages 3 to 6, and 9 to 11.
        language_shares: How many conversations of stages 3 to 6 are about the same picture, whose tokens are computed
            once for them; about the same two pictures, twice as many.
        later_pools: Training pictures of stages 7 to 11, besides "full".
        readings: Schedule of stage 7, fitting linear readings to the tower.
        views: Schedule of stage 7, the tower itself.
        views_batch: Pictures per step of stage 7.
        sinks: What the planted sinks are to draw, in stages 8 to 11.
        priors: Schedule of stage 9.
        prior: What stage 9's conversations are made of, and what the model sees of their pictures.
        recalling: Schedule of stage 10.
        recall: The same as ``prior`` for stage 10.
        widening: Schedule of stage 11.
        widen: The same as ``prior`` for stage 11: pictures that no stage before has shown.
    """

    sizes: ModelSizes = field(default_factory=ModelSizes)
    pools: Mapping[str, PoolSpec] = field(default_factory=lambda: POOLS)
    vision: Plan = _VISION
    placing: Plan = _PLACING
    projector: Plan = _PROJECTOR
    language: Plan = _LANGUAGE
    lessons: tuple[Lesson, ...] = (
        Lesson(300, "one-of-8", classes=8, yes_no=0.9, plain=True, pairs=0.0),
        Lesson(500, "one", classes=64, yes_no=0.85, plain=True, pairs=0.0),
        Lesson(800, "one", classes=64, yes_no=0.85, plain=True),
        Lesson(1050, "few", yes_no=0.7),
        Lesson(2600, "full"),
    )
    text: TextConfig = field(
        default_factory=lambda: TextConfig(caption=CaptionConfig(reading_order=False), pairs=_PAIRS)
    )
    language_until: int | None = 1500
    describing: Plan = _DESCRIBING
    polishing: Plan = _POLISHING
    settling: Plan = _SETTLING
    describing_text: TextConfig = field(default_factory=lambda: _DESCRIPTIONS)
    settling_text: TextConfig = field(default_factory=lambda: replace(_DESCRIPTIONS, yes_no=0.32))
    describing_lessons: tuple[Lesson, ...] = (
        Lesson(350, "few", object_weight=5.0),
        Lesson(1400, "full", object_weight=5.0),
    )
    vision_batch: int = 32
    language_batch: int = 16
    language_shares: int = 2
    later_pools: Mapping[str, PoolSpec] = field(default_factory=lambda: LATER_POOLS)
    readings: Plan = _READINGS
    views: Plan = _VIEWS
    views_batch: int = 24
    sinks: SinkTargets = field(default_factory=SinkTargets)
    priors: Plan = _PRIORS
    prior: PriorConfig = field(default_factory=PriorConfig)
    recalling: Plan = _RECALLING
    recall: PriorConfig = field(default_factory=lambda: _RECALL)
    widening: Plan = _WIDENING
    widen: PriorConfig = field(
        default_factory=lambda: replace(_RECALL, pool="more", joint_weights=(4.0, 6.5))
    )

    def __getstate__(self) -> dict[str, Any]:
        """What pickle carries to another process, which read-only mappings are not."""
        return {**self.__dict__, "pools": dict(self.pools), "later_pools": dict(self.later_pools)}

    @property
    def plans(self) -> tuple[Plan, ...]:
        """All schedules, in the order in which they are run."""
        first = (self.vision, self.placing, self.projector)
        language = (self.language, self.describing, self.polishing, self.settling)
        return (*first, *language, self.readings, self.views, self.priors, self.recalling, self.widening)


#: The recipe of the model in the package.
BUNDLED = Recipe()

#: A run of seconds whose model is of no use: it shows that all stages work on a machine.
SMOKE = Recipe(
    sizes=ModelSizes(vision_width=32, vision_layers=1, vision_heads=2, width=32, layers=2, inner=64),
    pools=MappingProxyType(
        {name: PoolSpec(spec.start, 12, spec.counts, spec.classes) for name, spec in POOLS.items()}
    ),
    vision=Plan("vision", steps=4, rate=1e-3, warmup=2, every=2),
    placing=Plan("placing", steps=4, rate=1e-3, warmup=2, every=2),
    projector=Plan("projector", steps=4, rate=1e-3, warmup=2, every=2),
    language=Plan("language", steps=6, rate=1e-3, warmup=2, every=2),
    lessons=(
        Lesson(2, "one-of-8", classes=8, yes_no=0.8),
        Lesson(3, "one", classes=64),
        Lesson(4, "few"),
        Lesson(6, "full"),
    ),
    language_until=None,
    describing=Plan("describing", steps=4, rate=1e-3, warmup=2, every=2),
    polishing=Plan("polishing", steps=2, rate=1e-3, warmup=1, every=2),
    settling=Plan("settling", steps=2, rate=1e-3, warmup=1, every=2),
    vision_batch=4,
    language_batch=8,
    later_pools=MappingProxyType(
        {name: PoolSpec(spec.start, 12, views=spec.views) for name, spec in LATER_POOLS.items()}
    ),
    readings=Plan("readings", steps=2, rate=1e-2, warmup=1, every=1),
    views=Plan("views", steps=3, rate=6e-4, warmup=1, every=2),
    views_batch=4,
    sinks=SinkTargets(scenes=4, rounds=2),
    priors=Plan("priors", steps=3, rate=3e-4, warmup=1, weight_decay=0.0, every=2),
    recalling=Plan("recalling", steps=2, rate=3e-4, warmup=1, weight_decay=0.0, every=1),
    widening=Plan("widening", steps=2, rate=3e-4, warmup=1, weight_decay=0.0, every=1),
)
