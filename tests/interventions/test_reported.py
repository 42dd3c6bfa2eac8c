"""Every method, a user's too, reports what it did, and a long wrap takes no more memory than a short one."""

import pickle

import pytest
import torch

import lvlm_attn as la
from tests.tiny import tiny_inputs, tiny_model
from tests.tiny_processors import PICTURES, QUESTIONS, tiny_processor

BATCH = [(2,), (0,), (1,)]


class Quiet(la.Intervention):
    def scale_heads(self, layer, heads):
        return heads * 0.5


class MoreImage(la.Intervention):
    def edit_weights(self, layer, weights):
        weights = weights * (1 + layer.layout.is_patch[:, None, None, :].to(weights.dtype))
        return weights / weights.sum(-1, keepdim=True)


class Other(la.Intervention):
    def views(self, request):
        return (request,)

    def fuse(self, main, views, step):
        return 2 * main - views[0]


def left_half(image, question):
    values = torch.zeros(image.height, image.width)
    values[:, : image.width // 2] = 1
    return values, 0.5


@pytest.mark.parametrize(
    "method",
    [
        la.CARVE(mode="first", layers=[1]),
        la.AGLA(matcher=left_half),
        la.VCD(),
        la.ICD(),
        la.PAI(),
        la.VHR(layers=[1]),
        Quiet(),
        MoreImage(),
        Other(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_what_a_method_did_is_reported_without_code_of_its_own(method):
    """Reports of CARVE, AGLA and users' methods once said "nothing yet" after they had acted."""
    with la.wrap(tiny_model("llava"), method, processor=tiny_processor("llava")) as lvlm:
        assert "nothing yet" in str(lvlm.report())
        lvlm.generate(images=PICTURES[:2], prompts=QUESTIONS[:2], max_new_tokens=3)
        report = lvlm.report()
    assert report.rows[0]
    assert "nothing yet" not in str(report)


def kept(lvlm):
    """Bytes of what the wrap's methods have counted, once all of it is added up."""
    lvlm.report()
    states = [state for _, state in lvlm._session.editors]
    return len(pickle.dumps([(state.stats, state.counts) for state in states]))


@pytest.mark.parametrize(
    "method", [la.VHR(layers=[1, 2]), la.VAR(tau=2.0, sink_dims=(7,)), la.PAI(gamma=1), MoreImage()]
)
def test_what_is_counted_does_not_grow_in_a_long_wrap(method):
    """VHR once kept the divergence of every head of every prompt."""
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    with torch.no_grad(), la.wrap(model, method) as lvlm:
        model(**inputs)
        after_one, first = kept(lvlm), lvlm.report().rows
        for _ in range(30):
            model(**inputs)
        assert kept(lvlm) <= after_one + 64
        if isinstance(method, la.VHR):  # means of the same prompt again and again
            for row, again in zip(first[0], lvlm.report().rows[0]):
                assert again["most_often"] == row["most_often"]
                for key in ("heads_chosen", "mean_divergence"):
                    assert again[key] == pytest.approx(row[key])
