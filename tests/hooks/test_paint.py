"""PAINT against dense float64 attention with sets made by hand, and its invariants."""

import copy
import math

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.paint import PAINT, patch_sets
from lvlm_attn.kernels.readouts import Readout
from tests.hooks.full_attention import dense, extended, image_positions
from tests.hooks.towers import deep_model, token_weights
from tests.oracle_setup import generate, relative_error
from tests.tiny import IMAGE, tiny_inputs, tiny_rows
from tests.versions import needs_pre_encoding

FAMILIES = ["llava", "llava_next", "qwen2_5_vl"]
families = pytest.mark.parametrize("name", FAMILIES)
BATCH = [(1,), (0,), (2,)]
STRONG = {"alpha": 0.7, "beta": 1.5, "local": 0.4}


def quantile(values, share):
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    ordered = sorted(values)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def sets(name, model, row, local, spatial=0.0):
    """Positions of local and summary patches of a single row, from the encoder's eager attention."""
    full = name == "qwen2_5_vl"
    scores = [token_weights(name, model, row, 1 if full else 0)]
    scores.append(token_weights(name, model, row, 1 if full else 2))
    scores.append(token_weights(name, model, row, 1 if full else 0, "all"))
    where, chosen = image_positions(row).tolist(), (set(), set())
    groups = runs(where) if name != "llava" else [where[i : i + 25] for i in range(0, len(where), 25)]
    done = 0
    for group in groups:
        first, last, early = (
            {
                p: float(v)
                for p, v in zip(group, score[done : done + len(group)], strict=True)
                if not math.isnan(float(v))
            }
            for score in scores
        )
        done += len(group)
        values = list(last.values())
        low, high = quantile(values, 0.25), quantile(values, 0.75)
        summary = {p for p, v in last.items() if v > high + 1.5 * (high - low)}
        ranked = sorted(first, key=first.get, reverse=True)[: int(local * len(first))]
        ranked += sorted(early, key=early.get, reverse=True)[: int(spatial * len(first))]
        chosen[0].update(set(ranked) - summary)
        chosen[1].update(summary)
    return chosen


def runs(where):
    found = [[where[0]]] if where else []
    for place in where[1:]:
        if place == found[-1][-1] + 1:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def boosting(gain, layers, rows):
    """`s + gain |s|` in some rows of some layers."""

    def edit(layer, scores):
        if layer in layers:
            for place in rows:
                line = scores[:, :, place]
                changed = line + gain * line.abs()
                scores[:, :, place] = torch.where(line.isinf(), line, changed)
        return scores

    return edit


def truth(name, model, row, generated=None, alpha=0.7, beta=1.5, local=0.4, spatial=0.0, layers=(2, 3, 4)):
    length = row["input_ids"].shape[1]
    whole = row if generated is None else extended(row, generated)
    gain = torch.zeros(whole["input_ids"].shape[1]).double()
    if bool((row["input_ids"] == IMAGE).any()):
        near, far = sets(name, model, row, local, spatial)
        gain[list(near)] = alpha
        gain[list(far)] = beta
    double = copy.deepcopy(model).double()
    with dense(double, boosting(gain, layers, range(length - 1, len(gain)))):
        return double(**whole).logits[0], gain


@families
def test_against_dense_attention_through_decoding(name):
    model = deep_model(name)
    rows = tiny_rows(name, model, BATCH)
    with torch.no_grad(), la.wrap(model, PAINT(**STRONG)):
        ids, logits = generate(model, tiny_inputs(name, model, BATCH), 5)
    bare = generate(model, tiny_inputs(name, model, BATCH), 5)[1]
    assert not torch.equal(bare[0], logits[0])
    some = False
    for index, row in enumerate(rows):
        want, gain = truth(name, model, row, ids[index : index + 1, :-1])
        assert relative_error(logits[index], want[-5:]) < 1e-5
        some |= bool((gain == 1.5).any())
    assert some or name == "qwen2_5_vl"


def test_the_spatial_stream_is_what_patches_receive():
    model = deep_model("llava")
    row = tiny_rows("llava", model, [(2,)])[0]
    with torch.no_grad(), la.wrap(model, PAINT(**STRONG, spatial=0.3)):
        got = model(**row).logits[0]
        plain = PAINT(**STRONG)
    assert relative_error(got, truth("llava", model, row, spatial=0.3)[0]) < 1e-5
    with torch.no_grad(), la.wrap(model, plain):
        assert relative_error(got, model(**row).logits[0].double()) > 1e-4


@families
def test_neutral_keeps_every_bit(name):
    model = deep_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare = generate(model, inputs, 4)
        with la.wrap(model, PAINT(alpha=0, beta=0)):
            same = generate(model, inputs, 4)
    assert torch.equal(bare[1], same[1])


@families
def test_a_choice_of_no_patch_keeps_every_bit_of_samples_without_image(name):
    model = deep_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare = generate(model, inputs, 4)[1]
        with la.wrap(model, PAINT(**STRONG)):
            got = generate(model, inputs, 4)[1]
    assert torch.equal(bare[1], got[1])
    assert not torch.equal(bare[2], got[2])


def test_equal_gains_on_all_patches_are_pai():
    """PAI: `s + alpha |s|` at every image token, in the last row."""
    model = deep_model("llava")
    row = tiny_rows("llava", model, [(2,)])[0]
    gain = torch.zeros(row["input_ids"].shape[1]).double()
    gain[image_positions(row)] = 0.5
    double = copy.deepcopy(model).double()
    with dense(double, boosting(gain, (2, 3, 4), [len(gain) - 1])):
        want = double(**row).logits[0]
    with torch.no_grad():
        with la.wrap(model, PAINT(alpha=0.5, beta=0.5, local=1.0)):
            got = model(**row).logits[0]
        with la.wrap(model, la.PAI(alpha=0.5, gamma=1.0)):
            pai = model(**row).logits[0]
    assert relative_error(got, want) < 1e-5
    assert torch.equal(got, pai)


@families
def test_only_the_last_row_of_the_prompt_changes(name):
    model = deep_model(name)
    for side in ("left", "right"):
        inputs = tiny_inputs(name, model, BATCH, side)
        with torch.no_grad():
            bare = model(**inputs).logits
            with la.wrap(model, PAINT(**STRONG)):
                got = model(**inputs).logits
            with la.wrap(model, PAINT(**STRONG, rows="all_text")):
                every = model(**inputs).logits
        for index in range(len(BATCH)):
            last = int(inputs["attention_mask"][index].nonzero()[-1])
            is_token = inputs["attention_mask"][index].bool()
            differs = (bare[index] != got[index]).any(-1) & is_token
            assert differs.nonzero().flatten().tolist() == ([] if BATCH[index] == (0,) else [last])
            more = (bare[index] != every[index]).any(-1)
            assert int(more.sum()) > 1 or BATCH[index] == (0,)


@families
def test_image_mass_grows_with_alpha(name):
    """In the first edited layer the weight of the last row on the image does not fall as alpha grows."""
    model = deep_model(name)
    row = tiny_rows(name, model, [(1,)])[0]
    is_image = row["input_ids"][0] == IMAGE

    class Mass(la.Intervention):
        layers = 2

        def __init__(self):
            self.found = []

        def readout(self, layer):
            return Readout(torch.arange(layer.call.queries)[None] == layer.call.queries - 1, rows="heads")

        def read(self, layer, reading):
            self.found.append(reading.rows[0, :, -1][:, is_image].sum(-1))

    masses = Mass()
    for alpha in (0.01, 0.2, 0.5, 0.9, 2.0):
        with torch.no_grad(), la.wrap(model, PAINT(alpha=alpha, beta=alpha), masses):
            model(**row)
    steps = torch.stack(masses.found).diff(dim=0)
    assert (steps >= -1e-7).all()
    assert (steps > 1e-5).any()


def test_sets_are_disjoint_and_bounded():
    generator = torch.Generator().manual_seed(0)
    met = 0
    for size in (1, 2, 9, 24, 100, 577):
        for share in (0.0, 0.1, 0.25, 0.3, 1.0):
            first, last, early = torch.randn(3, size, generator=generator).exp()
            local, summary = patch_sets(first, last, early, share, 0.0)
            assert not (local & summary).any()
            assert int(local.sum()) <= math.floor(share * size + 1e-9)
            met += int(summary.sum())
    assert met > 10


@families
def test_rows_of_a_batch(name):
    model = deep_model(name)
    rows = tiny_rows(name, model, BATCH)
    with torch.no_grad(), la.wrap(model, PAINT(**STRONG, head_cap=2.0), no_image="pass"):
        ids, logits = generate(model, tiny_inputs(name, model, BATCH), 5)
        for index, row in enumerate(rows):
            one_ids, one = generate(model, row, 5)
            assert torch.equal(ids[index], one_ids[0])
            assert relative_error(logits[index], one[0].double()) < 2e-5


@families
@needs_pre_encoding
def test_beams_and_returned_sequences_have_the_sets_of_their_prompt(name):
    model = deep_model(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    options = {"num_beams": 2, "max_new_tokens": 4, "do_sample": False}
    with torch.no_grad(), la.wrap(model, PAINT(**STRONG), no_image="pass"):
        beams = model.generate(**inputs, **options)[:, -4:]
        single = [model.generate(**row, **options)[0, -4:] for row in rows]
        drawn = generate(model, inputs, 4, do_sample=True, top_k=1, num_return_sequences=2)
        greedy = generate(model, inputs, 4)
    assert torch.equal(beams, torch.stack(single))
    assert torch.equal(drawn[0], greedy[0].repeat_interleave(2, 0))


@families
def test_a_second_view_beside_the_prompt_has_sets_of_its_own(name):
    """The rows asked for come out as without the view, whose images are others."""
    model = deep_model(name)
    inputs = tiny_inputs(name, model, [(1,), (2,)])

    class Beside(la.Intervention):
        def views(self, request):
            return (request.with_pixels(lambda pixels, index: pixels.flip(0) * 0.5 + 0.3),)

        def fuse(self, main, views, step):
            assert not torch.equal(main, views[0])
            return main

    options = {
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with torch.no_grad():
        with la.wrap(model, PAINT(**STRONG)):
            alone = torch.stack(model.generate(**inputs, **options).logits)
        with la.wrap(model, PAINT(**STRONG), Beside()) as lvlm:
            joined = torch.stack(lvlm.generate(**inputs, **options).logits)
    assert relative_error(joined, alone.double()) < 2e-5


def test_head_modulation_scales_the_gain_by_the_share_of_the_head():
    model = deep_model("llava")
    row = tiny_rows("llava", model, [(1,)])[0]
    _, gain = truth("llava", model, row)
    cap = 1.2

    def edit(layer, scores):
        if layer == 2:
            line = scores[0, :, -1]
            mass = line.softmax(-1)[:, gain > 0].sum(-1)
            factor = (mass / mass.mean()).clamp(0, cap)
            scores[0, :, -1] = line + factor[:, None] * gain * line.abs()
        return scores

    double = copy.deepcopy(model).double()
    with dense(double, edit):
        want = double(**row).logits[0]
    with torch.no_grad(), la.wrap(model, PAINT(**STRONG, layers=2, head_cap=cap)):
        assert relative_error(model(**row).logits[0], want) < 1e-5


def test_second_turn_brings_a_second_image():
    """The sets of the first image stay, those of the second are added."""
    model = deep_model("llava")
    whole = tiny_rows("llava", model, [(2, 2, 4)])[0]
    ids = whole["input_ids"]
    cut = int(image_positions(whole)[24]) + 2
    first = {"input_ids": ids[:, :cut], "attention_mask": torch.ones_like(ids[:, :cut])}
    with torch.no_grad(), la.wrap(model, PAINT(**STRONG)):
        out = model(**first, pixel_values=whole["pixel_values"][:1], use_cache=True)
        got = model(
            input_ids=ids[:, cut:],
            attention_mask=torch.ones_like(ids),
            pixel_values=whole["pixel_values"][1:],
            past_key_values=out.past_key_values,
            use_cache=True,
        ).logits[0, -1]
    near, far = sets("llava", model, whole, 0.4)
    gain = torch.zeros(ids.shape[1]).double()
    gain[list(near)] = 0.7
    gain[list(far)] = 1.5

    def edit(layer, scores):
        early = boosting(gain * (torch.arange(len(gain)) < cut), (2, 3, 4), [cut - 1])(layer, scores)
        return boosting(gain, (2, 3, 4), [len(gain) - 1])(layer, early)

    double = copy.deepcopy(model).double()
    with dense(double, edit):
        want = double(**whole).logits[0, -1]
    assert relative_error(got, want) < 1e-5


def test_state_errors_and_refusals():
    model = deep_model("llava")
    rows = tiny_rows("llava", model, [(1,), (2,)])
    with torch.no_grad():
        bare = model(**rows[1]).logits
        with la.wrap(model, PAINT(**STRONG)):
            alone = model(**rows[1]).logits
        with la.wrap(model, PAINT(**STRONG)) as lvlm:
            model(**rows[0])
            assert torch.equal(model(**rows[1]).logits, alone)
            [report] = lvlm.report().rows[0]
        assert report["images"] == 3
        assert 0 < report["local_patches"] <= 10

        class Breaks(la.Intervention):
            def observe(self, layer, hidden):
                if layer.index == 3:
                    raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"), la.wrap(model, PAINT(), Breaks()):
            model(**rows[0])
        assert torch.equal(model(**rows[1]).logits, bare)
        with la.wrap(model, PAINT()):
            with pytest.raises(la.UnsupportedError, match="one pass"):
                model.generate(**rows[0], max_new_tokens=2, prefill_chunk_size=8)
            foreign = model.model.get_image_features(rows[0]["pixel_values"], return_dict=True)
            cut = type(foreign)(pooler_output=[piece + 1 for piece in foreign.pooler_output])
            rest = {key: value for key, value in rows[0].items() if key != "pixel_values"}
            with pytest.raises(la.LvlmAttnError, match="outside the wrap"):
                model(**rest, mm_encoder_outputs={"image": cut})


@pytest.mark.parametrize(
    "options",
    [{"alpha": -1}, {"beta": "x"}, {"local": 1.5}, {"spatial": -0.1}, {"rows": "las"}, {"head_cap": 0}],
)
def test_bad_parameters(options):
    with pytest.raises(la.LvlmAttnError, match=next(iter(options))) as caught:
        PAINT(**options)
    assert "\n" not in str(caught.value)
