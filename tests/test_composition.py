"""Every pair of methods that `docs/composition.md` says composes, and those it says do not.

A pair composes if both act on every answer, rows of a batch get what they get alone, and, where the page says that the
order does not matter, both orders give the same logits.
"""

import itertools
from pathlib import Path

import pytest
import torch

import lvlm_attn as la
from tests.oracle_setup import DIM, TAU, sink_model
from tests.tiny_processors import QUESTIONS, picture, tiny_processor

PAGE = Path(__file__).parent.parent / "docs" / "composition.md"
IMAGES = [picture((20, 14)), picture((9, 17), 1)]
METHODS = {
    "VAR": lambda: la.VAR(rho=0, mass_floor=0, tau=TAU, sink_dims=(DIM,), layers=(1, 2, 3)),
    "VHR": lambda: la.VHR(alpha=3.0, layers=(1, 2, 3), outlier_filter=False),
    "PAI": lambda: la.PAI(alpha=0.6, gamma=1.4, layers=(1, 2, 3)),
    "PAINT": lambda: la.PAINT(layers=(1, 2, 3)),
    "VCD": lambda: la.VCD(beta=0.0),
    "ICD": lambda: la.ICD(beta=0.0),
    "AGLA": lambda: la.AGLA(beta=1e-6, matcher=half),
    "CARVE": lambda: la.CARVE(p=0.3, layers=(1, 2)),
    "DoLa": lambda: la.DoLa(layers=(1, 2), beta=1e-6),
    "MMA": lambda: la.MMA(layers=(0, 1, 2)),
    "VisualSelf": lambda: la.VisualSelf(layers=(1, 2)),
    "FrozenVisual": lambda: la.FrozenVisual(layers=(2,)),
    "Hollow": lambda: la.Hollow(window=2, layers=(1, 2)),
    "Delayed": lambda: la.Delayed(start=1),
    "Neighborhood": lambda: la.Neighborhood(k=3, layers=(1, 2)),
    "Power": lambda: la.Power(block=2, window=1, layers=(1, 2)),
    "VMTC": lambda: la.VMTC(keep=230, clusters=92),
    "CMAI": lambda: la.CMAI(layer=1, quantile=0.9, keep_min=1),
    "CrossLMM": lambda: la.CrossLMM.reuse(grid=(2, 2), w=0.5),
    "CARVEAttention": lambda: la.CARVEAttention(layers=(1, 2)),
    "OPERA": lambda: la.OPERA(r=None, sigma=5000.0),
}


def half(image, prompt):
    """A matcher for the tests: the left half of the image is what the prompt speaks of."""
    width, height = image.size
    relevance = torch.zeros(height, width, dtype=torch.float64)
    relevance[:, : width // 2] = 1
    return (relevance + torch.linspace(0, 0.1, width, dtype=torch.float64)).numpy(), 0.9


def table():
    """The page's pairs: (first, second) -> what stands in the cell."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    head = [cell.strip() for cell in lines[0].strip("|").split("|")][1:]
    cells = {}
    for line in lines[1:]:
        name, *row = [cell.strip() for cell in line.strip("|").split("|")]
        if name in METHODS:
            cells |= {(name, other): cell for other, cell in zip(head, row, strict=True) if cell}
    return cells


def scores(model, names, rows=(0, 1)):
    """Logits of two steps, `(rows, 2, vocabulary)`; under OPERA the scores of the beams found, `(rows, 1, 1)`."""
    searches = "OPERA" in names
    options = {"num_beams": 2, "output_scores": True} if searches else {"output_logits": True}
    with la.wrap(model, *(METHODS[name]() for name in names), processor=tiny_processor("llava")) as lvlm:
        output = lvlm.generate(
            images=[IMAGES[row] for row in rows],
            prompts=[QUESTIONS[row] for row in rows],
            max_new_tokens=3 if searches else 2,
            do_sample=False,
            return_dict_in_generate=True,
            **options,
        )
    return output.sequences_scores[:, None, None] if searches else torch.stack(output.logits, 1)


@pytest.fixture(scope="module")
def model():
    return sink_model("llava", dtype=torch.float64)


@pytest.fixture(scope="module")
def alone(model):
    known = {}

    def get(name):
        if name not in known:
            known[name] = scores(model, (name,))
        return known[name]

    return get


def shares(item):
    return item if item.shape[-1] == 1 else item.log_softmax(-1).exp()


def differs(one, other):
    """Whether every row differs."""
    return bool(((shares(one) - shares(other)).abs().amax((1, 2)) > 1e-7).all())


def close(one, other):
    torch.testing.assert_close(shares(one), shares(other), rtol=0, atol=1e-9)


PAIRS = sorted(table().items())


def test_the_page_speaks_of_every_pair():
    named = {frozenset(pair) for pair, _ in PAIRS}
    assert named == {frozenset(pair) for pair in itertools.combinations(METHODS, 2)}
    assert {cell for _, cell in PAIRS} == {"any", "order", "same", "no"}


@pytest.mark.parametrize(("pair", "cell"), [(pair, cell) for pair, cell in PAIRS if cell != "no"])
def test_pair_composes(model, alone, pair, cell):
    both = scores(model, pair)
    first, second = pair
    if "OPERA" in pair:
        assert differs(both, alone("OPERA"))
    elif cell == "same":
        close(both, alone("VisualSelf"))
        assert differs(both, alone(second if first == "VisualSelf" else first))
    else:
        assert differs(both, alone(first))
        assert differs(both, alone(second))
    close(scores(model, pair, (1,))[0], both[1])
    other = scores(model, pair[::-1])
    if cell == "order":
        assert differs(other, both)
    else:
        close(other, both)


@pytest.mark.parametrize("pair", [pair for pair, cell in PAIRS if cell == "no"])
def test_pair_is_refused(model, pair):
    for order in (pair, pair[::-1]):
        with pytest.raises(la.LvlmAttnError, match=r"cannot|without|one of them|pass num_beams=1"):
            scores(model, order)


def test_var_vhr_agla_in_one_wrap(model):
    names = ("VAR", "VHR", "AGLA")
    three = scores(model, names)
    for pair in itertools.combinations(names, 2):
        assert differs(three, scores(model, pair))
    for row in (0, 1):
        close(scores(model, names, (row,))[0], three[row])
