"""The recorder beside every method: it changes no bit, and shows what the method made of the weights."""

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.layout.prompt import Kind
from tests.oracle_setup import sink_model
from tests.test_composition import IMAGES, METHODS
from tests.tiny_processors import QUESTIONS, tiny_processor

TOKENS = 3


def answered(name, *recorders, rows="generated", **options):
    """Output and wrap of two prompts under a method."""
    model = sink_model("llava")
    search = {"num_beams": 2, "output_scores": True} if name == "OPERA" else {"output_logits": True}
    with la.wrap(model, METHODS[name](), *recorders, processor=tiny_processor("llava")) as lvlm:
        output = lvlm.generate(
            images=IMAGES,
            prompts=QUESTIONS[:2],
            max_new_tokens=TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            **search,
            **options,
        )
        report = lvlm.report()
    return output, lvlm, report


def numbers(output):
    return output.sequences_scores if hasattr(output, "sequences_scores") else torch.stack(output.logits)


@pytest.mark.parametrize("rows", ["generated", "all"])
@pytest.mark.parametrize("name", METHODS)
def test_no_bit_changes(name, rows):
    bare, _, told = answered(name)
    output, lvlm, report = answered(name, la.record(rows=rows))
    assert torch.equal(output.sequences, bare.sequences)
    assert torch.equal(numbers(output), numbers(bare))
    assert report.rows[0] == told.rows[0]
    maps = lvlm.maps
    assert len(maps.meta["interventions"]) == 1
    assert maps.batch == 2
    assert torch.equal(maps.ids, output.sequences)
    answer = output.sequences.shape[1] - TOKENS
    for sample in range(2):
        targets = maps.targets[sample].tolist()
        assert targets[-TOKENS:] == list(range(answer, answer + TOKENS))
    extra = maps.extra or dict.fromkeys(maps.layers, 0.0)
    for layer in maps.layers:
        total = maps.weights[layer].sum(-1) + extra[layer]
        is_row = (maps.rows >= 0)[:, None].expand_as(total)
        assert torch.allclose(total[is_row], torch.ones(()), atol=1e-5)
    assert bool((maps.layout.kind[:, :answer] != Kind.GENERATED).all())
    if name != "OPERA":
        assert maps.images[0][0].picture is not None
        assert maps.sample(0).pixels(image=0).shape[::-1] == maps.images[0][0].size


SEEN = [
    "VAR",
    "VHR",
    "PAINT",
    "DoLa",
    "MMA",
    "VisualSelf",
    "FrozenVisual",
    "Hollow",
    "Delayed",
    "Neighborhood",
    "Power",
]


@pytest.mark.parametrize("name", SEEN)
def test_weights_are_those_after_the_edits(name):
    """With eager attention transformers returns the edited weights itself."""
    model = sink_model("llava", attn="eager")
    with la.wrap(model, METHODS[name](), la.record(), processor=tiny_processor("llava")) as lvlm:
        output = lvlm.generate(
            images=IMAGES,
            prompts=QUESTIONS[:2],
            max_new_tokens=TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_attentions=True,
        )
    maps = lvlm.maps
    for step, by_layer in enumerate(output.attentions):
        for layer, full in enumerate(by_layer):
            got = maps.weights[layer][:, :, step, : full.shape[-1]]
            assert float((got - full[:, :, -1]).abs().max()) < 1e-6
            assert not maps.weights[layer][:, :, step, full.shape[-1] :].any()


def test_the_extra_keys_of_crosslmm_are_a_number_of_their_own():
    _, lvlm, _ = answered("CrossLMM", la.record())
    maps = lvlm.maps
    assert max(float(value.max()) for value in maps.extra.values()) > 0.01
    from lvlm_attn.maps.statistics import class_masses

    found = class_masses(maps)
    assert found["extra keys"].max() > 0.01
    assert sum(values[1] for values in found.values()) == pytest.approx(1, abs=1e-5)
    _, lvlm, _ = answered("VAR", la.record())
    assert not lvlm.maps.extra


def test_a_longer_view_does_not_move_the_rows():
    """ICD's view has more words; positions are still those of the prompt that was asked."""
    icd, lvlm, _ = answered("ICD", la.record())
    prompt = icd.sequences.shape[1] - TOKENS
    assert lvlm.maps.rows[0].tolist() == list(range(prompt - 1, prompt + TOKENS - 1))
    layout = lvlm.maps.layout
    assert int(layout.is_patch[0].sum()) == layout.grids[0][0].patches
    model = sink_model("llava")
    with la.wrap(model, la.record(), processor=tiny_processor("llava")) as plain:
        ids = icd.sequences[:, prompt:]
        plain.generate(images=IMAGES, prompts=QUESTIONS[:2], answers=ids)
    for layer in lvlm.maps.layers:
        assert torch.allclose(plain.maps.weights[layer], lvlm.maps.weights[layer], atol=2e-6)


def test_wraps_around_the_recorder_are_seen_and_named():
    model = sink_model("llava")
    with la.wrap(model, METHODS["VAR"](), processor=tiny_processor("llava")):
        with la.wrap(model, la.record(), processor=tiny_processor("llava")) as inner:
            inner.generate(images=IMAGES, prompts=QUESTIONS[:2], max_new_tokens=TOKENS, do_sample=False)
            assert inner.maps.meta["interventions"][0].startswith("var:")
    _, lvlm, _ = answered("VAR", la.record())
    for layer in inner.maps.layers:
        assert torch.equal(inner.maps.weights[layer], lvlm.maps.weights[layer])
