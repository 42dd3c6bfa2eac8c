"""OPERA against a search by hand in float64 without a cache, transformers' beam search, and its own rules."""

import math
from itertools import pairwise

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.opera.method import OPERA
from lvlm_attn.hooks.opera.scores import common_column, grown, penalties
from tests.hooks.full_attention import dense, extended, image_positions
from tests.oracle_setup import relative_error, sink_model, twin
from tests.tiny import FIRST_WORD, VOCAB, tiny_inputs, tiny_rows
from tests.versions import needs_pre_encoding

FAMILIES = ["llava", "llava_next", "qwen2_5_vl"]
families = pytest.mark.parametrize("name", FAMILIES)
families_in_batches = pytest.mark.parametrize(
    "name", ["llava", pytest.param("llava_next", marks=needs_pre_encoding), "qwen2_5_vl"]
)
BATCH = [(1,), (2,)]
BEAMS = {"num_beams": 3, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}


def forward(double, row, tokens):
    """Logits behind the tokens, and the last layer's weights, largest over heads, rows summing to 1."""
    whole = extended(row, torch.tensor([tokens], dtype=torch.long)) if tokens else row
    last, seen = len(double.model.language_model.layers) - 1, []

    def look(layer, scores):
        if layer == last:
            seen.append(scores.softmax(-1).amax(1)[0])
        return scores

    with dense(double, look):
        logits = double(**whole).logits[0, -1]
    weights = seen[0]
    return logits, weights / weights.sum(-1, keepdim=True)


def by_hand(double, row, steps, beams, candidates, sigma, alpha):
    """The search in loops over beams and words; no token ends an answer."""
    prompt, where = row["input_ids"].shape[1], image_positions(row)
    alive, punished = [(0.0, [])], 0.0
    for _ in range(steps):
        found = []
        for score, tokens in alive:
            logits, _ = forward(double, row, tokens)
            allowed = logits.clone()
            allowed[:FIRST_WORD] = -torch.inf
            words = allowed.topk(candidates).indices.tolist()
            judged = []
            for word in words:
                _, weights = forward(double, row, [*tokens, word])
                local = weights[prompt:, prompt:]
                size = len(local)
                if size <= 10:
                    penalty = -float(weights[-1, where].sum())
                else:
                    penalty = max(
                        1e-7 * math.prod(sigma * float(local[i, j]) for i in range(j, size))
                        for j in range(size)
                    )
                    punished = max(punished, penalty)
                judged.append(float(logits[word]) - alpha * penalty)
            total = float(torch.tensor(judged).double().logsumexp(0))
            found += [(score + v - total, [*tokens, w]) for v, w in zip(judged, words, strict=True)]
        alive = sorted(found, key=lambda pair: -pair[0])[:beams]
    return alive, punished


@families
def test_against_a_search_by_hand(name):
    model, double = sink_model(name), twin(name)
    row = tiny_rows(name, model, BATCH)[0]
    method = OPERA(candidates=2, sigma=300.0, alpha=0.8, r=None)
    options = BEAMS | {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.0}
    with torch.no_grad(), la.wrap(model, method) as lvlm:
        out = lvlm.generate(**row, **options, max_new_tokens=12)
    want, punished = by_hand(double, row, 12, 2, 2, 300.0, 0.8)
    assert punished > 0.01
    got = out.sequences[:, row["input_ids"].shape[1] :].tolist()
    assert got == [tokens for _, tokens in want]
    for score, (value, _) in zip(out.sequences_scores.tolist(), want, strict=True):
        assert abs(score - value) < 1e-3 * max(1, abs(value))


@families_in_batches
@pytest.mark.parametrize(
    "method",
    [OPERA(candidates=1, alpha=0, r=10**6), OPERA(candidates=VOCAB, alpha=0, r=None)],
    ids=["one", "all words"],
)
@pytest.mark.parametrize("end", [None, 37])
def test_without_penalty_and_going_back_it_is_beam_search(name, method, end):
    model = sink_model(name)
    rows = [tiny_inputs(name, model, BATCH)] if method.r is None else tiny_rows(name, model, BATCH)
    options = BEAMS | {
        "max_new_tokens": 9,
        "suppress_tokens": [],
        "num_return_sequences": 2,
        "eos_token_id": end,
    }
    for inputs in rows:
        for more in (
            ({"length_penalty": -1.0, "early_stopping": True}, {"repetition_penalty": 1.3}) if end else ({},)
        ):
            with torch.no_grad():
                bare = model.generate(**inputs, **options, **more)
                with la.wrap(model, method) as lvlm:
                    got = lvlm.generate(**inputs, **options, **more)
            assert torch.equal(got.sequences, bare.sequences)
            assert torch.allclose(got.sequences_scores, bare.sequences_scores, atol=1e-4)
            assert torch.equal(got.beam_indices, bare.beam_indices)


@families
def test_neutral_keeps_every_bit(name):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare = model.generate(**inputs, **BEAMS, max_new_tokens=4)
        with la.wrap(model, OPERA(candidates=1, r=None)) as lvlm:
            got = lvlm.generate(**inputs, **BEAMS, max_new_tokens=4)
    assert torch.equal(bare.sequences_scores, got.sequences_scores)


@families_in_batches
def test_rows_of_a_batch(name):
    model = sink_model(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with torch.no_grad(), la.wrap(model, OPERA(r=None)) as lvlm:
        out = lvlm.generate(**inputs, **BEAMS, max_new_tokens=13)
        for index, row in enumerate(rows):
            one = lvlm.generate(**row, **BEAMS, max_new_tokens=13)
            assert torch.equal(one.sequences[0, -13:], out.sequences[index, -13:])
            assert abs(float(one.sequences_scores[0] - out.sequences_scores[index])) < 1e-4


@families
@pytest.mark.parametrize(
    "method", [OPERA(candidates=3, r=1, beta=3), OPERA(candidates=1, r=1, beta=3)], ids=str
)
def test_going_back_restores_the_state(name, method):
    """Also after going back, every logit along the answer is that of a forward without a cache."""
    model, double = sink_model(name), twin(name)
    row = tiny_rows(name, model, BATCH)[0]
    with torch.no_grad(), la.wrap(model, method) as lvlm:
        out = lvlm.generate(**row, **BEAMS, max_new_tokens=18, output_logits=True)
    answer, prompt = out.sequences[:, row["input_ids"].shape[1] :], row["input_ids"].shape[1]
    with dense(double):
        want = double(**extended(row, answer[:, :-1])).logits[0, prompt - 1 :]
    got = torch.stack([out.logits[step][beam] for step, beam in enumerate(out.beam_indices[0].tolist())])
    assert relative_error(got, want) < 1e-5


def test_some_search_went_back():
    """So that the test above is about going back."""
    model = sink_model("llava")
    row = tiny_rows("llava", model, BATCH)[0]
    for candidates in (1, 3):
        with torch.no_grad(), la.wrap(model, OPERA(candidates=candidates, r=1, beta=3)) as lvlm:
            lvlm.generate(**row, **BEAMS, max_new_tokens=18)
            [report] = lvlm.report().rows[0]
        assert report["went_back"] > 0


def test_column_scores_are_products():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(6, 6, generator=generator).double()
    columns = torch.zeros(0).double()
    for row in range(6):
        columns = grown(columns, weights[row, : row + 1], 50.0)
    want = [1e-7 * math.prod(50.0 * float(weights[i, j]) for i in range(j, 6)) for j in range(6)]
    assert torch.allclose(columns.exp(), torch.tensor(want).double())
    assert penalties(columns, torch.tensor(0.3)).tolist() == pytest.approx(-0.3)
    long = torch.arange(11).double().log()
    assert float(penalties(long, torch.tensor(0.3))) == pytest.approx(10)
    assert torch.isfinite(penalties(torch.full((11,), 1e5).double(), torch.tensor(0.0)))
    assert bool((grown(torch.zeros(0).double(), torch.zeros(1).double(), 1.0) == -torch.inf).all())


def test_beams_have_to_agree():
    assert common_column(torch.tensor([[12, 12, 12], [12, 12, 11]]), 2) == 12
    assert common_column(torch.tensor([[12, 12, 12], [12, 12, 11]]), 3) is None
    assert common_column(torch.tensor([[12, 12, 12], [11, 11, 11]]), 1) is None
    assert common_column(torch.tensor([[9, 9, 9], [9, 9, 9]]), 1) is None  # too early in the answer
    assert common_column(torch.zeros(2, 0).long(), 1) is None


def test_places_gone_back_to_never_fall_and_are_bounded():
    from lvlm_attn.hooks.opera import loop as opera_loop

    seen = []
    original = opera_loop.common_column

    def watched(history, r):
        found = original(history, r)
        seen.append((history.shape[1], found))
        return found

    model = sink_model("llava_next")
    row = tiny_rows("llava_next", model, BATCH)[0]
    opera_loop.common_column = watched
    try:
        with torch.no_grad(), la.wrap(model, OPERA(r=1, beta=2)) as lvlm:
            lvlm.generate(**row, **BEAMS, max_new_tokens=25)
    finally:
        opera_loop.common_column = original
    falls = [column for (length, column), (later, _) in pairwise(seen) if later <= length]
    assert falls
    assert falls == sorted(falls)
    assert all(falls.count(column) <= 2 for column in falls)


@families_in_batches
def test_state_and_errors_leave_nothing_behind(name):
    model = sink_model(name)
    first, second = tiny_rows(name, model, BATCH)
    options = BEAMS | {"max_new_tokens": 12}
    with torch.no_grad():
        bare = model(**second).logits
        with la.wrap(model, OPERA()) as lvlm:
            alone = lvlm.generate(**second, **options)
        with la.wrap(model, OPERA()) as lvlm:
            lvlm.generate(**first, **options)
            again = lvlm.generate(**second, **options)
        assert torch.equal(alone.sequences_scores, again.sequences_scores)

        class Breaks(la.Intervention):
            def observe(self, layer, hidden):
                if not layer.is_prompt:
                    raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"), la.wrap(model, OPERA(), Breaks()) as lvlm:
            lvlm.generate(**first, **options)
        assert torch.equal(model(**second).logits, bare)


def test_it_goes_together_with_methods_inside_the_model():
    model = sink_model("llava")
    row = tiny_rows("llava", model, BATCH)[0]
    options = BEAMS | {"max_new_tokens": 12, "suppress_tokens": []}
    with torch.no_grad(), la.wrap(model, la.VHR(layers=(1, 3))):
        want = model.generate(**row, **options)
    with (
        torch.no_grad(),
        la.wrap(model, la.VHR(layers=(1, 3)), OPERA(candidates=VOCAB, alpha=0, r=None)) as lvlm,
    ):
        got = lvlm.generate(**row, **options)
    assert torch.equal(got.sequences, want.sequences)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 1}, "num_beams=5"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"use_cache": False}, "use_cache"),
        ({"cache_implementation": "static"}, "cache_implementation"),
    ],
)
def test_refused_settings(options, words):
    model = sink_model("llava")
    row = tiny_rows("llava", model, BATCH)[0]
    with torch.no_grad(), la.wrap(model, OPERA()) as lvlm:
        with pytest.raises(la.LvlmAttnError, match=words) as caught:
            lvlm.generate(**row, **({"num_beams": 2, "max_new_tokens": 3, "do_sample": False} | options))
        assert "\n" not in str(caught.value)


def test_a_batch_cannot_go_back_and_plain_generate_is_refused():
    model = sink_model("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    with torch.no_grad(), la.wrap(model, OPERA()) as lvlm:
        with pytest.raises(la.LvlmAttnError, match="one prompt at a time"):
            lvlm.generate(**inputs, num_beams=2, max_new_tokens=3)
        with pytest.raises(la.LvlmAttnError, match=r"lvlm\.generate"):
            model.generate(**inputs, num_beams=2, max_new_tokens=3)


@pytest.mark.parametrize(
    "options", [{"candidates": 0}, {"sigma": 0}, {"alpha": -1}, {"r": 0}, {"beta": 0.5}], ids=str
)
def test_bad_parameters(options):
    with pytest.raises(la.LvlmAttnError, match=next(iter(options))):
        OPERA(**options)
