"""CMAI against dense float64 attention with focus scores in loops, and its invariants."""

import copy
import math

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.cmai import CMAI, lowest
from lvlm_attn.kernels.readouts import Readout
from tests.hooks.full_attention import dense, extended
from tests.oracle_setup import generate, relative_error, sink_model, twin
from tests.tiny import IMAGE, tiny_inputs, tiny_rows
from tests.versions import needs_pre_encoding

FAMILIES = ["llava", "llava_next", "qwen2_5_vl"]
families = pytest.mark.parametrize("name", FAMILIES)
BATCH = [(1,), (0,), (2,)]
LAYER = 1
METHOD = CMAI(layer=LAYER, quantile=0.6, keep_min=2)


def newlines(model, row):
    """Image positions that hold the newline embedding."""
    where = (row["input_ids"][0] == IMAGE).nonzero().flatten()
    if not hasattr(model.model, "image_newline"):
        return set()
    with torch.no_grad():
        features = torch.cat(
            list(
                model.model.get_image_features(
                    row["pixel_values"], image_sizes=row["image_sizes"], return_dict=True
                ).pooler_output
            )
        )
    same = (features == model.model.image_newline).all(-1)
    return set(where[same].tolist())


def inhibit(ids, fillers, quantile, keep_min, own=False, found=None):
    """Hides the patches of lowest focus, word by word."""
    is_text = [int(token) != IMAGE for token in ids]
    state = {}

    def edit(layer, scores):
        if layer == LAYER:
            weights = scores.softmax(-1)[0].mean(0)
            hide = {}
            for t, text in enumerate(is_text):
                patches = [n for n in range(t) if not is_text[n] and n not in fillers]
                if not text or not patches:
                    continue
                words = [s for s in range(t + 1) if is_text[s]]
                total = sum(float(weights[t, s]) for s in words)
                focus = {}
                for n in patches:
                    focus[n] = sum(
                        float(weights[t, s]) / total * float(weights[s, n]) for s in words if s > n
                    )
                    focus[n] += float(weights[t, n]) if own else 0.0
                count = min(math.floor(quantile * len(patches) + 1e-6), max(len(patches) - keep_min, 0))
                hide[t] = sorted(patches, key=lambda n: (focus[n], n))[:count]
            state["hide"] = hide
            if found is not None:
                found.append(hide)
        if layer > LAYER:
            for t, hidden in state["hide"].items():
                scores[:, :, t, hidden] = -torch.inf
        return scores

    return edit


def truth(name, row, generated=None, **options):
    double = twin(name)
    whole = row if generated is None else extended(row, generated)
    has_image = bool((row["input_ids"] == IMAGE).any())
    fillers = newlines(sink_model(name), row) if has_image else set()
    with dense(double, inhibit(whole["input_ids"][0], fillers, **{"quantile": 0.6, "keep_min": 2} | options)):
        return double(**whole).logits[0]


@families
def test_cached_decoding_equals_a_full_forward(name):
    model = sink_model(name)
    rows = tiny_rows(name, model, BATCH)
    with torch.no_grad():
        bare = generate(model, tiny_inputs(name, model, BATCH), 5)[1]
        with la.wrap(model, METHOD):
            ids, logits = generate(model, tiny_inputs(name, model, BATCH), 5)
            full = model(**extended(rows[0], ids[:1, :-1])).logits[0, -5:]
    assert relative_error(full, logits[0].double()) < 2e-5
    for index, row in enumerate(rows):
        want = truth(name, row, ids[index : index + 1, :-1])
        assert relative_error(logits[index], want[-5:]) < 1e-5
    assert torch.equal(logits[1], bare[1])
    assert relative_error(logits[0], bare[0].double()) > 1e-3


def test_own_attention_counts_once_more():
    model = sink_model("llava")
    row = tiny_rows("llava", model, BATCH)[0]
    with torch.no_grad(), la.wrap(model, CMAI(layer=LAYER, quantile=0.6, keep_min=2, own=True)):
        got = model(**row).logits[0]
    assert relative_error(got, truth("llava", row, own=True)) < 1e-5
    assert relative_error(got, truth("llava", row)) > 1e-4


@families
def test_neutral_keeps_every_bit(name):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare = generate(model, inputs, 4)[1]
        for method in (CMAI(quantile=0), CMAI(keep_min=10**6)):
            with la.wrap(model, method):
                assert torch.equal(generate(model, inputs, 4)[1], bare)


class Look(la.Intervention):
    """Keeps what enters each layer, and which weights on image tokens are zero behind the layer of the scores."""

    def __init__(self):
        self.entered, self.weights = {}, {}

    def observe(self, layer, hidden):
        self.entered[layer.index] = hidden.clone()

    def readout(self, layer):
        return Readout(layer.call.text_queries(torch.device("cpu")), rows="heads")

    def read(self, layer, reading):
        index = reading.index + layer.call.start
        self.weights[layer.index] = (reading.rows.clone(), index, reading.is_read)


@families
def test_layers_up_to_the_scores_keep_their_bits_and_rows_keep_some_patches(name):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    bare, look = Look(), Look()
    with torch.no_grad():
        with la.wrap(model, bare):
            model(**inputs)
        with la.wrap(model, METHOD, look):
            model(**inputs)
    for layer in range(LAYER + 2):
        assert torch.equal(bare.entered[layer], look.entered[layer])
    assert not torch.equal(bare.entered[LAYER + 2], look.entered[LAYER + 2])
    is_image = inputs["input_ids"] == IMAGE
    for layer, (weights, index, is_read) in look.weights.items():
        for sample, row in is_read.nonzero().tolist():
            place = int(index[sample, row])
            on_image = weights[sample, :, row, :place][:, is_image[sample, :place]]
            shown = int((on_image > 0).all(0).sum())
            assert shown >= 2
            if layer <= LAYER:
                assert shown == on_image.shape[1]
            else:
                assert shown < on_image.shape[1]


@families
def test_rows_of_a_batch(name):
    model = sink_model(name)
    with torch.no_grad(), la.wrap(model, METHOD, no_image="pass"):
        for side in ("left", "right"):
            inputs = tiny_inputs(name, model, BATCH, side)
            got = model(**inputs).logits
            for index, row in enumerate(tiny_rows(name, model, BATCH)):
                is_token = inputs["attention_mask"][index].bool()
                assert relative_error(got[index][is_token], model(**row).logits[0].double()) < 2e-5


@needs_pre_encoding
def test_other_ways_of_generating():
    model = sink_model("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    row = tiny_rows("llava", model, BATCH)[0]
    with torch.no_grad(), la.wrap(model, METHOD):
        ids, logits = generate(model, inputs, 5)
        for options in ({"use_cache": False}, {"cache_implementation": "static"}):
            other, more = generate(model, inputs, 5, **options)
            assert torch.equal(ids, other)
            assert relative_error(more, logits.double()) < 2e-5
        chunked = generate(model, row, 5, prefill_chunk_size=7)
        assert relative_error(chunked[1], logits[:1].double()) < 2e-5
        looked_up = generate(model, row, 5, prompt_lookup_num_tokens=2, max_matching_ngram_size=1)
        assert torch.equal(looked_up[0], ids[:1])
        with pytest.raises(la.UnsupportedError, match="num_beams=1"):
            model.generate(**inputs, num_beams=2, max_new_tokens=2)


def test_state_and_errors_leave_nothing_behind():
    model = sink_model("llava")
    rows = tiny_rows("llava", model, BATCH)
    with torch.no_grad():
        bare = model(**rows[2]).logits
        with la.wrap(model, METHOD):
            alone = model(**rows[2]).logits
        with la.wrap(model, METHOD) as lvlm:
            model(**rows[0])
            assert torch.equal(model(**rows[2]).logits, alone)
            [report] = lvlm.report().rows[0]
        assert report["layer"] == LAYER
        assert 0.5 < report["hidden"] <= 0.6

        class Breaks(la.Intervention):
            def observe(self, layer, hidden):
                if layer.index == 3:
                    raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"), la.wrap(model, METHOD, Breaks()):
            model(**rows[0])
        assert torch.equal(model(**rows[2]).logits, bare)


def test_lowest_in_ties_takes_the_earlier_and_keeps_enough():
    scores, all_of_them = torch.zeros(5), torch.ones(5, dtype=torch.bool)
    assert lowest(scores, all_of_them, 0.5, 1).tolist() == [True, True, False, False, False]
    assert lowest(scores, all_of_them, 1.0, 3).tolist() == [True, True, False, False, False]
    assert not lowest(scores, all_of_them, 1.0, 9).any()


def test_the_default_layer_is_the_middle_one():
    model = copy.copy(sink_model("llava"))
    with la.wrap(model, CMAI()) as lvlm:
        assert lvlm.interventions[0].layer == 2


@pytest.mark.parametrize("options", [{"quantile": 2}, {"keep_min": 0}, {"layer": -1}, {"own": 1}], ids=str)
def test_bad_parameters(options):
    with pytest.raises(la.LvlmAttnError, match=next(iter(options))):
        CMAI(**options)


def test_a_last_layer_is_refused():
    model = sink_model("llava")
    with pytest.raises(la.LvlmAttnError, match="deeper"), la.wrap(model, CMAI(layer=4)):
        pass
