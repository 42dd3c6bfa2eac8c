"""What an intervention measures on attention is what it would find in the weights, whatever else acts there."""

import copy

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.kernels.readouts import Readout
from lvlm_attn.kernels.spec import Redistribution
from tests.samples import VAR, Louder, Mutual
from tests.tiny import tiny_inputs, tiny_model

BATCH = [(1, 2, 4), (0, 3, 9)]


def rows_of(layer):
    """The last two queries of the first sample, the last one of the second."""
    queries = layer.call.queries
    rows = torch.zeros(layer.layout.batch, queries, dtype=torch.bool)
    rows[0, -min(queries, 2) :] = rows[1, -1] = True
    return rows


class Weights(Intervention):
    """Keeps the weights of the rows."""

    def __init__(self):
        self.seen = []

    def readout(self, layer):
        return Readout(rows_of(layer), rows="heads")

    def read(self, layer, reading):
        weights, index, is_read = reading.rows, reading.index, reading.is_read
        picked = []
        for sample in range(len(index)):
            order = index[sample][is_read[sample]].argsort()
            picked.append(weights[sample][:, is_read[sample]][:, order].double())
        self.seen.append((layer.index, picked, layer.layout.is_patch))


class Measures(Intervention):
    """Keeps everything a readout can say of them."""

    def __init__(self, rows="heads"):
        self.rows, self.seen = rows, []

    def readout(self, layer):
        classes = layer.layout.is_patch * 2
        return Readout(rows_of(layer), classes, rows=self.rows, column_sums=True, entropy=True)

    def read(self, layer, reading):
        self.seen.append((layer.index, reading))


class Moves(Intervention):
    """Moves weight from every third patch to the others."""

    def reweigh(self, layer):
        patch = layer.layout.is_patch.int()
        kind = patch * 2 + patch * (patch.cumsum(1) % 3 == 0)
        return Redistribution(kind.to(torch.int8), layer.call.text_queries(kind.device), 0.3, 0.0, 0.0)


class Free(Intervention):
    """Halves weights on the first half of the heads."""

    def edit_weights(self, layer, weights):
        halved = weights.clone()
        halved[:, : weights.shape[1] // 2] *= 0.5
        return halved


OTHERS = {
    "bare": list,
    "var": lambda: [la.VAR(**VAR)],
    "all": lambda: [Mutual(), Louder(), la.VAR(**VAR)],
    "twice": lambda: [la.VAR(**VAR), Moves()],
    "free": lambda: [Free()],
    "extra keys": lambda: [la.CrossLMM.reuse(grid=(2, 2))],
}


def seen_by(name, others, watcher, kernels="torch", **options):
    model = copy.deepcopy(tiny_model(name))
    model = model.double() if kernels == "torch" else model
    inputs = tiny_inputs(name, model, BATCH)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with la.wrap(model, *others, watcher, kernels=kernels) as lvlm, torch.no_grad():
        model.generate(**inputs, max_new_tokens=3, do_sample=False, **options)
    return watcher.seen, lvlm.report()


def check(weights, measured, rows, bound):
    assert len(weights) == len(measured) > 0
    for (layer, picked, is_patch), (other, reading) in zip(weights, measured):
        assert layer == other
        for sample, want in enumerate(picked):
            mine = reading.is_read[sample]
            keys = want.shape[-1]
            patch = is_patch[sample][:keys].nonzero().flatten()
            on_patch = want[..., patch].sum(-1)
            masses = reading.masses[sample][:, mine].double()
            assert (masses[..., 2] - on_patch).abs().max() < bound
            assert (masses.sum(-1) - want.sum(-1)).abs().max() < bound
            found = reading.rows[sample][:, mine].double()
            assert (found - (want if rows == "heads" else want.mean(0, keepdim=True))).abs().max() < bound
            assert (reading.column_sums[sample].double() - want.sum(1)).abs().max() < bound
            entropy = -torch.special.xlogy(want, want).sum(-1)
            assert (reading.entropy[sample][:, mine].double() - entropy).abs().max() < 10 * bound
            assert reading.log_sum_exp[sample][:, mine].isfinite().all()
            assert (reading.masses[sample][:, ~mine] == 0).all()


@pytest.mark.parametrize("rows", ["heads", "mean"])
@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
def test_measured_is_what_the_weights_say(name, others, rows):
    weights, _ = seen_by(name, OTHERS[others](), Weights())
    measured, _ = seen_by(name, OTHERS[others](), Measures(rows))
    check(weights, measured, rows, 1e-12)


@pytest.mark.parametrize("others", ["bare", "all"])
@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_with_other_caches(others, options):
    weights, _ = seen_by("llava", OTHERS[others](), Weights(), **options)
    measured, _ = seen_by("llava", OTHERS[others](), Measures(), **options)
    check(weights, measured, "heads", 1e-12)


@pytest.mark.parametrize("others", ["bare", "var", "all"])
def test_kernels_measure_the_same(others):
    pytest.importorskip("triton")
    weights, _ = seen_by("llava", OTHERS[others](), Weights())
    measured, report = seen_by("llava", OTHERS[others](), Measures(), kernels="triton")
    assert report.kernels == "triton"
    check(weights, measured, "heads", 1e-5)


def test_a_measuring_intervention_changes_nothing():
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    with torch.no_grad():
        plain = model(**inputs).logits
        with la.wrap(model, Measures()):
            assert torch.equal(model(**inputs).logits, plain)


def test_rows_of_another_shape_are_refused():
    class Wrong(Intervention):
        def readout(self, layer):
            return Readout(torch.ones(1, 1, dtype=torch.bool), entropy=True)

    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    with (
        la.wrap(model, Wrong(), no_image="pass"),
        pytest.raises(la.LvlmAttnError, match=r"is_read of shape \(1, 1\)"),
    ):
        model(**inputs)
