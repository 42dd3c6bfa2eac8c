"""The parts of controls by themselves: thresholds, AUROC, equal length, identities."""

from itertools import product

import numpy as np
import pytest

import lvlm_attn as la
from lvlm_attn.evals.controls.equal_length import cut_to_equal_length, words
from lvlm_attn.evals.controls.identity import identity_of
from lvlm_attn.evals.controls.matched import auroc, margin, matched_answers
from lvlm_attn.evals.core.answerer import Decoding, ModelAnswerer
from lvlm_attn.toy import scenes


def lines_of(odds, labels=None):
    labels = labels or ["yes", "no"] * len(odds)
    return [
        {
            "sample_id": str(i),
            "label": label,
            "first_token": {"yes": value, "no": 1 - value},
            "raw_text": "No",
        }
        for i, (value, label) in enumerate(zip(odds, labels))
    ]


def test_auroc_is_the_share_of_pairs_in_order():
    generator = np.random.default_rng(0)
    odds = np.round(generator.random(60), 1).tolist()  # with ties
    labels = generator.choice(["yes", "no"], 60).tolist()
    pairs = [
        (x > y) + 0.5 * (x == y)
        for (x, a), (y, b) in product(zip(odds, labels), repeat=2)
        if (a, b) == ("yes", "no")
    ]
    assert auroc(lines_of(odds, labels)) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(lines_of([0.2, 0.3], ["yes", "yes"])) is None
    assert auroc([{"label": "yes"}, {"label": "no"}]) is None


@pytest.mark.parametrize("wanted", [0.0, 0.1, 0.33, 0.5, 0.77, 1.0])
def test_the_share_of_yes_is_as_near_as_a_threshold_can_bring_it(wanted):
    odds = np.round(np.random.default_rng(1).random(50), 1).tolist()
    said = [line["raw_text"] == "Yes" for line in matched_answers(lines_of(odds), wanted)]
    reachable = [sum(value >= cut for value in odds) for cut in [*set(odds), 2]]
    assert abs(sum(said) - 50 * wanted) == min(abs(count - 50 * wanted) for count in reachable)
    least = min((value for value, yes in zip(odds, said) if yes), default=2)
    assert all(yes == (value >= least) for value, yes in zip(odds, said))


def test_without_probabilities_there_is_no_threshold():
    assert matched_answers([{"sample_id": "1"}], 0.5) is None
    assert margin({"first_token": {"yes": 0.0, "no": 1.0}}) < -20


def test_captions_are_cut_to_the_shorter_one():
    first = [
        {"sample_id": str(i), "raw_text": text}
        for i, text in enumerate(["A dog, a cat!", "", "One two three"])
    ]
    second = [
        {"sample_id": str(i), "raw_text": text}
        for i, text in enumerate(["A dog's bed.", "x y", "One two three"])
    ]
    one, two = cut_to_equal_length(first, [*second, {"sample_id": "9", "raw_text": "alone"}])
    assert [line["raw_text"] for line in one] == ["A dog, a", "", "One two three"]
    assert [line["raw_text"] for line in two] == ["A dog's bed", "", "One two three"]
    assert all(len(words(a["raw_text"])) == len(words(b["raw_text"])) for a, b in zip(one, two))


METHODS = [
    "var:tau=0.0",
    "vhr",
    "pai",
    "vcd",
    "hollow",
    "icd",
    "dola",
    "carve",
    "agla:matcher=self",
    "vhr+pai:gamma=1.0",
]


@pytest.fixture(scope="module")
def asked():
    return [scene.image for scene in scenes("dev", 2)], ["Please describe this image.", "Is there a dog?"]


def answers(loaded, interventions, asked):
    with ModelAnswerer(*loaded, interventions, Decoding(max_new_tokens=6)) as answerer:
        found = answerer.answer(*asked, seeds=[0, 0])
    return [answer.raw_text for answer in found]


@pytest.mark.parametrize("text", METHODS)
def test_an_identity_goes_the_way_of_its_method_and_changes_no_answer(loaded, asked, text):
    methods = la.parse(text)
    identity = identity_of(methods)
    for item, original in zip(identity, methods):
        for site in ("views", "fuse", "scale_heads", "edit_logits", "edit_embeds"):
            assert item.overrides(site) == original.overrides(site)
    assert str(identity[0]).startswith("identity(")
    assert answers(loaded, identity, asked) == answers(loaded, (), asked)


def test_the_identity_of_a_search_is_a_plain_search_with_as_many_beams(loaded, asked):
    model, processor = loaded
    method = la.parse("opera")
    image, prompt = asked[0][0], asked[1][0]
    found = answers(loaded, identity_of(method), ([image], [prompt]))
    with ModelAnswerer(model, processor, (), Decoding(max_new_tokens=6)) as bare:
        request = bare.prepare([image], [prompt])
        out = model.generate(**request.inputs, max_new_tokens=6, num_beams=method[0].beams, do_sample=False)
    start = request.inputs["input_ids"].shape[1]
    assert found == [processor.tokenizer.decode(out[0, start:], skip_special_tokens=True)]
