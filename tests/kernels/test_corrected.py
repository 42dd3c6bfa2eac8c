"""Rows corrected by few keys, against the definition over all keys in float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.corrected import corrected_rows, suits
from lvlm_attn.kernels.correction import ByClass, redistributed
from lvlm_attn.kernels.few_keys import STEPS, Steps, choose, step_of
from lvlm_attn.kernels.reference import attention
from lvlm_attn.kernels.spec import Amplification, Geometry, KeyClass, Redistribution, redistribution_gains
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.visibility import ALL, Visibility
from lvlm_attn.runtime.corrected import corrected_step
from tests.kernels.drawn import calls, is_close_call, relative

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def made(call, dtype):
    """The attention call, the output and the log-sum-exp that a backend gives; visibilities included."""
    plain = replace(call, amplification=None, redistribution=None)
    output, _ = plain.truth()
    total = plain.log_sum_exp().to(torch.promote_types(dtype, torch.float32))
    total = torch.where(total == -torch.inf, 0.0, total)
    tensors = [tensor.to(dtype) for tensor in (call.query, call.key, call.value)]
    return AttentionCall(*tensors, call.geometry, call.scaling), output.to(dtype).contiguous(), total


def constant(call, draw):
    """Takes what no correction serves out of a call: gains, and biases that are unlike everywhere."""
    if call.amplification is not None and call.amplification.bias is not None:
        bias = torch.where(call.amplification.bias > 0.8, 1.5, draw(st.sampled_from([0.0, -0.7, 3.0])))
        heads = call.amplification.heads
        call.amplification = Amplification(call.amplification.is_touched, None, bias, heads)
    else:
        call.amplification = None
    if call.redistribution is not None:
        kinds, generator = (
            call.redistribution.key_class,
            torch.Generator().manual_seed(draw(st.integers(0, 99))),
        )
        most = draw(st.sampled_from([KeyClass.PATCH, KeyClass.PATCH, KeyClass.TEXT]))
        is_few = torch.rand(kinds.shape, generator=generator) < draw(st.sampled_from([0.3, 0.1, 0.6]))
        call.redistribution = replace(call.redistribution, key_class=torch.where(is_few, kinds, int(most)))
    call.visibility = [
        replace(item, earlier=tuple((ALL,) * len(row) for row in item.earlier)) for item in call.visibility
    ]
    return call


@st.composite
def constants(draw, **more):
    return constant(draw(calls(**more)), draw)


def edits(call):
    return {
        "visibility": call.visibility,
        "amplification": [call.amplification] if call.amplification else [],
        "redistribution": call.redistribution,
    }


def touched(call):
    specs = [item.is_touched for item in (call.amplification, call.redistribution) if item is not None]
    return torch.stack(specs).any(0) if specs else None


def unsure(call):
    """`(batch, queries, heads, 1)`, rows that a threshold may decide either way."""
    if call.redistribution is None:
        return torch.zeros(call.query.shape[0], call.query.shape[2], 1, 1, dtype=torch.bool)
    _, weights = call.truth(moves=False)
    kinds = call.geometry.to_columns(call.redistribution.key_class)
    masses = torch.stack([(weights * (kinds == kind)[:, None, None]).sum(-1) for kind in range(4)], -1)
    return is_close_call(call, masses).transpose(1, 2)[..., None]


@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_corrected_rows_equal_the_definition(dtype, data):
    call = data.draw(constants())
    is_row = touched(call)
    assume(is_row is not None)
    rows = Rows.of(is_row)
    assume(rows is not None)
    ours, output, total = made(call, dtype)
    before = output.clone()
    given_total = data.draw(st.sampled_from([total, None])) if not call.visibility else total
    found = corrected_rows(output, given_total, ours, rows, **edits(call))
    if found is None:
        assert torch.equal(output, before)
        return
    want, _ = call.truth()
    sure = ~unsure(call)
    assert relative(found.output * sure, want * sure) < TOLERANCE[dtype]
    still = ~is_row[..., None, None].expand_as(before)
    assert torch.equal(found.output[still], before[still])


@settings(max_examples=100, deadline=None)
@given(call=constants(queries=(1,), lengths=(1, 17, 63, 111)), data=st.data())
def test_a_corrected_query_equals_the_definition(call, data):
    assume(call.redistribution is not None)
    call.visibility, call.amplification = [], None
    call.geometry = replace(call.geometry, window=None, keys=call.key.shape[2])
    assume(call.geometry.first_key == 0)
    ours, output, total = made(call, torch.float32)
    if call.geometry.is_valid is not None or call.geometry.keys > call.geometry.length:
        index = torch.full((call.query.shape[0], 1), call.geometry.start)
        mask = call.geometry.may_attend(index)[:, None]
        if data.draw(st.booleans()):
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
            assume(bool((mask == 0).any(-1).all()))
        ours = replace(ours, mask=mask)
    before = output.clone()
    is_touched = call.redistribution.is_touched
    if corrected_step(output, total, ours, call.redistribution) is None:
        assert torch.equal(output, before)
        return
    want, _ = call.truth()
    sure = ~unsure(call)
    assert relative(output * sure, want * sure) < 1e-5
    still = ~is_touched[..., None, None].expand_as(before)
    assert torch.equal(output[still], before[still])


def test_the_calls_drawn_here_are_corrected():
    """A share of them, by either class, so that the equalities above are about corrections."""
    seen = {"corrected": 0, "changed": 0, "by patches": 0, "by text": 0}

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(constants())
    def draw(call):
        is_row = touched(call)
        rows = None if is_row is None else Rows.of(is_row)
        if rows is None:
            return
        ours, output, total = made(call, torch.float32)
        before = output.clone()
        found = corrected_rows(output, total, ours, rows, **edits(call))
        if found is not None:
            seen["corrected"] += 1
            seen["changed"] += not torch.equal(before, found.output)
            kinds = call.redistribution.key_class if call.redistribution else None
            if kinds is not None and choose(call.geometry.to_columns(kinds)) is not None:
                base = choose(call.geometry.to_columns(kinds)).base
                seen["by text" if base == KeyClass.PATCH else "by patches"] += 1

    draw()
    assert min(seen.values()) >= 8, seen


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0]), min_size=4, max_size=4),
    st.sampled_from([0.375, 1.0]),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.sampled_from([0.0, 0.125]),
)
def test_factors_are_those_of_the_definition(parts, taken, rho, floor):
    assume(sum(parts) > 0)
    masses = torch.tensor(parts, dtype=torch.float64)
    masses = masses / masses.sum()
    image = float(masses[2] + masses[3])
    assume(abs(image - floor) > 1e-9 or floor == 0)
    assume(abs(float(masses[2]) - rho * image) > 1e-9 or rho == 0)
    none = torch.zeros(1, 1, dtype=torch.bool)
    spec = Redistribution(torch.zeros(1, 1), none, taken, rho, floor)
    want, is_changed = redistribution_gains(masses, spec)
    for base in (KeyClass.PATCH, KeyClass.TEXT):
        few = torch.tensor([kind for kind in KeyClass if kind != base])
        by = ByClass.of(spec, few[None], base, torch.float64)
        got = masses[None, None].clone()  # the values of keys say of which class they are
        value = torch.eye(4, dtype=torch.float64)[few][None]
        judged = redistributed(got, masses[few][None, None], value, by, 1e9, None)
        if judged is None:
            assert base == KeyClass.PATCH
            assert masses[2] == 0  # what is left of 1 cannot be told from nothing
            continue
        torch.testing.assert_close(got[0, 0], want * masses, rtol=0, atol=1e-12)
        assert judged.changes == [bool(is_changed)]


def llava(length=200, queries=12, dtype=torch.float32, heads=4, batch=1, seed=0, **more):
    """A prompt of text, an image and a question, in which the question is touched."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(batch, heads, count, 16, generator=generator).to(dtype)
        for count in (queries, length, length)
    )
    kinds = torch.zeros(batch, length, dtype=torch.int8)
    kinds[:, 5 : length - 20] = int(KeyClass.PATCH)
    kinds[:, 0], kinds[:, 9:30:7] = int(KeyClass.TEXT_SINK), int(KeyClass.PATCH_SINK)
    is_row = torch.ones(batch, queries, dtype=torch.bool)
    options = {"removed_fraction": 0.6, "rho": 0.5, "mass_floor": 0.2, **more}
    return AttentionCall(
        query, key, value, Geometry(length - queries, queries, length), 0.25
    ), Redistribution(kinds, is_row, **options)


def backend(call, redistribution=None):
    output, _ = attention(
        call.query.double(),
        call.key.double(),
        call.value.double(),
        scaling=call.scaling,
        geometry=call.geometry,
        redistribution=redistribution,
    )
    return output.transpose(1, 2)


def log_sum_exp(call):
    scores = torch.einsum("bhqd,bhkd->bhqk", call.query.double(), call.key.double()) * call.scaling
    index = torch.arange(call.geometry.start, call.geometry.length).expand(len(scores), -1)
    allowed = call.geometry.may_attend(index)
    scores = scores if allowed is None else scores.masked_fill(~allowed[:, None], -torch.inf)
    return scores.logsumexp(-1)


def test_half_precision_is_left_to_all_keys():
    call, spec = llava(dtype=torch.bfloat16)
    output, total = backend(call).bfloat16(), log_sum_exp(call).float()
    assert corrected_rows(output, total, call, Rows.of(spec.is_touched), redistribution=spec) is None
    assert corrected_step(output[:, -1:], total[..., -1:], call, spec) is None


def test_a_factor_above_the_limit_leaves_all_as_it_was():
    call, spec = llava(rho=0.0, mass_floor=0.0, removed_fraction=1.0)
    call.query[:] = 1
    call.key[:, :, 5:180] -= 3  # patches get next to nothing
    call.key[:, :, 0] += 3
    output, total = backend(call).float(), log_sum_exp(call).float()
    before = output.clone()
    assert corrected_rows(output, total, call, Rows.of(spec.is_touched), redistribution=spec) is None
    assert torch.equal(output, before)


def test_steps_are_listed_for_several_lengths_at_a_time():
    call, spec = llava(length=200, queries=1)
    kept = {}
    spec = replace(spec, key_class=spec.key_class[:, :190], kept=kept)  # ten are generated
    listed = []
    for length in range(195, 200):
        short = replace(
            call,
            key=call.key[:, :, :length],
            value=call.value[:, :, :length],
            geometry=Geometry(length - 1, 1, length),
        )
        output, total = backend(short).float(), log_sum_exp(short).float()
        assert corrected_step(output, total, short, spec) is not None
        assert relative(output, backend(short, spec)) < 1e-5
        listed.append(kept[Steps])
    assert all(item is listed[0] for item in listed)
    assert len(listed[0].listed) == STEPS
    late = replace(call, geometry=Geometry(194 + STEPS, 1, 195 + STEPS))
    assert step_of(spec, late) is not None
    assert kept[Steps] is not listed[0]


def test_scores_that_change_by_their_size_are_not_corrected():
    rows, numbers = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2)
    move = Redistribution(torch.zeros(1, 2), rows, 0.4, 0.5, 0.2)
    assert suits([], [move])
    assert suits([Amplification(rows, bias=numbers)], [move])
    assert not suits([Amplification(rows, gain=numbers)], [])
    assert not suits([Amplification(rows, bias=numbers, head_cap=2.0)], [])
    assert not suits([], [move, move])
    assert not suits([], [])


def test_unlike_samples_list_their_own_keys():
    kinds = torch.full((2, 40), int(KeyClass.PATCH))
    kinds[0, :10], kinds[1, 28:] = 0, 0
    chosen = choose(kinds)
    assert chosen.columns.shape == (2, 12)
    assert chosen.columns[0, :10].tolist() == list(range(10))
    assert chosen.columns[1].tolist() == list(range(28, 40))
    assert choose(torch.arange(8)[None] % 2 * 2, biases=[torch.arange(8.0)[None]]) is None


def test_a_visibility_is_part_of_the_few():
    """Rows that attend ahead are redistributed with the weights they have there."""
    call, spec = llava(length=60, queries=60)
    group = (spec.key_class == int(KeyClass.PATCH)).long()
    seen = [Visibility(group, ((ALL, ALL), (ALL, ALL)), ((0, 0), (ALL, 0)))]
    args = {"scaling": call.scaling, "geometry": call.geometry, "visibility": seen}
    tensors = [tensor.double() for tensor in (call.query, call.key, call.value)]
    want, _ = attention(*tensors, redistribution=spec, **args)
    plain, weights = attention(*tensors, **args)
    scores = torch.einsum("bhqd,bhkd->bhqk", *tensors[:2]) * call.scaling
    total = scores.masked_fill(weights == 0, -torch.inf).logsumexp(-1)
    found = corrected_rows(
        plain.transpose(1, 2).float().contiguous(),
        total.float(),
        call,
        Rows.of(spec.is_touched),
        visibility=seen,
        redistribution=spec,
    )
    assert relative(found.output, want.transpose(1, 2)) < 1e-5
