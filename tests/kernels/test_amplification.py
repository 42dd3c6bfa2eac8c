"""Amplified scores and constant gains, head by head: against loops, in the kernels, and in a wrapped model."""

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.kernels.reference import attention
from lvlm_attn.kernels.spec import Amplification, Geometry
from lvlm_attn.layout.prompt import Kind
from tests.kernels import loops
from tests.tiny import tiny_inputs, tiny_model

BATCH, HEADS, QUERIES, LENGTH, DIM = 2, 4, 5, 9, 8
GEOMETRY = Geometry(LENGTH - QUERIES, QUERIES, LENGTH)


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, key = noise(BATCH, HEADS, QUERIES, DIM), noise(BATCH, HEADS // 2, LENGTH, DIM)
    touched = torch.rand(BATCH, QUERIES, generator=generator) < 0.6
    return query, key, touched, noise(BATCH, LENGTH - 2), noise(BATCH, LENGTH - 2)


HEAD_FACTORS = {
    "none": None,
    "shared": torch.tensor([1.0, 0.0, -0.5, 2.0]),
    "per sample": torch.tensor([[1.0, 0.0, -0.5, 2.0], [0.0, 0.3, 1.0, 0.0]]),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("heads", HEAD_FACTORS)
def test_scores_equal_loops(heads, signed):
    query, key, touched, gain, bias = drawn()
    factors = HEAD_FACTORS[heads]
    spec = Amplification(touched, gain, bias, factors, signed=signed)
    _, got = attention(query, key, key, scaling=0.5, geometry=GEOMETRY, amplification=[spec])
    for b in range(BATCH):
        for h in range(HEADS):
            factor = 1.0 if factors is None else float(factors[h] if factors.dim() == 1 else factors[b, h])
            for row in range(QUERIES):
                scores = []
                for column in range(LENGTH):
                    score = float((query[b, h, row] * key[b, h // 2, column]).sum()) * 0.5
                    if bool(touched[b, row]) and column < LENGTH - 2:
                        size = score if signed else abs(score)
                        score += factor * (float(gain[b, column]) * size + float(bias[b, column]))
                    scores.append(score if loops.may_read(GEOMETRY, b, row, column) else -torch.inf)
                want = torch.tensor(scores, dtype=torch.float64).softmax(0)
                assert (got[b, h, row] - want).abs().max() < 1e-12


def test_constant_gains_multiply_weights():
    query, key, touched, gain, _ = drawn(1)
    factor = gain.exp()
    heads = torch.tensor([1.0, 0.0, 1.0, 0.5])
    spec = Amplification.multiplying(touched, factor.float(), heads)
    _, plain = attention(query, key, key, scaling=0.5, geometry=GEOMETRY)
    _, got = attention(query, key, key, scaling=0.5, geometry=GEOMETRY, amplification=[spec])
    full = torch.nn.functional.pad(factor, (0, 2), value=1.0)
    want = plain * full[:, None, None] ** heads[:, None, None].double()
    want = want / want.sum(-1, keepdim=True)
    want = torch.where(touched[:, None, :, None], want, plain)
    assert (got - want).abs().max() < 1e-6  # the factor is kept in fp32
    assert (want - plain).abs().max() > 0.1


def test_what_cannot_be_is_refused():
    touched = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(LvlmAttnError, match=r"is 0\.0, and must be above 0"):
        Amplification.multiplying(touched, torch.tensor([[1.0, 0.0]]))
    with pytest.raises(LvlmAttnError, match=r"shape \(3,\).*\(4,\) or \(1, 4\)"):
        Amplification(touched, heads=torch.ones(3)).per_head(4)


class Heads(Intervention):
    """Doubles the weight on patches in the first head, halves it in the second, leaves the rest."""

    def reweigh(self, layer):
        factor = 1.0 + (layer.layout.kind == Kind.PATCH)
        heads = torch.tensor([1.0, -1.0, 0.0, 0.0])
        return Amplification.multiplying(layer.call.text_queries(factor.device), factor, heads)


class Outputs(Intervention):
    """Keeps what every head of the first layer gives."""

    layers = 0

    def __init__(self):
        self.seen = []

    def scale_heads(self, layer, heads):
        self.seen.append(heads.clone())


def outputs(items, kernels):
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, [(1, 2, 4), (0, 3, 9)])
    watcher = Outputs()
    with la.wrap(model, *items, watcher, kernels=kernels) as lvlm, torch.no_grad():
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    return watcher.seen, lvlm.report()


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_heads_of_factor_zero_keep_the_bits_of_the_backend_in_prefill(kernels):
    if kernels == "triton":
        pytest.importorskip("triton")
    bare, _ = outputs([], "torch")
    edited, report = outputs([Heads()], kernels)
    assert report.kernels.startswith(kernels)
    assert torch.equal(edited[0][:, :, 2:], bare[0][:, :, 2:])
    for head in (0, 1):
        assert (edited[0][:, :, head] - bare[0][:, :, head]).abs().max() > 1e-3


def test_kernels_and_torch_agree():
    pytest.importorskip("triton")
    ours, said = outputs([Heads()], "triton")
    theirs, other = outputs([Heads()], "torch")
    for a, b in zip(ours, theirs):
        assert (a - b).norm() / b.norm() < 1e-5
    assert [list(row) for row in said.rows] == [list(row) for row in other.rows]
