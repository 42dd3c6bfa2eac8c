"""Controls of questions that are answered by a letter: thresholds between A and B, alone and beside yes/no."""

import json

import numpy as np
import pytest
import torch

import lvlm_attn as la
from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
from lvlm_attn.evals.closed.catalogue import CLOSED
from lvlm_attn.evals.controls.judge import Judge
from lvlm_attn.evals.controls.matched import auroc, held, margin, matched_answers
from lvlm_attn.evals.core.answerer import Decoding
from lvlm_attn.evals.core.first_token import Choices, FirstToken, choices_of
from tests.evals.closed import copies
from tests.evals.runs import run_of, settings

COUNT = 400
WORDS = {"A": ("A", "B"), "yes": ("yes", "no")}


class Pieces:
    """A tokenizer that knows some texts as one token and cuts all others into characters."""

    def __init__(self, *whole):
        self.known = {text: 1000 + place for place, text in enumerate(whole)}

    def encode(self, text, add_special_tokens):
        return [self.known[text]] if text in self.known else [ord(character) for character in text]

    def decode(self, ids):
        names = {number: text for text, number in self.known.items()}
        return "".join(names.get(number) or chr(number) for number in ids)


def test_letters_are_found_alone_after_a_blank_and_in_brackets():
    found = choices_of(Pieces(" A", "(b", " ("), ("A", "B"))
    assert found.ids == {"A": [ord("A"), ord("a"), 1000], "B": [ord("B"), ord("b"), 1001]}
    assert found.brackets == {ord("(")}
    words = choices_of(Pieces("Yes", " no", "no"), ("yes", "no"))
    assert words.ids == {"yes": [1000], "no": [1001, 1002]}
    assert words.brackets == frozenset()


def test_after_a_bracket_the_letter_is_the_second_token():
    reads = FirstToken(Choices({"yes": [4], "no": [5], "A": [1], "B": [2]}, frozenset({3})))
    first = torch.log(torch.tensor([[0.1, 0.5, 0.2, 0.1, 0.06, 0.04]] * 2))
    second = torch.log(torch.tensor([[0.1, 0.15, 0.7, 0.05, 1e-9, 1e-9]] * 2))
    ids = torch.tensor([[0, 0], [0, 0]])
    assert torch.equal(reads(ids, first), first)
    reads(torch.tensor([[0, 0, 3], [0, 0, 1]]), second)
    reads(torch.tensor([[0, 0, 3, 3], [0, 0, 1, 3]]), first)
    assert reads.of_row(0) == pytest.approx({"yes": 0.06, "no": 0.04, "A": 0.15, "B": 0.7}, rel=1e-4)
    assert reads.of_row(1) == pytest.approx({"yes": 0.06, "no": 0.04, "A": 0.5, "B": 0.2}, rel=1e-4)


def test_one_pair_without_tokens_does_not_hide_the_other():
    reads = FirstToken(Choices({"yes": [0], "no": [1], "A": [], "B": [1]}))
    reads(torch.zeros(1, 3), torch.zeros(1, 2))
    assert reads.of_row(0) == {"yes": 0.5, "no": 0.5}


def leaning(skill, threshold, first="A", seed=0):
    """Answers by noisy log odds of the first of two words; how well they order questions is `skill`."""
    generator, lines = np.random.default_rng(seed), []
    words = WORDS[first]
    for i, noise in enumerate(generator.standard_normal(COUNT)):
        odds = skill * (1 - 2 * (i % 2)) + noise
        share = 1 / (1 + np.exp(-odds))
        lines.append(
            {
                "sample_id": f"{first}{i}", "image": f"{i // 2}.jpg", "cluster": f"set {i // 2}",
                "category": "all", "label": words[i % 2], "question": f"Which {first}{i}?",
                "raw_text": words[int(odds <= threshold)].capitalize(),
                "first_token": {words[0]: 0.8 * share, words[1]: 0.8 * (1 - share)},
                **({"options": ["open", "closed"]} if first == "A" else {}),
            }
        )  # fmt: skip
    return lines


def judged(bare, method, asks_yes_no=False, name="mmvp"):
    scoring = {"parser": "strict", "parts": ["all"]}
    runs = [run_of(title, lines, settings(name), scoring) for title, lines in (("b", bare), ("m", method))]
    return Judge(runs[1], {"bare": runs[0], "identity": runs[0]}, 300).found("var", asks_yes_no, 0.1)


def row(found, name):
    return next(item for item in found.rows if item.name == name)


def test_a_method_that_only_leans_less_towards_b_does_not_survive():
    found = judged(leaning(1.2, 1.5), leaning(1.2, 0.0))
    assert [item.name for item in found.rows] == ["identity", "letter shift", "plausible"]
    assert found.is_gain
    assert row(found, "letter shift").change.difference == pytest.approx(0, abs=0.006)
    assert not found.survives
    assert "letter threshold moved" in found.verdict()
    assert found.details["probability of a letter in the bare model"] == pytest.approx(0.8)


def test_a_method_that_reads_options_better_survives():
    found = judged(leaning(0.8, 0.6), leaning(2.0, 0.0, seed=1))
    assert found.survives
    assert found.details["of the method"] > found.details["AUROC of the bare model"] + 0.05
    assert "The letter shift answers A to " in row(found, "letter shift").remark


def test_letters_beside_yes_and_no_get_thresholds_of_their_own():
    """Both lean, to other sides; one threshold for all would undo neither."""
    bare = leaning(1.2, 1.5) + leaning(1.2, -1.5, "yes")
    method = leaning(1.2, 0.0) + leaning(1.2, 0.0, "yes")
    found = judged(bare, method, True, "naturalbench")
    assert [item.name for item in found.rows] == ["identity", "prefer-yes", "threshold shift", "plausible"]
    assert row(found, "prefer-yes").change is None
    assert "--subset yes_no" in row(found, "prefer-yes").remark
    assert row(found, "threshold shift").change.difference == pytest.approx(0, abs=0.006)
    assert "yes/no and letter thresholds moved" in found.verdict()
    assert found.details["AUROC of the bare model, letter"] == pytest.approx(auroc(leaning(1.2, 1.5)))


def test_without_probabilities_of_letters_nothing_is_run():
    bare = [{**line, "first_token": {"yes": 0.5, "no": 0.5}} for line in leaning(1.2, 1.5)]
    shift = row(judged(bare, leaning(1.2, 0.0)), "letter shift")
    assert shift.change is None
    assert "probabilities of A and B" in shift.remark


def test_the_parts_know_both_kinds():
    line = {"label": "B", "first_token": {"yes": 0.9, "no": 0.1, "A": 0.2, "B": 0.4}}
    assert margin(line) == pytest.approx(-np.log(2))
    assert held([line]) == pytest.approx(0.6)
    assert held([{"label": "B"}]) is None
    assert [found["raw_text"] for found in matched_answers([line, {**line, "label": "A"}], 1.0)] == ["A", "A"]


@pytest.mark.parametrize(
    ("name", "copy", "runs"),
    [
        ("mmvp", copies.mmvp, {"bare", "identity"}),
        ("naturalbench", copies.naturalbench, {"bare", "identity"}),
    ],
)
def test_controls_of_a_benchmark_with_letters(loaded, tmp_path, name, copy, runs):
    benchmark = ClosedBenchmark.from_folder(CLOSED[name], copy(tmp_path / "copy"))
    done, found = la.evaluate_with_controls(
        *loaded, benchmark, la.VHR(), out=tmp_path / "run", decoding=Decoding(max_new_tokens=2)
    )
    assert {path.name for path in (tmp_path / "run/controls").iterdir()} == runs
    assert {"A", "B"} <= set(done.lines[0]["first_token"])
    told = json.loads((tmp_path / "run/controls.json").read_text())
    assert [item["name"] for item in told["rows"]] == [item.name for item in found.rows]


def test_a_part_with_yes_and_no_alone_gets_its_request(loaded, tmp_path):
    folder = copies.naturalbench(tmp_path / "copy")
    benchmark = ClosedBenchmark.from_folder(CLOSED["naturalbench"], folder, subsets=["yes_no"])
    assert (benchmark.asks_yes_no, benchmark.asks_letters) == (True, False)
    _, found = la.evaluate_with_controls(
        *loaded, benchmark, la.VHR(), out=tmp_path / "run", decoding=Decoding(max_new_tokens=2)
    )
    assert row(found, "prefer-yes").change is not None
    letters = ClosedBenchmark.from_folder(CLOSED["naturalbench"], folder, subsets=["multiple_choice"])
    assert (letters.asks_yes_no, letters.asks_letters) == (False, True)
