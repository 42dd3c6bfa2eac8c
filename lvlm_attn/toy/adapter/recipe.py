"""How the bundled toy's adapter was trained. Everything that was tuned stands here."""

from __future__ import annotations

from dataclasses import dataclass, field

from lvlm_attn.toy.captions import CaptionConfig
from lvlm_attn.toy.data import TextConfig
from lvlm_attn.toy.loops import Plan
from lvlm_attn.toy.pool import POOLS, PoolSpec

_PLAN = Plan("crosslmm", steps=500, rate=2e-3, warmup=20, decay=0.6, every=100)


def _conversations() -> TextConfig:
    caption = CaptionConfig(habit_scale=0.8, mood_share=0.9, short_share=0.5)
    return TextConfig(yes_no=0.75, places=0.05, text_only=0.0, hard_share=0.3, caption=caption)


@dataclass(frozen=True)
class AdapterRecipe:
    """One training run.

    Attributes:
        K: every how many layers host branches.
        offset: which of each K.
        grid: cells a picture is pooled to.
        kv_norm: whether patches are normalised in front of the branches.
        gate: where the gates start, before the hyperbolic tangent. From 0, most of so short a run would go into
            opening them.
        pool: training pictures; those that trained the toy's language model.
        name: name of the pool's folder, shared with the toy's own training.
        plan: the schedule.
        text: what the conversations are made of.
        batch: pictures per step.
    """

    K: int = 2
    offset: int = 0
    grid: tuple[int, int] = (3, 3)
    kv_norm: bool = True
    gate: float = 0.5
    pool: PoolSpec = POOLS["full"]
    name: str = "full"
    plan: Plan = _PLAN
    text: TextConfig = field(default_factory=_conversations)
    batch: int = 16


#: The recipe of the adapter in the package.
BUNDLED = AdapterRecipe()

#: A run of seconds that shows that everything works.
SMOKE = AdapterRecipe(
    pool=PoolSpec(POOLS["full"].start, 12),
    name="smoke",
    plan=Plan("crosslmm", steps=3, rate=1e-3, warmup=1, every=1),
    batch=4,
)
