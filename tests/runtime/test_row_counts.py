"""Counts of what edits did, against counting by hand."""

import copy
from types import SimpleNamespace
from typing import Any, cast

import torch

from lvlm_attn.interventions.context import Layer, State
from lvlm_attn.kernels.call import Memo
from lvlm_attn.kernels.correction import Judged
from lvlm_attn.kernels.spec import Amplification
from lvlm_attn.runtime.row_counts import count_amplified, count_judged, count_moved, counts_of, settle

CPU = torch.device("cpu")


def layer(index: int = 3) -> Layer:
    return Layer(index, cast("Any", SimpleNamespace(memo=Memo())), State())


def test_amplified_rows_are_counted_in_the_heads_that_change():
    rows = torch.tensor([[True, False, True], [False, False, True]])
    factors = torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, -2.0]])
    spec = Amplification(rows, gain=torch.ones(2, 3), heads=factors)
    changed = sum(
        int(rows[sample, row])
        for sample in range(2)
        for head in range(4)
        for row in range(3)
        if factors[sample, head] != 0
    )
    at = layer()
    count_amplified(at, spec, 4, CPU)
    count_amplified(at, spec, 4, CPU)
    assert at.stats[3].tolist() == [2 * changed, 2 * 3 * 4, 0]


def test_moved_weight_is_counted_where_rows_changed():
    at, is_row = layer(), torch.tensor([[[True, False], [True, True]]])
    moved = torch.tensor([[[0.25, 9.0], [0.5, 0.125]]], requires_grad=True)
    count_moved(at, is_row, moved, torch.tensor([[True, True, False]]))
    assert at.stats[3].tolist() == [3, 4, 0.875]
    assert not at.stats[3].requires_grad
    copy.deepcopy(at.stats)  # as for what is decoded in between


def test_counting_goes_on_outside_inference_mode():
    at, spec = layer(), Amplification(torch.ones(1, 2, dtype=torch.bool), gain=torch.ones(1, 2))
    with torch.inference_mode():
        count_amplified(at, spec, 1, CPU)
    count_amplified(at, spec, 1, CPU)
    assert at.stats[3].tolist() == [4, 4, 0]


def test_a_kernel_adds_in_place():
    at = layer()
    counts_of(at, CPU).add_(1)
    assert at.stats[3].tolist() == [1, 1, 1]


def test_decisions_wait_until_counts_are_read():
    at, touched = layer(), torch.tensor([[True, True, False]])
    count_judged(at, Judged([True, False], 0.25), touched, 2)
    count_judged(at, Judged([True], 0.5), touched, 2)
    assert 3 not in at.stats
    stats = copy.deepcopy(at.stats)
    settle(stats)
    assert stats.keys() == {3}
    assert stats[3].tolist() == [2, 8, 0.75]
    settle(stats)
    assert stats[3].tolist() == [2, 8, 0.75]
    count_judged(at, Judged([False], 0.0), touched, 2)
    settle(at.stats)
    assert at.stats[3].tolist() == [2, 12, 0.75]
