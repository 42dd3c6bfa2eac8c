"""What sites answer is refused with one sentence where it is none, and one row of it stands for all."""

import gc

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.interventions import ALL, Amplification, Redistribution, Visibility
from lvlm_attn.kernels.extra import ExtraKeys
from lvlm_attn.kernels.readouts import Readout
from lvlm_attn.runtime import checked
from tests.fuzzing import IS_FULL
from tests.oracle_setup import generate
from tests.tiny import tiny_inputs, tiny_model
from tests.waiting import as_on_a_gpu

PAIR = [(1, 3, 8), (1, 2, 4)]
TOKENS = 3


def method(**sites):
    return type("Mine", (la.Intervention,), sites)()


def rows_of(layer, rows):
    return torch.ones(rows, layer.call.queries, dtype=torch.bool)


def over_positions(rows, number=1.0):
    found = torch.zeros(rows, 24)
    found[:, 4:15] = number
    return found


def move(layer, touched, classes):
    kinds = torch.tensor([[1, 0, 0, 0, 2, 2, 2, 2, 1, 2, 2, 3]], dtype=torch.int8)
    return Redistribution(kinds.repeat(classes, 1), rows_of(layer, touched), 0.5, 0.0, 0.0)


def hide(group):
    return Visibility(over_positions(group).int(), earlier=((ALL, 2), (ALL, ALL)))


HEADS = torch.tensor([[1.0, 0.0, 0.5, 2.0]])
ANSWERS = {
    "rows of a bias": lambda layer, one, two: Amplification(
        rows_of(layer, one), bias=over_positions(two, 2.0)
    ),
    "bias": lambda layer, one, two: Amplification(rows_of(layer, two), bias=over_positions(one, 2.0)),
    "gain": lambda layer, one, two: Amplification(rows_of(layer, two), gain=over_positions(one, 0.5)),
    "rows of a gain": lambda layer, one, two: Amplification(
        rows_of(layer, one), gain=over_positions(two, 0.5)
    ),
    "heads": lambda layer, one, two: Amplification(
        rows_of(layer, two), bias=over_positions(two, 2.0), heads=HEADS.repeat(one, 1)
    ),
    "all": lambda layer, one, two: Amplification(
        rows_of(layer, one), over_positions(one), over_positions(one)
    ),
    "rows of a move": lambda layer, one, two: move(layer, one, two),
    "classes": lambda layer, one, two: move(layer, two, one),
    "groups": lambda layer, one, two: hide(one),
}


# In Triton's interpreter, which is slow, those that together give every tensor in one row.
ONES = [
    (name, kernels)
    for name in ANSWERS
    for kernels in ("torch", "triton", "torch as on a GPU")
    if IS_FULL or kernels != "triton" or name in ("all", "heads", "classes", "groups")
]


@pytest.mark.parametrize(("name", "kernels"), ONES)
def test_one_row_stands_for_all(name, kernels):
    """In a prefill and at every token, from answers made anew and from the same ones, which are planned for."""
    made = tiny_model("llava", layers=1)
    inputs = tiny_inputs("llava", made, PAIR)
    site = "visibility" if name == "groups" else "reweigh"

    def logits(rows, is_kept):
        def answer(self, layer):
            kept = layer.memory if is_kept else {}
            key = layer.index, layer.call.queries
            if key not in kept:
                kept[key] = ANSWERS[name](layer, rows, 2)
            return kept[key]

        with la.wrap(made, method(**{site: answer}), kernels=kernels.partition(" ")[0]):
            return generate(made, inputs, TOKENS)[1]

    def compared():
        bare = generate(made, inputs, TOKENS)[1]
        every = logits(2, False)
        assert (every - bare).abs().amax((1, 2)).min() > 1e-3
        assert torch.equal(logits(1, False), every)
        assert torch.equal(logits(1, True), every)

    if "GPU" in kernels:
        with as_on_a_gpu():
            compared()
    else:
        compared()


def test_one_row_of_frozen_positions_stands_for_all():
    made = tiny_model("llava", layers=2)
    inputs = tiny_inputs("llava", made, PAIR)

    def found(rows):
        def frozen(self, layer):
            return rows_of(layer, rows) if layer.index else None

        with la.wrap(made, method(frozen=frozen)) as lvlm:
            return generate(made, inputs, TOKENS)[1], lvlm.report().rows

    (one, counted), (two, wanted) = found(1), found(2)
    assert torch.equal(one, two)
    assert counted == wanted


def amplify(touched=None, **fields):
    return lambda self, layer: Amplification(rows_of(layer, 1) if touched is None else touched, **fields)


def show(group, **fields):
    return lambda self, layer: Visibility(group, earlier=((ALL, 0), (ALL, ALL)), **fields)


def beside(**changed):
    def extra_keys(self, layer):
        queries = layer.call.queries
        first = torch.zeros(1, queries, dtype=torch.long)
        given = {
            "key": torch.ones(1, 2, 3, 8),
            "value": torch.ones(1, 2, 3, 8),
            "position": torch.zeros(1, 3, dtype=torch.long),
            "first": first,
            "stop": first + 1,
        }
        return ExtraKeys(**{**given, **changed})

    return extra_keys


KINDS = torch.zeros(1, 4, dtype=torch.int8)
WRONG = {
    "number": ("reweigh", lambda self, layer: 3, "3, of type int, at layer 0; it must be an Amplification"),
    "tensor": (
        "reweigh",
        lambda self, layer: torch.ones(2),
        r"a tensor of shape \(2,\) and torch.float32 at layer",
    ),
    "touched": (
        "reweigh",
        amplify(torch.ones(1, 2, dtype=torch.bool)),
        r"is_touched of shape \(1, 2\).*\(1, 37\)",
    ),
    "floats": (
        "reweigh",
        amplify(torch.ones(1, 37)),
        "is_touched of .* torch.float32 at layer 0; .* booleans",
    ),
    "list": ("reweigh", amplify([[True]]), r"is_touched=\[\[True\]\] at layer 0"),
    "bias": (
        "reweigh",
        amplify(bias=torch.zeros(3, 4)),
        r"bias of shape \(3, 4\) .* numbers \(1, positions\)",
    ),
    "gain": ("reweigh", amplify(gain=torch.zeros(37)), r"gain of shape \(37,\)"),
    "heads": ("reweigh", amplify(heads=(1, 0, 0, 0)), r"heads=\(1, 0, 0, 0\)"),
    "class": (
        "reweigh",
        lambda self, layer: Redistribution(KINDS + 9, rows_of(layer, 1), 0.5, 0, 0),
        "key_class with the number 9 at layer 0; each must be a KeyClass, from 0 to 3",
    ),
    "classes": (
        "reweigh",
        lambda self, layer: Redistribution(KINDS.float(), rows_of(layer, 1), 0.5, 0, 0),
        "key_class of .* torch.float32 at layer 0; it must be whole numbers",
    ),
    "text": ("visibility", lambda self, layer: "x", "'x', of type str, at layer 0; it must be a Visibility"),
    "group": ("visibility", show(torch.zeros(1, 3)), "group of .* whole numbers"),
    "booleans": (
        "visibility",
        show(torch.ones(1, 3, dtype=torch.bool)),
        "group of .* torch.bool .* whole numbers",
    ),
    "high": (
        "visibility",
        show(torch.full((1, 3), 2)),
        "group with the number 2 .* a row of its table, from 0 to 1",
    ),
    "low": ("visibility", show(torch.full((1, 3), -1)), "group with the number -1"),
    "readout": ("readout", lambda self, layer: "x", "'x', of type str, at layer 0; it must be a Readout"),
    "read": ("readout", lambda self, layer: Readout(torch.ones(1, 37)), "is_read of .* booleans"),
    "extra": ("extra_keys", lambda self, layer: 1, "1, of type int, at layer 0; it must be ExtraKeys"),
    "key": ("extra_keys", beside(key=torch.ones(1, 4, 3, 8)), r"key of shape \(1, 4, 3, 8\).*\(1, 2, 3, 8\)"),
    "value": ("extra_keys", beside(value=torch.ones(1, 2, 2, 8)), r"value of shape .*\(1, 2, 3, head_dim\)"),
    "position": ("extra_keys", beside(position=torch.zeros(3)), r"position of shape \(3,\)"),
    "stop": ("extra_keys", beside(stop=None), "stop=None at layer 0"),
    "weights": (
        "edit_weights",
        lambda self, layer, weights: None,
        "None at layer 0; .* return the weights themselves",
    ),
    "narrow": (
        "edit_weights",
        lambda self, layer, weights: weights[..., 1:],
        r"shape \(1, 4, 37, 36\) at layer 0",
    ),
    "few heads": (
        "scale_heads",
        lambda self, layer, heads: heads[:, :, :2],
        r"shape \(1, 37, 2, 8\) at layer 0",
    ),
    "five": ("scale_heads", lambda self, layer, heads: 5, "5, of type int, at layer 0; .* return None"),
    "whole": (
        "scale_heads",
        lambda self, layer, heads: heads.long(),
        "torch.int64 at layer 0; .* floating point",
    ),
    "module": ("modules", lambda self, layer: torch.ones(1), "at layer 0; it must be a function"),
    "added": (
        "modules",
        lambda self, layer: lambda hidden: hidden[:, :3],
        r"shape \(1, 3, 32\) at layer 0",
    ),
    "frozen": (
        "frozen",
        lambda self, layer: torch.zeros(1, 2, dtype=torch.bool),
        r"of shape \(1, 2\) .*\(1, 37\)",
    ),
    "embeds": (
        "edit_embeds",
        lambda self, context, embeds: embeds[:, 1:],
        r"shape \(1, 36, 32\); it must keep \(1, 37, 32\)",
    ),
    "logits": (
        "edit_logits",
        lambda self, context, logits: logits[..., :5],
        r"shape \(1, 37, 5\); it must keep .* vocabulary",
    ),
    "no logits": ("edit_logits", lambda self, context, logits: 2, "2, of type int; .* return None"),
    "frozen row": ("frozen", lambda self, layer: [True], r"\[True\], of type list, at layer 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_answer_is_refused(name):
    site, answer, words = WRONG[name]
    made = tiny_model("llava", layers=2)
    inputs = tiny_inputs("llava", made, PAIR[:1])
    with torch.no_grad(), la.wrap(made, method(**{site: answer})):
        with pytest.raises(la.LvlmAttnError, match=rf"^Mine\.{site}.* returned .*{words}"):
            made(**inputs)


def test_values_of_an_answer_are_looked_at_once(monkeypatch):
    looks = []
    monkeypatch.setattr(checked, "reading_is_free", lambda device: looks.append(1) or True)
    made = tiny_model("llava", layers=2)
    inputs = tiny_inputs("llava", made, PAIR)

    def visibility(self, layer):
        return layer.memory.setdefault("mask", hide(2))

    with la.wrap(made, method(visibility=visibility), kernels="torch"):
        generate(made, inputs, TOKENS)
    assert len(looks) == 1
    before = len(checked._LOOKED_AT)
    del visibility
    gc.collect()
    assert len(checked._LOOKED_AT) < before or not before


def test_heads_of_another_precision_are_brought_back():
    made = tiny_model("llava", layers=2)
    inputs = tiny_inputs("llava", made, PAIR)

    def found(factor):
        with la.wrap(made, method(scale_heads=lambda self, layer, heads: factor(heads))):
            return generate(made, inputs, TOKENS)[1]

    assert torch.equal(found(lambda heads: heads.double() * 2), found(lambda heads: heads * 2))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_weights_may_be_changed_in_place(guard):
    made = tiny_model("llava", layers=2)
    inputs = tiny_inputs("llava", made, PAIR)

    def found(edit):
        with guard(), la.wrap(made, method(edit_weights=lambda self, layer, weights: edit(weights))) as lvlm:
            return made(**inputs).logits, lvlm.report().rows

    (placed, counted), (new, wanted) = (
        found(lambda weights: weights.mul_(2)),
        found(lambda weights: weights * 2),
    )
    assert torch.equal(placed, new)
    assert counted == wanted
    assert torch.equal(found(lambda weights: weights)[0], made(**inputs).logits)


def test_one_row_of_a_readout_stands_for_all():
    made = tiny_model("llava", layers=1)
    inputs = tiny_inputs("llava", made, PAIR)

    def found(rows):
        seen = []

        def readout(self, layer):
            return Readout(rows_of(layer, rows), torch.ones(rows, 4, dtype=torch.int8), entropy=True)

        def read(self, layer, reading):
            seen.append((reading.entropy, reading.masses))

        with torch.no_grad(), la.wrap(made, method(readout=readout, read=read)):
            made(**inputs)
        return seen[0]

    assert all(torch.equal(one, two) for one, two in zip(found(1), found(2), strict=True))
