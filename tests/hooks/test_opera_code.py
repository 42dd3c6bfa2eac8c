"""OPERA as its released code runs it, against the same search by hand: whole forwards, lists of tokens, no cache.

The one by hand follows the released loop step by step; it knows nothing of the package.
"""

import statistics

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.opera.method import OPERA
from lvlm_attn.hooks.opera.released import FLOOR, Past, place, without_given_up
from tests.hooks.full_attention import image_positions
from tests.hooks.test_opera import forward
from tests.oracle_setup import sink_model, twin
from tests.tiny import tiny_rows
from tests.versions import skip_faults

BATCH = [(1,), (2,)]
OPTIONS = {"do_sample": False, "return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
OPTIONS |= {"suppress_tokens": [], "eos_token_id": None}  # so that no two words tie at the lowest logit


class ByHand:
    """The released search for one prompt in which no token ends an answer."""

    def __init__(self, double, row, beams, candidates, sigma, alpha, r, beta):
        self.double, self.row, self.beams, self.candidates = double, row, beams, candidates
        self.sigma, self.alpha, self.r, self.beta = sigma, alpha, r, beta
        self.prompt, self.where = row["input_ids"].shape[1], image_positions(row)
        self.went_back = []

    def scores(self, tokens, word):
        """Penalty of a word behind some tokens, and the column that is the largest with it in place."""
        _, weights = forward(self.double, self.row, [*tokens, word])
        rows = [weights[self.prompt + number, self.prompt :] for number in range(len(tokens) + 1)]
        columns = []
        for column in range(len(rows)):
            product = 1e-7
            for one in rows[column:]:
                product *= self.sigma * float(one[column])
            columns.append(product)
        largest = columns.index(max(columns))
        if len(rows) <= 10:
            return -float(weights[-1, self.where].sum()), largest
        return max(columns), largest

    def run(self, steps):
        alive = [(0.0, [])] + [(-1e9, [])] * (self.beams - 1)
        states, history, chosen = [], [], []
        count, given_up = {}, {}
        while True:
            now = len(alive[0][1])
            if now == steps:
                return sorted(alive, key=lambda pair: -pair[0])
            states.append(alive)
            logits = [forward(self.double, self.row, tokens)[0] for _, tokens in alive]
            judged, slots = [], []
            for (_, tokens), values in zip(alive, logits):
                words = values.topk(self.candidates).indices.tolist()
                found = [self.scores(tokens, word) for word in words]
                judged.append((words, [penalty for penalty, _ in found]))
                slots.append(mode([largest for _, largest in found]))
            history.append(slots)
            back = self.place(history, mode(slots), count)
            if back is None:
                filled = []
                for values, (words, penalties) in zip(logits, judged):
                    one = torch.full_like(values, -999.0)
                    for word, penalty in zip(words, penalties):
                        one[word] = values[word] - self.alpha * penalty
                    filled.append(one)
            else:
                self.went_back.append(back)
                tokens = min(back, now - 1)
                given_up.pop(back + 1, None)
                given_up.setdefault(back, []).extend(chosen[tokens])
                alive = states[tokens]
                states, history, chosen = states[: tokens + 1], history[: tokens + 1], chosen[:tokens]
                filled = [forward(self.double, self.row, one)[0] for _, one in alive]
                filled = [one - 999.0 - one.min() for one in filled]
                for parent, word in given_up[back]:
                    filled[parent][word] = -999.0
            found = []
            for parent, ((score, _), values) in enumerate(zip(alive, filled)):
                logs = values.log_softmax(-1)
                found += [(score + float(one), parent, word) for word, one in enumerate(logs)]
            best = sorted(found, key=lambda item: -item[0])[: self.beams]
            chosen.append([(parent, word) for _, parent, word in best])
            alive = [(score, [*alive[parent][1], word]) for score, parent, word in best]

    def place(self, history, column, count):
        for slot in range(self.beams):
            if sum(step[slot] == column for step in history) < self.r:
                return None
        if column < 10:
            return None
        back = column + 1
        if count.get(back, 0) >= self.beta:
            back -= 1
            if count.get(back, 0) >= self.beta:
                return None
        count[back] = count.get(back, 0) + 1
        return back


def mode(values):
    """The most frequent value, the smallest of several."""
    return min(statistics.multimode(values))


@pytest.mark.parametrize(
    ("name", "row", "sigma", "r", "beta"),
    [("llava", 0, 8.0, 1, 1), ("llava_next", 0, 14.0, 1, 2)],
)
def test_equals_the_released_search_by_hand(name, row, sigma, r, beta):
    model, double = sink_model(name), twin(name)
    row = tiny_rows(name, model, BATCH)[row]
    method = OPERA(preset="code", candidates=2, sigma=sigma, alpha=0.8, r=r, beta=beta)
    with torch.no_grad(), la.wrap(model, method) as lvlm:
        out = lvlm.generate(**row, **OPTIONS, num_beams=2, num_return_sequences=2, max_new_tokens=20)
        [report] = lvlm.report().rows[0]
    hand = ByHand(double, row, 2, 2, sigma, 0.8, r, beta)
    with torch.no_grad():
        want = hand.run(20)
    assert len(hand.went_back) > 1
    assert report["went_back"] == len(hand.went_back)
    assert out.sequences[:, hand.prompt :].tolist() == [tokens for _, tokens in want]
    for score, (value, _) in zip(out.sequences_scores.tolist(), want):
        assert abs(score - value) < 1e-3 * max(1, abs(value))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_with_one_candidate_it_is_greedy(name, images):
    if images > 1:
        skip_faults(name, "images of beams")
    model = sink_model(name)
    options = {"do_sample": False, "max_new_tokens": 14, "suppress_tokens": [], "eos_token_id": None}
    row = tiny_rows(name, model, BATCH)[images - 1]
    with torch.no_grad():
        greedy = model.generate(**row, **options)
        with la.wrap(model, OPERA(preset="fast", r=None)) as lvlm:
            got = lvlm.generate(**row, **options, num_beams=3)
    assert torch.equal(got[:, : greedy.shape[1]], greedy)


def past(*steps, **others):
    return Past(largest=[torch.tensor(step) for step in steps], **others)


def test_the_column_is_that_of_this_step_over_all_beams():
    assert place(past((12, 11), (12, 12)), 2, 5) is None  # the second row had it once
    assert place(past((12, 12), (12, 12)), 2, 5) == 13
    assert place(past((12, 12), (12, 12), (11, 11)), 2, 5) is None  # at this step it is another
    assert place(past((9, 9), (9, 9)), 2, 5) is None  # too early in the answer


def test_a_position_gone_back_to_too_often_is_left_for_the_one_before():
    counted = past((12, 12), (12, 12), count={13: 2})
    assert place(counted, 2, 2) == 12
    assert place(counted, 2, 2) == 12
    assert place(counted, 2, 2) is None
    assert counted.count == {13: 2, 12: 2}
    assert place(past((511, 511)), 1, 5) is None  # beyond the longest answer


def test_a_word_is_given_up_behind_its_parent_alone():
    logits = torch.tensor([[1.0, 5.0, 3.0], [2.0, 6.0, 4.0]])
    found = without_given_up(logits, torch.tensor([1, 3 + 2]))
    assert found[0].tolist() == [FLOOR, FLOOR, FLOOR + 2]
    assert found[1].tolist() == [FLOOR, FLOOR + 4, FLOOR]


def test_presets_count_as_the_code_does():
    assert (OPERA(preset="code").r, OPERA(preset="fast").r) == (16, 26)
    assert OPERA() == OPERA(preset="paper")
    assert not OPERA(preset="fast", r=None).is_neutral()
    assert OPERA(preset="code", r=None).rows_at_once() == 1
