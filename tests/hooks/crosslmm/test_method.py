"""CrossLMM inside wraps: what stays as it was, what must not matter, and how it is asked for."""

from dataclasses import dataclass

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.crosslmm.adapter import CrossLMMAdapter
from lvlm_attn.hooks.crosslmm.method import CrossLMM
from lvlm_attn.hooks.crosslmm.pooling import pooled_positions
from lvlm_attn.interventions.grammar import parse_interventions
from tests.hooks.crosslmm.test_truth import random_adapter
from tests.oracle_setup import generate, relative_error
from tests.runtime.test_lifecycle import Break, state
from tests.tiny import IMAGE, tiny_inputs, tiny_model, tiny_rows

FAMILIES = pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
BATCH = [(1, 2, 6), (0,), (2, 3, 4)]
FORMS = {
    "pooled": lambda model: CrossLMM.reuse(grid=2, w=0.0),
    "R2": lambda model: CrossLMM.reuse(grid=2, w=0.5),
    "R2 S1": lambda model: CrossLMM.reuse(grid=2, source="S1"),
    "R1": lambda model: CrossLMM.reuse(grid=2, rule="R1", source="S1"),
    "adapter": lambda model: CrossLMM(adapter=random_adapter(model, K=2, grid=(2, 2)).to(model.dtype)),
}
forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def models():
    known = {}

    def model_of(name, attn="sdpa"):
        if (name, attn) not in known:
            known[name, attn] = tiny_model(name, seed=3, attn=attn)
        return known[name, attn]

    return model_of


def forward(model, inputs, *items):
    with torch.no_grad(), la.wrap(model, *items, no_image="pass"):
        return model(**inputs).logits


@FAMILIES
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_grid_as_fine_as_the_image_keeps_every_bit(models, name, attn):
    """Neutral: nothing is pooled and nothing read beside, so pooled and stock model are one."""
    model = models(name, attn)
    for side in ("left", "right"):
        inputs = tiny_inputs(name, model, BATCH, side)
        bare = forward(model, inputs)
        assert torch.equal(forward(model, inputs, CrossLMM.reuse(grid=(64, 64), w=0.0)), bare)
        assert torch.equal(forward(model, inputs, CrossLMM.reuse(grid=(64, 64), rule="R1", lam=0.0)), bare)
        assert not torch.equal(forward(model, inputs, CrossLMM.reuse(grid=(2, 2), w=0.0)), bare)


@FAMILIES
def test_closed_gates_give_the_pooled_model_bit_by_bit(models, name):
    model = models(name)
    inputs = tiny_inputs(name, model, BATCH)
    pooled = forward(model, inputs, CrossLMM.reuse(grid=2, w=0.0))
    assert torch.equal(forward(model, inputs, CrossLMM.reuse(grid=2, rule="R1", lam=0.0)), pooled)
    adapter = CrossLMMAdapter.for_model(model, K=2, grid=(2, 2))
    assert torch.equal(forward(model, inputs, CrossLMM(adapter=adapter)), pooled)
    with torch.no_grad():
        adapter.branch(1, "t2v").gate.fill_(0.1)
    assert not torch.equal(forward(model, inputs, CrossLMM(adapter=adapter)), pooled)


@FAMILIES
def test_patches_alone_with_exact_keys_give_the_text_logits_of_the_full_model(models, name):
    """R2 with S2 keys, w = 1 and all layers: pooling changes nothing that text can see, also while decoding."""
    model = models(name)
    inputs = tiny_inputs(name, model, BATCH)
    is_text = (inputs["input_ids"] != IMAGE) & inputs["attention_mask"].bool()
    bare = forward(model, inputs)
    for options in ({}, {"branches": "t2v"}):
        got = forward(model, inputs, CrossLMM.reuse(grid=2, **options))
        assert relative_error(got[is_text], bare[is_text].double()) < 1e-5
        assert not torch.equal(got, bare)
    fewer = forward(model, inputs, CrossLMM.reuse(grid=2, layers=(0, 1, 2)))
    assert relative_error(fewer[is_text], bare[is_text].double()) > 1e-3
    ids, logits = generate(model, inputs, 5)
    with la.wrap(model, CrossLMM.reuse(grid=2)):
        found = generate(model, inputs, 5)
    assert torch.equal(found[0], ids)
    assert relative_error(found[1], logits.double()) < 1e-5


@FAMILIES
@forms
def test_rows_of_a_batch_equal_single_rows(models, name, form):
    model = models(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    item = FORMS[form](model)
    with torch.no_grad(), la.wrap(model, item, no_image="pass"):
        _, together = generate(model, inputs, 4)
    for index, row in enumerate(rows):
        with torch.no_grad(), la.wrap(model, item, no_image="pass"):
            _, alone = generate(model, row, 4)
        assert relative_error(together[index], alone[0].double()) < 2e-5


@FAMILIES
@forms
def test_a_sample_after_another_is_as_it_is_alone(models, name, form):
    model = models(name)
    first, second = tiny_rows(name, model, [(2, 3, 4), (1, 2, 6)])
    item = FORMS[form](model)
    with torch.no_grad():
        with la.wrap(model, item):
            alone = generate(model, second, 4)
        with la.wrap(model, item):
            generate(model, first, 4)
            after = generate(model, second, 4)
    assert torch.equal(after[0], alone[0])
    assert torch.equal(after[1], alone[1])


@FAMILIES
@forms
def test_an_exception_leaves_the_model_as_it_was(name, form):
    model = tiny_model(name, seed=3)
    inputs = tiny_inputs(name, model, BATCH)
    item = FORMS[form](model)
    bare, before = forward(model, inputs), state(model)
    with pytest.raises(RuntimeError, match="stop"), torch.no_grad(), la.wrap(model, item):
        model.generate(
            **inputs, max_new_tokens=5, do_sample=False, logits_processor=[Break(RuntimeError("stop"))]
        )
    assert state(model) == before
    assert torch.equal(forward(model, inputs), bare)


@FAMILIES
@forms
def test_cached_decoding_equals_one_full_forward(models, name, form):
    model = models(name)
    row = tiny_rows(name, model, [(2, 3, 4)])[0]
    item = FORMS[form](model)
    with torch.no_grad(), la.wrap(model, item):
        ids, logits = generate(model, row, 5)
        _, again = generate(model, row, 5, use_cache=False)
    assert relative_error(again, logits.double()) < 1e-5
    whole = dict(row, input_ids=torch.cat((row["input_ids"], ids), 1))
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    if "mm_token_type_ids" in row:
        whole["mm_token_type_ids"] = (whole["input_ids"] == IMAGE).int()
    full = forward(model, whole, item)[:, -6:-1]
    assert relative_error(full, logits.double()) < 1e-5


@pytest.mark.parametrize("form", ["R2", "R2 S1", "R1", "adapter"])
@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"num_beams": 1}], ids=["static", "growing"]
)
def test_a_static_cache_changes_nothing(models, form, options):
    model = models("llava_next")
    inputs = tiny_inputs("llava_next", model, BATCH)
    item = FORMS[form](model)
    with torch.no_grad(), la.wrap(model, item):
        want = generate(model, inputs, 4)
        got = generate(model, inputs, 4, **options)
    assert torch.equal(got[0], want[0])
    assert relative_error(got[1], want[1].double()) < 1e-5


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("form", ["R2", "R1", "adapter"])
def test_beams_of_a_batch_are_the_beams_of_single_rows(models, name, form):
    """Beams of a sample change places while decoding; its patches are the same for all of them."""
    model = models(name)
    batch = [(1, 2, 6), (2, 3, 4)]
    inputs, rows = tiny_inputs(name, model, batch), tiny_rows(name, model, batch)
    options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    options |= {"output_scores": True}
    with torch.no_grad(), la.wrap(model, FORMS[form](model)):
        out = model.generate(**inputs, **options)
        for index, row in enumerate(rows):
            part = model.generate(**row, **options)
            length = row["input_ids"].shape[1]
            assert torch.equal(
                part.sequences[0, length:], out.sequences[index, inputs["input_ids"].shape[1] :]
            )
            assert torch.allclose(part.sequences_scores[0], out.sequences_scores[index], atol=1e-4)


@dataclass(frozen=True)
class Nudge(la.Intervention):
    """Moves the first and the last patch of the first image apart, so that the mean of the image stays."""

    size: float = 0.0

    def edit_embeds(self, call, embeds):
        places = (call.layout.image[0] == 0).nonzero().flatten()
        embeds = embeds.clone()
        embeds[0, places[0]] += self.size
        embeds[0, places[-1]] -= self.size
        return embeds


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("form", ["reuse", "adapter"])
def test_frame_scope_keeps_images_apart(name, form):
    """What changes in an image without changing its pooled token reaches that image's pooled token, and text, alone.

    Patches are read in the last layer only, so that no other way is left."""
    model = tiny_model(name, seed=3, dtype=torch.float64)
    row = tiny_rows(name, model, [(2, 3, 4)])[0]
    is_image = row["input_ids"][0] == IMAGE
    moved = {}
    for scope in ("global", "frame"):
        if form == "adapter":
            item = CrossLMM(adapter=random_adapter(model, K=4, grid=(1, 1), v2v_scope=scope))
        else:
            item = CrossLMM.reuse(grid=1, source="S1", w=0.5, layers=3, v2v_scope=scope)
        one, two = (forward(model, row, Nudge(size), item)[0] for size in (0.0, 1.0))
        moved[scope] = ((one - two).abs().amax(-1) > 1e-4).tolist()
    second = int((is_image & ~is_image.roll(1)).nonzero()[1])
    centres = centre_of(model, name, row, item)
    assert [moved["frame"][place] for place in centres] == [True, False]
    assert [moved["global"][place] for place in centres] == [True, True]
    for found in moved.values():
        assert found[-4:] == [True] * 4  # text behind both images
        assert not any(found[: centres[0] - 1 - int(is_image[: centres[0]].sum())])
    assert centres[0] < second <= centres[1]


def centre_of(model, name, row, item):
    """The positions of the pooled tokens, read off the layout."""
    seen = []

    class Look(la.Intervention):
        def edit_embeds(self, call, embeds):
            seen.append(pooled_positions(call.layout, (1, 1))[0].nonzero().flatten().tolist())

    forward(model, row, Look())
    return seen[0]


@FAMILIES
def test_a_changed_image_moves_only_what_may_read_it(models, name):
    """Perturbing the second image leaves text and pooled tokens before it as they were, bit by bit."""
    model = models(name)
    row = tiny_rows(name, model, [(2, 3, 4)])[0]
    other = dict(row)
    pixels = row["pixel_values"].clone()
    pixels[-1] += 1.0
    other["pixel_values"] = pixels
    ids = row["input_ids"][0]
    runs = ((ids == IMAGE) & (ids.roll(1) != IMAGE)).nonzero().flatten().tolist()
    for form, make in FORMS.items():
        one, two = (forward(model, inputs, make(model))[0] for inputs in (row, other))
        assert torch.allclose(one[: runs[1]], two[: runs[1]], atol=1e-6), form
        assert not torch.allclose(one[-1], two[-1], atol=1e-4), form


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("form", ["R2", "R2 S1", "R1", "adapter"])
def test_a_second_turn_in_words_goes_on_reading_the_patches(models, name, form):
    model = models(name)
    row = tiny_rows(name, model, [(1, 2, 6)])[0]
    words = torch.tensor([[31, 44, 17]])
    item = FORMS[form](model)
    with torch.no_grad(), la.wrap(model, item):
        first = model.generate(**row, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat((first.sequences, words), 1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in row:
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
            inputs["image_grid_thw"] = row["image_grid_thw"]
        _, got = generate(model, inputs, 3, past_key_values=first.past_key_values)
        _, want = generate(model, {**row, **inputs}, 3)
    assert relative_error(got, want.double()) < 1e-5


@pytest.mark.parametrize("source", ["S0", "S1", "S2"])
def test_an_image_in_a_later_turn(models, source):
    """Patches of both turns are read; a full pass over the prompt so far cannot be had any more."""
    model = models("llava")
    rows = tiny_rows("llava", model, [(1, 2, 4), (1, 3, 5)])
    item = CrossLMM.reuse(grid=2, source=source, w=0.5)
    # Images come with a forward, so that both turns are forwards here.
    ids = torch.cat([row["input_ids"] for row in rows], 1)
    pixels = torch.cat([row["pixel_values"] for row in rows])
    want = forward(model, {"input_ids": ids, "pixel_values": pixels}, item)[:, -5:]
    with torch.no_grad(), la.wrap(model, item):
        first = model(input_ids=rows[0]["input_ids"], pixel_values=rows[0]["pixel_values"], use_cache=True)
        later = {"input_ids": rows[1]["input_ids"], "pixel_values": rows[1]["pixel_values"]}
        if source == "S2":
            with pytest.raises(la.UnsupportedError, match="later turn"):
                model(**later, past_key_values=first.past_key_values)
            return
        second = model(**later, past_key_values=first.past_key_values)
    assert relative_error(second.logits[:, -5:], want.double()) < 1e-5


def test_deepstack_features_are_pooled_too():
    """Qwen3-VL adds image features behind its first layers; R2 with exact keys proves they reach the patches."""
    model = tiny_model("qwen3_vl", seed=3)
    inputs = tiny_inputs("qwen3_vl", model, BATCH)
    is_text = (inputs["input_ids"] != IMAGE) & inputs["attention_mask"].bool()
    bare = forward(model, inputs)
    got = forward(model, inputs, CrossLMM.reuse(grid=2))
    assert relative_error(got[is_text], bare[is_text].double()) < 1e-5
    seen = []

    def catch(module, args, kwargs):
        if kwargs.get("deepstack_visual_embeds") is not None:
            seen.append(kwargs["deepstack_visual_embeds"][0])

    row = tiny_rows("qwen3_vl", model, [(1, 2, 6)])[0]
    handle = model.model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        forward(model, row)
        with torch.no_grad(), la.wrap(model, CrossLMM.reuse(grid=1, w=0.0)):
            handle.remove()
            handle = model.model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
            model(**row)
    finally:
        handle.remove()
    plain, pooled = seen
    is_mean = (pooled - plain.mean(0)).abs().amax(1) < 1e-6
    assert int(is_mean.sum()) == 1
    assert torch.equal(pooled[~is_mean], plain[~is_mean])


def test_chunked_prefill_is_refused(models):
    model = models("llava")
    inputs = tiny_inputs("llava", model, [(1, 2, 6)])
    with torch.no_grad(), la.wrap(model, CrossLMM.reuse()), pytest.raises(la.UnsupportedError, match="chunk"):
        generate(model, inputs, 3, prefill_chunk_size=7)


@pytest.mark.parametrize(
    "text",
    [
        "crosslmm",
        "crosslmm:grid=[4,4],w=0.5",
        "crosslmm:rule=R1,source=S1,lam=0.2,layers=1..3",
        "crosslmm:source=S0,w=0.5,pool=bilinear,branches=t2v,v2v_scope=frame,causal_images=false",
        "crosslmm:weights=folder/adapter.safetensors",
    ],
)
def test_text_and_object_are_each_others_inverse(text):
    (item,) = parse_interventions(text, {"crosslmm": CrossLMM})
    assert parse_interventions(str(item), {"crosslmm": CrossLMM}) == (item,)
    assert len(str(item)) == len(text)


def test_the_default_is_the_reuse_form():
    text = "crosslmm:grid=[3,3],rule=R2,source=S2,w=1.0"
    assert parse_interventions(text, {"crosslmm": CrossLMM}) == (CrossLMM.reuse(),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "R3"}, "rule='R3'.*R1, R2"),
        ({"source": "s2"}, "Did you mean 'S2'"),
        ({"w": 1.5}, "w=1.5 .* at most 1"),
        ({"w": float("nan")}, "w=nan"),
        ({"grid": (0, 3)}, "grid="),
        ({"grid": (3, 3, 3)}, "grid="),
        ({"rule": "R1", "w": 0.5}, "w has no meaning"),
        ({"lam": 0.5}, "lam has no meaning"),
        ({"weights": "a.safetensors", "grid": (4, 4)}, "grid belongs to"),
        ({"adapter": 3}, "adapter=3"),
        ({"causal_images": 1}, "causal_images=1"),
        ({"pool": "bilnear"}, "Did you mean 'bilinear'"),
    ],
)
def test_bad_parameters_are_refused_in_one_sentence(options, message):
    with pytest.raises(la.LvlmAttnError, match=message) as caught:
        CrossLMM(**options)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_named_before_anything_changes(models):
    model = models("llava")
    before = state(model)
    with (
        pytest.raises(la.LvlmAttnError, match="nowhere"),
        la.wrap(model, CrossLMM(weights="nowhere.safetensors")),
    ):
        pass
    assert state(model) == before


def test_the_report_counts_patches_and_tokens(models):
    model = models("llava")
    inputs = tiny_inputs("llava", model, [(1, 2, 6), (0,)])
    with (
        torch.no_grad(),
        la.wrap(model, CrossLMM(adapter=random_adapter(model, K=2, grid=(2, 2)).float())) as lvlm,
    ):
        model(**inputs)
        (rows,) = lvlm.report().rows
    assert [row["layer"] for row in rows] == [1, 3]
    assert rows[0]["patches"] == 25
    assert rows[0]["pooled_tokens"] == 4
    assert -1 < rows[0]["gate_t2v"] < 1
    assert "nothing yet" not in str(lvlm.report())
