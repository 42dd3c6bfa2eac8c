"""MMA: image tokens attend to the question after them, as the invariants of AKI's mask say."""

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.mma.groups import Spans, groups_of
from tests.hooks.masked import (
    BATCH,
    FEW,
    LAYERS,
    TOKENS,
    at_all,
    causal,
    check,
    check_order,
    masked,
    model_of,
    sample_of,
    states_of,
    table,
    twin_of,
)
from tests.oracle_setup import generate, relative_error
from tests.tiny import IMAGE, tiny_inputs, tiny_rows

few = pytest.mark.parametrize("name", FEW)
MARK = (11, 12)


def to_prompt_end(sample, i, j):
    ahead = sample.is_image(i) and not sample.is_image(j) and i < j < sample.prompt
    return j <= i or ahead


def general(sample, i, j):
    return j <= i or (sample.is_image(i) != sample.is_image(j) and j < sample.prompt)


def halves(sample, i, j):
    return 1.0 if j <= i else 0.5 * to_prompt_end(sample, i, j)


def ends_of_markers(sample):
    return [k + 1 for k in range(sample.prompt - 1) if tuple(sample.ids[k : k + 2]) == MARK]


def same_turn(sample, i, j):
    if j <= i or not sample.is_image(i) or sample.is_image(j) or j >= sample.prompt:
        return j <= i
    end = next((end for end in ends_of_markers(sample) if end > i), sample.prompt)
    return j <= end


def reference(sample, i, j):
    ends = ends_of_markers(sample)
    return j <= i or (sample.is_image(i) and not sample.is_image(j) and bool(ends) and j <= ends[0])


def with_text(row, *tails):
    """A row whose last words are replaced by `tails` (lists of ids)."""
    last = int((row["input_ids"][0] == IMAGE).nonzero()[-1])
    keep = last + 2 if "mm_token_type_ids" in row else last + 1  # Qwen's images end with a token of their own
    ids = torch.tensor([row["input_ids"][0, :keep].tolist() + [token for tail in tails for token in tail]])
    made = dict(row, input_ids=ids, attention_mask=torch.ones_like(ids))
    if "mm_token_type_ids" in row:
        made["mm_token_type_ids"] = (ids == IMAGE).int()
    return made


def logits_of(name, row, item, **options):
    model = model_of(name)
    with torch.no_grad(), la.wrap(model, item):
        return model(**row, **options).logits[0]


@few
def test_to_prompt_end_equals_the_dense_mask(name):
    """Batch rows of unequal spans, one and two images, left and right padding, prefill and cached decode."""
    check(name, la.MMA(), at_all(to_prompt_end))


@few
def test_strength_and_layers_equal_the_dense_mask(name):
    check(name, la.MMA(strength=0.5, layers=(1, 3)), {1: halves, 3: halves})


@few
def test_paper_general_equals_the_dense_mask(name):
    """Text before an image attends to it too."""
    check(name, la.MMA("paper_general"), at_all(general))


@few
def test_same_turn_equals_the_dense_mask(name):
    """Two turns with an image each: the first reads up to its marker, the second the open turn."""
    model, double = model_of(name), twin_of(name)
    row = tiny_rows(name, model, [(2, 3, 6)])[0]
    # The words between the two images hold a marker, so that each image has a turn.
    ids = row["input_ids"].clone()
    sample = sample_of(row)
    between = [k for k in range(len(sample)) if 0 in sample.image[:k] and 1 in sample.image[k:]]
    words = [k for k in between if not sample.is_image(k) and ids[0, k] >= 10]
    ids[0, words] = torch.tensor(MARK)
    row["input_ids"] = ids
    rule = at_all(same_turn)
    with torch.no_grad(), la.wrap(model, la.MMA("same_turn", marker=MARK)):
        got = model(**row).logits[0]
    want, _ = masked(double, row, (), rule)
    assert relative_error(got, want) < 1e-5
    other, _ = masked(double, row, (), at_all(to_prompt_end))
    assert relative_error(got, other) > 1e-3
    closed = with_text(row, [20, 21], MARK, [30, 31, 32])
    want, _ = masked(double, closed, (), rule)
    assert relative_error(logits_of(name, closed, la.MMA("same_turn", marker=MARK)), want) < 1e-5


@few
def test_reference_equals_the_dense_mask(name):
    """One image, unlocked up to and including the first marker; not the text behind it."""
    double = twin_of(name)
    row = with_text(tiny_rows(name, model_of(name), [(1,)])[0], [20, 21], MARK, [30, 31], MARK, [40])
    got = logits_of(name, row, la.MMA("reference", marker=MARK))
    want, _ = masked(double, row, (), at_all(reference))
    assert relative_error(got, want) < 1e-5
    other, _ = masked(double, row, (), at_all(to_prompt_end))
    assert relative_error(got, other) > 1e-3


def test_reference_refuses_several_images_and_prompts_without_any_marker():
    model = model_of("llava")
    one, two = tiny_rows("llava", model, [(1,), (2,)])
    with torch.no_grad(), la.wrap(model, la.MMA("reference", marker=MARK)):
        with pytest.raises(la.LvlmAttnError, match="one image per prompt, and row 0 has 2"):
            model(**with_text(two, [20], MARK))
        with pytest.raises(la.LvlmAttnError, match="stands in no prompt"):
            model(**one)


def test_reference_leaves_a_sample_without_marker_causal():
    """In a batch where another one has a marker: how the released code turns the mask off."""
    model = model_of("llava")
    one = with_text(tiny_rows("llava", model, [(1,)])[0], [20, 21], MARK, [30, 31])
    ids = one["input_ids"].repeat(2, 1)
    ids[1, ids[0] == MARK[1]] = 50
    both = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": one["pixel_values"].repeat(2, 1, 1, 1),
    }
    with torch.no_grad():
        bare = model(**both).logits
        with la.wrap(model, la.MMA("reference", marker=MARK)):
            got = model(**both).logits
    assert torch.equal(got[1], bare[1])
    assert not torch.equal(got[0], bare[0])


@few
@pytest.mark.parametrize("mode", ["to_prompt_end", "same_turn", "reference", "paper_general"])
def test_no_image_or_no_question_is_causal_bit_for_bit(name, mode):
    """Invariant 1."""
    model = model_of(name)
    row, text = tiny_rows(name, model, [(1, 0, 0), (0,)])
    item = la.MMA(mode, marker=MARK)
    last = with_text(row)
    with torch.no_grad():
        bare, silent = model(**last).logits, model(**text).logits
        with la.wrap(model, item, no_image="pass"):
            assert torch.equal(model(**text).logits, silent)
            if name == "qwen2_5_vl" or mode == "reference":
                return  # Qwen's images end with a text token; reference wants a marker
            if mode == "paper_general":
                assert not torch.equal(model(**last).logits, bare)  # the text before the image attends to it
            else:
                assert torch.equal(model(**last).logits, bare)


@few
def test_one_layer_changes_image_rows_only_and_rows_before_the_image_never_change(name):
    """Invariant 2, in the two modes that open text to images."""
    model = model_of(name)
    row = tiny_rows(name, model, [(1,)])[0]
    image = torch.tensor([sample_of(row).is_image(k) for k in range(row["input_ids"].shape[1])])
    first = int(image.long().argmax())
    bare = states_of(model, row)
    for mode in ("to_prompt_end", "same_turn"):
        wrapped = states_of(model, row, la.MMA(mode, marker=MARK))
        assert torch.equal(wrapped[1][0, ~image], bare[1][0, ~image])
        assert not torch.isclose(wrapped[1][0, image], bare[1][0, image]).all(1).any()
        for state, before in zip(wrapped, bare, strict=True):
            assert torch.equal(state[0, :first], before[0, :first])
        last = [(a - b)[0, ~image].abs().amax(1) for a, b in zip(wrapped, bare, strict=True)][2]
        assert (last[first:] > 1e-5).all()


@few
def test_image_rows_follow_the_question_and_not_the_answer(name):
    """Invariant 3."""
    model = model_of(name)
    row = tiny_rows(name, model, [(1, 2, 6)])[0]
    image = torch.tensor([sample_of(row).is_image(k) for k in range(row["input_ids"].shape[1])])

    def image_states(place, item, **options):
        ids = row["input_ids"].clone()
        ids[0, place] = (ids[0, place] + 7) % 80 + 10
        changed = dict(row, input_ids=ids)
        with torch.no_grad():
            pair = [states_of_call(model, each, item, **options) for each in (row, changed)]
        return [float((a - b)[0, image].abs().max()) for a, b in zip(*pair)][1:]

    def states_of_call(model, inputs, item, **options):
        return states_of(model, inputs | options, *item)

    labels = torch.full_like(row["input_ids"], -100)
    labels[0, -2:] = row["input_ids"][0, -2:]
    assert all(change > 1e-4 for change in image_states(-5, [la.MMA()], labels=labels))
    assert all(change == 0 for change in image_states(-5, [], labels=labels))
    assert all(change == 0 for change in image_states(-1, [la.MMA()], labels=labels))
    # Without labels or a marker a plain forward is all prompt.
    assert all(change > 1e-4 for change in image_states(-1, [la.MMA()]))


@few
def test_prefill_and_cached_decode_equal_one_forward_with_the_mask(name):
    """Invariant 4: transformers itself with a four-dimensional mask, in float64."""
    double = twin_of(name)
    row = dict(tiny_rows(name, model_of(name), [(2,)])[0])
    row["pixel_values"] = row["pixel_values"].double()
    with torch.no_grad(), la.wrap(double, la.MMA()):
        tokens, steps = generate(double, row, TOKENS)
    sample = sample_of(row, tokens[0])
    bias = torch.zeros(len(sample), len(sample), dtype=torch.float64)
    bias[table(to_prompt_end, sample) == 0] = torch.finfo(torch.float64).min
    ids = torch.cat([row["input_ids"], tokens], 1)
    whole = dict(row, input_ids=ids, attention_mask=torch.ones_like(ids))
    if "mm_token_type_ids" in row:
        whole["mm_token_type_ids"] = (ids == IMAGE).int()

    def put(module, args, kwargs):
        return args, kwargs | {"attention_mask": bias[None, None]}

    hook = double.model.language_model.register_forward_pre_hook(put, with_kwargs=True)
    try:
        with torch.no_grad():
            want = double(**whole, use_cache=False).logits[0]
    finally:
        hook.remove()
    # Norms of transformers work in float32.
    assert relative_error(steps[0], want[sample.prompt - 1 : -1]) < 1e-6


@few
def test_the_number_of_opened_pairs(name):
    """Invariant 6: the sum over images of its tokens times the text behind it, as reported and as in the mask."""
    model = model_of(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with torch.no_grad(), la.wrap(model, la.MMA()) as lvlm:
        model(**inputs)
        report = lvlm.report().rows[0]
    want = 0
    for row in rows:
        sample = sample_of(row)
        want += int((table(to_prompt_end, sample) - table(causal, sample)).sum())
        for image in {k for k in sample.image if k is not None}:
            end = max(k for k in range(len(sample)) if sample.image[k] == image)
            text = sum(not sample.is_image(k) for k in range(end, len(sample)))
            want -= sample.image.count(image) * text
    assert want == 0  # the two ways to count agree
    pairs = sum(int((table(to_prompt_end, s) - table(causal, s)).sum()) for s in map(sample_of, rows))
    assert [entry["opened"] for entry in report] == [pairs] * LAYERS
    assert [entry["layer"] for entry in report] == list(range(LAYERS))


@few
def test_a_sample_after_another_and_an_exception(name):
    check_order(name, la.MMA())


@few
def test_strength_zero_keeps_bits(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare = model(**inputs).logits
        with la.wrap(model, la.MMA(strength=0)) as lvlm:
            assert torch.equal(model(**inputs).logits, bare)
            assert lvlm.interventions == ()


# Where the answer begins.


@few
def test_labels_end_what_is_read(name):
    """A scored answer is what the cached decode says of it: nothing of it reached the image."""
    model = model_of(name)
    row = tiny_rows(name, model, [(1,)])[0]
    with torch.no_grad(), la.wrap(model, la.MMA()):
        tokens, steps = generate(model, row, TOKENS)
        whole = with_answer(row, tokens)
        labels = torch.full_like(whole["input_ids"], -100)
        labels[:, -TOKENS:] = tokens
        scored = model(**whole, labels=labels)
        leaking = model(**whole).logits
    assert relative_error(scored.logits[0, -TOKENS - 1 : -1], steps[0].double()) < 1e-5
    assert relative_error(leaking[0, -TOKENS - 1 : -1], steps[0].double()) > 1e-3
    picked = steps[0].log_softmax(-1).gather(1, tokens[0][:, None])
    assert abs(float(scored.loss) + float(picked.mean())) < 1e-4


@few
@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_of_a_batch_act_row_by_row(name, side):
    """Answers of unequal length, one of them none: every row is as it is alone."""
    model, answers = model_of(name), [3, 0, 2]
    inputs, rows = tiny_inputs(name, model, BATCH, side), tiny_rows(name, model, BATCH)
    labels = torch.full_like(inputs["input_ids"], -100)
    for index, (row, count) in enumerate(zip(rows, answers)):
        length = row["input_ids"].shape[1]
        end = inputs["input_ids"].shape[1] if side == "left" else length
        labels[index, end - count : end] = inputs["input_ids"][index, end - count : end]
    with torch.no_grad(), la.wrap(model, la.MMA(), no_image="pass"):
        got = model(**inputs, labels=labels).logits
        for index, row in enumerate(rows):
            length = row["input_ids"].shape[1]
            span = slice(-length, None) if side == "left" else slice(length)
            single = model(**row, labels=labels[index : index + 1, span]).logits[0]
            assert relative_error(got[index, span], single.double()) < 2e-5
            if BATCH[index][0]:
                assert relative_error(single, model(**row).logits[0].double()) > 1e-3


def with_answer(row, tokens):
    ids = torch.cat([row["input_ids"], tokens], 1)
    whole = dict(row, input_ids=ids, attention_mask=torch.ones_like(ids))
    if "mm_token_type_ids" in row:
        whole["mm_token_type_ids"] = (ids == IMAGE).int()
    return whole


@few
@pytest.mark.parametrize("mode", ["to_prompt_end", "same_turn", "reference", "paper_general"])
def test_a_marker_ends_what_is_read(name, mode):
    model = model_of(name)
    row = with_text(tiny_rows(name, model, [(1,)])[0], [20, 21, 22], MARK)
    item = la.MMA(mode, marker=MARK)
    with torch.no_grad(), la.wrap(model, item):
        tokens, steps = generate(model, row, TOKENS)
        scored = model(**with_answer(row, tokens)).logits
    assert relative_error(scored[0, -TOKENS - 1 : -1], steps[0].double()) < 1e-5


def test_labels_on_everything_open_nothing():
    model = model_of("llava")
    row = tiny_rows("llava", model, [(1,)])[0]
    with torch.no_grad():
        bare = model(**row).logits
        with la.wrap(model, la.MMA()):
            assert torch.equal(model(**row, labels=row["input_ids"].clone()).logits, bare)
            # The labels of one call say nothing about the next.
            assert not torch.equal(model(**row).logits, bare)


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_at_padding_end_nothing(side):
    """Collators that copy the ids into the labels may label the padding as well."""
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH, side)
    labels = torch.full_like(inputs["input_ids"], -100)
    padded = labels.masked_fill(inputs["attention_mask"] == 0, 5)
    assert (padded != labels).any(1).sum() == 2
    is_valid = inputs["attention_mask"].bool()
    with torch.no_grad(), la.wrap(model, la.MMA(), no_image="pass"):
        want, got = (model(**inputs, labels=each).logits[is_valid] for each in (labels, padded))
    assert torch.equal(got, want)


@few
def test_the_marker_may_stay_hidden(name):
    """include_marker=False is the mask without the columns of the marker."""
    row = with_text(tiny_rows(name, model_of(name), [(1,)])[0], [20, 21, 22], MARK)
    want, _ = masked(
        twin_of(name),
        row,
        (),
        at_all(lambda s, i, j: to_prompt_end(s, i, j) and (j <= i or j < s.prompt - 2)),
    )
    for mode in ("to_prompt_end", "same_turn", "reference"):
        got = logits_of(name, row, la.MMA(mode, marker=MARK, include_marker=False))
        assert relative_error(got, want) < 1e-5


def test_an_image_behind_the_last_marker_has_an_open_turn():
    """History with an answer, then a new image and its question: the marker of the first turn ends nothing."""
    text = torch.tensor([[1, 1, 1, 0, 1, 1]]).bool()
    is_end = torch.tensor([[0, 1, 0, 0, 0, 0]]).bool()
    none = torch.zeros_like(text)
    for mode in ("to_prompt_end", "same_turn", "paper_general"):
        _, _, opened = groups_of(mode, Spans(text, ~text, is_end, none, 1, True))
        assert opened[0, 3] == 2


def test_replies_are_read_in_to_prompt_end_and_hidden_in_same_turn():
    """image, question, marker, reply, image, question, marker."""
    text = torch.tensor([[0, 1, 1, 1, 0, 1, 1]]).bool()
    is_end = torch.tensor([[0, 0, 1, 0, 0, 0, 1]]).bool()
    spans = Spans(text, ~text, is_end, torch.zeros_like(text), 1, True)
    assert groups_of("to_prompt_end", spans)[2].tolist() == [[5, 0, 0, 0, 2, 0, 0]]
    assert groups_of("same_turn", spans)[2].tolist() == [[2, 0, 0, 0, 2, 0, 0]]


# What is refused.


@pytest.mark.parametrize("changes", [{"mode": "same_turn"}, {"mode": "reference"}, {"include_marker": False}])
def test_a_mode_that_needs_a_marker_says_so(changes):
    model = model_of("llava")
    with pytest.raises(la.LvlmAttnError, match="where answers begin"), la.wrap(model, la.MMA(**changes)):
        pass
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mode": "same_tun"}, "Did you mean 'same_turn'"),
        ({"strength": 1.5}, "strength=1.5"),
        ({"strength": True}, "strength=True"),
        ({"marker": "ASSISTANT:"}, "token ids"),
        ({"marker": ()}, "token ids"),
        ({"include_marker": 1}, "include_marker=1"),
    ],
)
def test_bad_parameters(changes, match):
    with pytest.raises(la.LvlmAttnError, match=match):
        la.MMA(**changes)


def test_written_form():
    item = la.MMA("same_turn", layers=[2, 3], strength=0.5, include_marker=False, marker=[11, 12])
    assert la.parse(str(item)) == (item,)
    assert str(la.MMA()) == "mma"


@few
def test_chunked_prefill_is_refused(name):
    model = model_of(name)
    row = tiny_rows(name, model, [(1,)])[0]
    with torch.no_grad(), la.wrap(model, la.MMA()), pytest.raises(la.UnsupportedError, match="in one pass"):
        generate(model, row, TOKENS, prefill_chunk_size=7)


@few
def test_a_later_turn_leaves_cached_image_tokens_alone(name):
    """The second question reads the image as the first one made it: the mask opens the first prompt only."""
    model, double = model_of(name), twin_of(name)
    row = tiny_rows(name, model, [(1,)])[0]
    words = torch.tensor([[31, 44, 12, 37]])
    first = row["input_ids"].shape[1]
    with torch.no_grad(), la.wrap(model, la.MMA()):
        out = model.generate(**row, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, words], 1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in row:
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
            inputs["image_grid_thw"] = row["image_grid_thw"]
        tokens, steps = generate(model, inputs, 4, past_key_values=out.past_key_values)
    tail = ids[0, first:].tolist() + tokens[0].tolist()
    want, _ = masked(double, row, tail, at_all(to_prompt_end))
    assert relative_error(steps[0], want[ids.shape[1] - 1 : -1]) < 1e-5
