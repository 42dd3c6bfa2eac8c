"""In every family: recording changes no bit in float32, and keeps what eager attention used in the same pass."""

import pytest
import torch

import lvlm_attn as la
from tests.doubled import Doubled
from tests.hooks.recorded import doubled, doubled_model
from tests.tiny import ALL_NAMES, tiny_inputs, tiny_model

BATCH = [(1,), (0,), (2,)]
TOKENS = 4
ROUNDED = 2**-24  # maps are kept in float32, which rounds a weight of up to 1 by up to 2**-25


@pytest.fixture(autouse=True)
def ungraded():
    with torch.no_grad():
        yield


def generated(model, inputs, *interventions, **options):
    """The output with its logits, and the maps if there is a recorder."""
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "return_dict_in_generate": True}
    with la.wrap(model, *interventions) as lvlm:
        output = model.generate(**inputs, **settings | options, output_logits=True)
        return output, lvlm.maps if interventions else None


class Look(la.Intervention):
    """Sees every layer, and changes nothing."""

    def observe(self, layer, hidden):
        pass


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ALL_NAMES)
def test_recording_changes_no_logit_bit(name, side):
    model = tiny_model(name)
    inputs = tiny_inputs(name, model, BATCH, side)
    bare, _ = generated(model, inputs)
    if name == "gemma4":
        # Its last layers process the last token of a prompt alone, and all tokens under a wrap: the last bits differ.
        with la.wrap(model, Look()):
            bare, _ = generated(model, inputs)
    for rows in ("generated", "prompt", "last", "all", [0, -1]):
        output, maps = generated(model, inputs, la.record(rows=rows))
        assert torch.equal(output.sequences, bare.sequences)
        assert torch.equal(torch.stack(output.logits), torch.stack(bare.logits))
        assert len(maps) > 0
    plain = model(**inputs).logits
    with la.wrap(model, la.record(rows="all")):
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_recorded_rows_are_those_of_the_same_pass_in_eager_attention(name):
    """In float64: scores of the tiny models reach 50, of which float32 rounds off more than a weight may differ by."""
    model = doubled_model(name, "eager")
    inputs = doubled(tiny_inputs(name, model, BATCH))
    with Doubled():
        output, maps = generated(model, inputs, la.record(rows="all"), output_attentions=True)
    prompt = inputs["input_ids"].shape[1]
    seen = 0
    for step, by_layer in enumerate(output.attentions):
        full = dict(
            zip(maps.layers, [one for one in by_layer if one is not None and one.dim() == 4], strict=True)
        )
        for sample in range(len(BATCH)):
            for number, position in enumerate(maps.rows[sample].tolist()):
                first = 0 if step == 0 else prompt + step - 1
                if position < 0 or not first <= position < first + full[maps.layers[0]].shape[2]:
                    continue
                for layer, whole in full.items():
                    row = whole[sample, :, position - first]
                    keys = maps.layout.length
                    row = torch.nn.functional.pad(row, (prompt + step - row.shape[-1], 0))
                    row = torch.nn.functional.pad(row, (0, keys - row.shape[-1]))
                    valid = maps.layout.is_valid[sample]
                    got = maps.weights[layer][sample, :, number]
                    assert float((got - row)[:, valid].abs().max()) < ROUNDED
                    seen += 1
    assert seen > len(maps.layers) * len(BATCH) * TOKENS
