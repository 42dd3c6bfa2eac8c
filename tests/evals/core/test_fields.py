import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.fields import (
    answer_text,
    choose,
    expand_chat,
    flatten,
    id_key,
    image_of,
    label_of,
    text_of,
)


def chosen(*rows, **options):
    choice = choose([flatten(row) for row in rows], "file a", **options)
    return choice.field, choice.gold


@pytest.mark.parametrize(
    ("row", "field", "gold"),
    [
        ({"question": "q?", "answer": "No"}, "answer", ()),
        ({"question_id": 1, "prompt": "q?", "text": "No"}, "text", ()),
        ({"answer": "yes", "prediction": "No"}, "prediction", ("answer",)),
        ({"answer": "yes", "response": "No"}, "response", ("answer",)),
        ({"answer": "yes", "text": "No"}, "text", ("answer",)),
        ({"label": "yes", "answer": "No"}, "answer", ("label",)),
        ({"GT-Label": "yes", "Output": "No"}, "output", ("gt_label",)),
        ({"text": "Is it?", "answer": "No", "label": "yes"}, "answer", ("label",)),
        ({"question": "say so", "text": "say so", "answer": "No"}, "answer", ()),
        ({"raw_text": "No", "label": "yes", "prompt": "USER: q?"}, "raw_text", ("label",)),
        (
            {
                "target": "yes",
                "resps": [["No"]],
                "filtered_resps": ["No"],
                "doc": {"question": "q?", "answer": "yes"},
            },
            "filtered_resps",
            ("target", "answer"),
        ),
        ({"resps": [["No"]], "target": "yes"}, "resps", ("target",)),
        ({"model_answer": "No", "answer": "yes"}, "model_answer", ("answer",)),
    ],
)
def test_the_answer_is_told_from_gold_and_question(row, field, gold):
    assert chosen(row) == (field, gold)
    assert text_of(flatten(row)[field]) == "No"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"image_id": 1, "caption": "a dog"}, "caption"),
        ({"image_id": 1, "response": "a dog", "caption": "of the data set"}, "response"),
        ({"image_id": 1, "text": "Describe it?", "answer": "a dog"}, "answer"),
        ({"question_id": 1, "text": "a dog"}, "text"),
    ],
)
def test_captions(row, field):
    assert chosen(row, captions=True)[0] == field


def test_a_prompt_equal_for_all_pictures_is_no_caption():
    rows = [{"image": i, "text": "Describe this.", "answer": f"a dog {i}"} for i in range(3)]
    assert chosen(*rows, captions=True)[0] == "answer"


def test_two_possible_answers_are_refused_with_both_names_and_the_option():
    rows = [{"prediction": "Yes", "response": "Yes"}, {"prediction": "Yes", "response": "No"}]
    with pytest.raises(LvlmAttnError, match=r"'prediction' and 'response'.*--answer-field prediction or"):
        chosen(*rows)
    assert chosen(*rows, asked_for="response") == ("response", ())
    assert chosen(rows[0]) == ("prediction", ())
    with pytest.raises(LvlmAttnError, match="'caption' and 'text'"):
        chosen({"caption": "a dog", "text": "a cat"}, captions=True)


def test_a_field_asked_for_must_be_there():
    with pytest.raises(LvlmAttnError, match=r"no field 'respnse'\. Did you mean 'response'"):
        chosen({"response": "Yes"}, asked_for="respnse")
    assert chosen({"answer": "yes", "note": "No"}, asked_for="Note") == ("note", ("answer",))


@pytest.mark.parametrize(
    "row", [{"label": "yes"}, {"prediction": 3}, {"raw_text": {"a": 1}}, {"text": None}, {}]
)
def test_no_answer_at_all(row):
    with pytest.raises(LvlmAttnError, match=r"file a: no answer text in any record .*--answer-field"):
        chosen(row)


def test_a_record_without_the_field_may_have_another_that_only_answers_have():
    choice = choose([{"prediction": "Yes"}, {"response": "No"}], "file a", asked_for="prediction")
    assert answer_text({"response": "No"}, choice) == "No"
    assert answer_text({"answer": "No"}, choice) is None
    assert answer_text({"prediction": None, "response": "No"}, choice) is None


def test_chat_records_are_taken_apart():
    row = {
        "chat_id": 2,
        "image": "a.jpg",
        "text": ["q1?", "q2?"],
        "label": ["yes", "no"],
        "answer": ["No", "Yes"],
    }
    assert expand_chat(row, 1) == [
        {"question_id": 5, "chat_id": 2, "image": "a.jpg", "text": "q1?", "label": "yes", "answer": "No"},
        {"question_id": 6, "chat_id": 2, "image": "a.jpg", "text": "q2?", "label": "no", "answer": "Yes"},
    ]
    assert chosen(*expand_chat(row, 1)) == ("answer", ("label",))
    with pytest.raises(LvlmAttnError, match="2 questions need a list of 2 labels"):
        expand_chat({**row, "label": "yes"}, 1)
    with pytest.raises(LvlmAttnError, match="chat_id is 'x'"):
        expand_chat({**row, "chat_id": "x"}, 1)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (2, "2"),
        (2.0, "2"),
        ("2.0", "2"),
        ("002", "2"),
        (" q ", "q"),
        (2.5, None),
        (True, None),
        ([1], None),
        ("", None),
    ],
)
def test_ids(value, key):
    assert id_key(value) == key


@pytest.mark.parametrize("value", ["yes", "Yes.", " YES ", True, 1, 1.0, "1", "true"])
def test_labels(value):
    assert label_of(value) == "yes"


def test_labels_that_are_none():
    assert [label_of(value) for value in (None, "", float("nan"), False, 0, "No.")] == [
        None,
        None,
        None,
        "no",
        "no",
        "no",
    ]
    for value in ("maybe", 2, ["yes"]):
        with pytest.raises(ValueError, match=r"maybe|2|yes"):
            label_of(value)


def test_pictures():
    assert image_of({"image": {"path": "a.jpg"}}) == "a.jpg"
    assert image_of({"image": "", "image_source": "COCO_val2014_000000000001"}) == "COCO_val2014_000000000001"
    assert image_of({"image_id": 7.0}) == "7"
    assert image_of({"image": True, "img": ["a"]}) is None
