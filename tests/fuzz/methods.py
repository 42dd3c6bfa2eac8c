"""Random valid parameters of every method, for models of three layers."""

from random import Random

import numpy as np

import lvlm_attn as la
from lvlm_attn.hooks.catalogue import methods

LAYERS = 3


def some_layers(rng):
    """None, or some layers of a model."""
    return rng.choice([None, tuple(sorted(rng.sample(range(LAYERS), rng.randint(1, LAYERS))))])


def half(image, prompt):
    """A matcher for AGLA: the left half of the image is what the prompt speaks of."""
    columns = np.linspace(1, 0, image.width)
    return np.broadcast_to(columns, (image.height, image.width)) + 0.0, 0.9


def var(rng):
    return la.VAR(
        rho=rng.random(),
        removed_fraction=rng.random(),
        tau=rng.uniform(0, 3),
        mass_floor=rng.random() / 4,
        sink_dims=tuple(rng.sample(range(32), rng.randint(1, 3))),
        layers=some_layers(rng),
        require_visual_sink=rng.random() < 0.5,
    )


def crosslmm(rng):
    rule = rng.choice(["R1", "R2"])
    strength = {"lam": rng.random()} if rule == "R1" else {"w": rng.random()}
    return la.CrossLMM.reuse(
        grid=(rng.randint(1, 3), rng.randint(1, 3)),
        rule=rule,
        source=rng.choice(["S0", "S1", "S2"]),
        branches=rng.choice(["both", "t2v", "v2v"]),
        layers=some_layers(rng),
        **strength,
    )


DRAWN = {
    "var": var,
    "crosslmm": crosslmm,
    "vhr": lambda rng: la.VHR(
        alpha=rng.uniform(0, 3),
        layers=some_layers(rng),
        vhd_power=rng.randint(1, 2),
        std_guard=rng.random() < 0.5,
    ),
    "carve": lambda rng: la.CARVE(
        p=rng.uniform(0.1, 1), K=rng.randint(1, 3), steps=rng.randint(1, 3), layers=some_layers(rng)
    ),
    "carve_attention": lambda rng: la.CARVEAttention(
        temperature=rng.random(), mode=rng.choice(["first", "last", "all"]), steps=2, layers=some_layers(rng)
    ),
    "agla": lambda rng: la.AGLA(alpha=rng.uniform(0, 2), beta=rng.random(), matcher=half),
    "vcd": lambda rng: la.VCD(alpha=rng.uniform(0, 2), beta=rng.random(), noise_step=rng.randint(0, 999)),
    "icd": lambda rng: la.ICD(lam=rng.uniform(0, 2), beta=rng.random()),
    "pai": lambda rng: la.PAI(
        alpha=rng.random(), gamma=rng.choice([1.0, rng.uniform(0, 2)]), layers=some_layers(rng)
    ),
    "paint": lambda rng: la.PAINT(
        alpha=rng.random(),
        beta=rng.random(),
        local=rng.random(),
        rows=rng.choice(["last", "all_text"]),
        layers=some_layers(rng) or (0, 1, 2),
    ),
    "dola": lambda rng: la.DoLa(
        layers=rng.choice(["low", "high", (0,), (0, 1)]),
        beta=rng.uniform(0.01, 1),
        divergence=rng.choice(["jsd", "code"]),
        final_norm=rng.random() < 0.5,
    ),
    "opera": lambda rng: la.OPERA(
        candidates=rng.randint(2, 5), r=rng.choice([None, 2]), beta=rng.randint(1, 3)
    ),
    "mma": lambda rng: la.MMA(strength=rng.random(), layers=some_layers(rng)),
    "visual_self": lambda rng: la.VisualSelf(layers=some_layers(rng)),
    "frozen_visual": lambda rng: la.FrozenVisual(layers=some_layers(rng)),
    "hollow": lambda rng: la.Hollow(window=rng.randint(1, 9), layers=some_layers(rng)),
    "delayed": lambda rng: la.Delayed(start=rng.choice([None, 1, 2])),
    "neighborhood": lambda rng: la.Neighborhood(
        k=2 * rng.randint(0, 3) + 1, dilation=rng.randint(1, 2), layers=some_layers(rng)
    ),
    "power": lambda rng: la.Power(block=rng.randint(1, 8), window=rng.randint(1, 3), layers=some_layers(rng)),
    "vmtc": lambda rng: la.VMTC(keep=rng.randint(0, 300), clusters=rng.randint(0, 100)),
    "cmai": lambda rng: la.CMAI(
        layer=rng.randrange(LAYERS), quantile=rng.random(), keep_min=rng.randint(1, 9)
    ),
    "record": lambda rng: la.record(
        layers=some_layers(rng), rows=rng.choice(["generated", "all"]), reduce=rng.choice([None, "heads"])
    ),
}


def some_methods(rng: Random):
    """One method or two, of any kind; they may not go together, which a wrap has to say."""
    missing = set(methods()) - set(DRAWN)
    assert not missing, f"the fuzz does not know {missing}"
    names = rng.sample(sorted(DRAWN), rng.choice([1, 1, 2]))
    return [DRAWN[name](rng) for name in names]
