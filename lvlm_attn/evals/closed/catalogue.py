"""The benchmarks of closed questions."""

from __future__ import annotations

from lvlm_attn.evals.closed.amber_d import AMBER_D
from lvlm_attn.evals.closed.dash_b import DASH_B
from lvlm_attn.evals.closed.hallusionbench import HALLUSIONBENCH
from lvlm_attn.evals.closed.mme import MME
from lvlm_attn.evals.closed.mmvp import MMVP
from lvlm_attn.evals.closed.naturalbench import NATURALBENCH
from lvlm_attn.evals.closed.spec import Closed

CLOSED: dict[str, Closed] = {
    spec.name: spec for spec in (AMBER_D, MME, MMVP, HALLUSIONBENCH, NATURALBENCH, DASH_B)
}
"""By name; a new benchmark is one file and one word here."""
