"""Bytes that a recording holds at its peak, counted tensor by tensor, against what it predicts before the run."""

import pytest
import torch

import lvlm_attn as la
from benchmarks.recording_memory import counted
from lvlm_attn.maps.recording import Step
from tests.tiny import tiny_inputs, tiny_model

TOKENS = 24


@pytest.fixture
def peak():
    with counted() as found:
        yield lambda: found.bytes


def recorded(recorder, *others, batch=((1,), (1,)), tokens=TOKENS, **options):
    """Maps of an answer that is as long as it may be, and the bytes predicted for them."""
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, list(batch))
    with la.wrap(model, *others, recorder) as lvlm:
        model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **options)
        return lvlm.maps, round(lvlm.report().rows[-1][0]["predicted_mib"] * 2**20)


@pytest.mark.parametrize("rows", ["generated", "last", "prompt", "all", [3, -1], [2]])
@pytest.mark.parametrize("reduce", [None, "heads", "layers", "all"])
def test_no_more_and_no_less_is_held_than_predicted(peak, rows, reduce):
    maps, predicted = recorded(la.record(rows=rows, reduce=reduce))
    assert maps.weights
    assert peak() == predicted


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"layers": (0, 2), "heads": (1, 3)}, {}),
        ({"heads": (1, 3), "reduce": "heads"}, {}),
        ({}, {"cache_implementation": "static"}),
        ({"rows": "all"}, {"num_beams": 3}),
        ({}, {"num_beams": 3, "num_return_sequences": 2}),
        ({"reduce": "all"}, {"tokens": 200}),
        ({}, {"batch": ((1,), (2,), (0,))}),
        ({"rows": "prompt"}, {"batch": ((2,), (2, 3))}),
    ],
    ids=str,
)
def test_other_recordings(peak, settings, options):
    _, predicted = recorded(la.record(**settings), **options)
    assert 0.9 * predicted <= peak() <= predicted


def test_rows_of_views_are_not_held_along(peak):
    class Twice(la.Intervention):
        def views(self, request):
            return [request]

        def fuse(self, main, views, step):
            return main

    model, processor = la.load("toy")
    picture = la.toy.scenes("test")[0].image
    with la.wrap(model, Twice(), la.record(), processor=processor) as lvlm:
        lvlm.generate(images=[picture], prompts=["Describe this image."], max_new_tokens=8, min_new_tokens=8)
        predicted = round(lvlm.report().rows[-1][0]["predicted_mib"] * 2**20)
    assert peak() == predicted


def test_rows_that_are_left_out_leave_in_place():
    weights = torch.arange(24.0).view(1, 2, 4, 3)
    step = Step(torch.tensor([[5, -1, 7, 8]]), torch.tensor([[6, -1, 8, 9]]), 5, weights={0: weights.clone()})
    kept = step.weights[0].untyped_storage().data_ptr()
    step.keep(torch.tensor([True, False, True, True]))
    assert step.rows.tolist() == [[5, 7, 8]]
    assert step.targets.tolist() == [[6, 8, 9]]
    assert torch.equal(step.weights[0], weights[:, :, [0, 2, 3]])
    assert step.weights[0].untyped_storage().data_ptr() == kept


def test_on_disk_no_step_is_held(peak, tmp_path):
    _, predicted = recorded(la.record(to=tmp_path))
    assert predicted > 2**16
    mapped = sum(path.stat().st_size for path in tmp_path.rglob("*.f32"))
    assert mapped <= predicted
    assert peak() <= mapped  # files that are read as memory
