"""A method written with CONTRIBUTING alone, against attention by the formula."""

import copy

import pytest
import torch

import lvlm_attn as la
from tests.newcomer.lean import Lean
from tests.newcomer.oracle import changing, leaning, twin
from tests.tiny import IMAGE, tiny_inputs, tiny_model, tiny_rows

BATCH = [(1,), (2, 3), (0,)]
LAYERS = (1, 2)
families = pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
EXACT = {"image": 1.125, "system": 0.875}
"""Factors whose gains are exact in fp32."""


def formula(model, row, *, layers=LAYERS, **factors):
    change = leaning(row["input_ids"][0].tolist(), IMAGE, **(EXACT | factors), layers=layers)
    with torch.no_grad(), changing(change):
        return twin(model)(**row).logits


def double(row):
    return {key: value.double() if value.is_floating_point() else value for key, value in row.items()}


@families
def test_scores_of_a_prompt(name):
    model = copy.deepcopy(tiny_model(name)).double()
    for row in map(double, tiny_rows(name, model, BATCH)):
        with torch.no_grad(), la.wrap(model, Lean(**EXACT, layers=LAYERS)):
            got = model(**row).logits
        torch.testing.assert_close(got, formula(model, row), rtol=1e-9, atol=1e-9)
    assert (formula(model, row) - model(**row).logits).abs().max() < 1e-9  # the last row has no image


@families
def test_factors_that_are_not_exact_in_fp32(name):
    model = copy.deepcopy(tiny_model(name)).double()
    row = double(tiny_rows(name, model, BATCH)[1])
    with torch.no_grad(), la.wrap(model, Lean(image=1.15, system=0.9, layers=LAYERS)):
        got = model(**row).logits
    torch.testing.assert_close(got, formula(model, row, image=1.15, system=0.9), rtol=1e-4, atol=2e-6)


@families
def test_the_factors_matter(name):
    model = copy.deepcopy(tiny_model(name)).double()
    row = double(tiny_rows(name, model, BATCH)[1])
    want = formula(model, row)
    for other in ({"image": 1.0}, {"system": 1.0}, {"layers": (1,)}):
        assert (formula(model, row, **other) - want).abs().max() > 1e-6


@families
def test_decoding(name):
    model = copy.deepcopy(tiny_model(name)).double()
    row = double(tiny_rows(name, model, BATCH)[1])
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with torch.no_grad(), la.wrap(model, Lean(**EXACT, layers=LAYERS)):
        got = model.generate(**row, **options, output_logits=True, return_dict_in_generate=True)
    ids = got.sequences[:, :-1]
    longer = row | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in row:
        longer["mm_token_type_ids"] = (ids == IMAGE).int()
    # `generate` gives logits in fp32.
    torch.testing.assert_close(torch.stack(got.logits, 1), formula(model, longer)[:, -4:].float())


@families
def test_rows_of_a_batch_equal_single_rows(name):
    model = tiny_model(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with torch.no_grad(), la.wrap(model, Lean(layers=LAYERS)):
        together = model(**inputs).logits
        alone = [model(**row).logits[0] for row in rows]
    for index, single in enumerate(alone):
        assert (together[index][inputs["attention_mask"][index].bool()] - single).abs().max() < 1e-5


def test_neutral_and_failing():
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, BATCH)

    class Breaks(la.Intervention):
        def observe(self, layer, hidden):
            raise RuntimeError("broken")

    with torch.no_grad():
        bare = model(**inputs).logits
        with la.wrap(model, Lean(image=1, system=1)):
            assert torch.equal(model(**inputs).logits, bare)
        with pytest.raises(RuntimeError, match="broken"), la.wrap(model, Lean(), Breaks()):
            model(**inputs)
        assert torch.equal(model(**inputs).logits, bare)


def test_parameters_and_text():
    assert str(Lean(image=1, layers=[3, 1])) == "lean:image=1.0,layers=[1,3]"
    for wrong, message in (
        ({"image": -1}, "Lean: image=-1 must be a number at least 0"),
        ({"system": "x"}, "Lean: system='x' must be a number"),
        ({"layers": "a"}, "Lean: layers='a' cannot be read"),
    ):
        with pytest.raises(la.LvlmAttnError, match=message):
            Lean(**wrong)


def test_the_report_counts_it():
    model = tiny_model("llava")
    with torch.no_grad(), la.wrap(model, Lean(layers=LAYERS)) as lvlm:
        model(**tiny_inputs("llava", model, [(1,)]))
    assert lvlm.report().rows[0] == [
        {"layer": layer, "rows_changed": 1.0} for layer in LAYERS
    ]  # nothing measures mass
