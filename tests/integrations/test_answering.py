"""What harnesses ask, without any harness."""

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.integrations.answering import cut_at, decoding_of, interventions_of, same_options, stops_of


def test_methods_may_stand_in_quotes():
    assert [str(item) for item in interventions_of('"vhr:alpha=3.0+var"')] == ["vhr:alpha=3.0", "var"]
    assert interventions_of(None) == interventions_of("") == ()


@pytest.mark.parametrize(
    ("options", "decode", "limit"),
    [
        ({}, "greedy", 1024),
        (
            {"max_new_tokens": 16, "temperature": 0, "top_p": 0, "num_beams": 1, "do_sample": False},
            "greedy",
            16,
        ),
        ({"temperature": 0.7, "do_sample": True, "top_p": 1.0, "top_k": None}, "sample", 1024),
        ({"temperature": 0.7, "do_sample": False}, "greedy", 1024),
        ({"temperature": None, "top_p": None}, "greedy", 1024),
    ],
)
def test_settings_of_tasks(options, decode, limit):
    made = decoding_of(options, "task t")
    assert (made.decode, made.max_new_tokens) == (decode, limit)
    assert made.temperature == (0.7 if decode == "sample" else 1.0)


def test_settings_that_cannot_be_had_are_refused():
    with pytest.raises(LvlmAttnError, match="task t sets num_beams=5"):
        decoding_of({"num_beams": 5}, "task t")
    with pytest.raises(LvlmAttnError, match=r"top_p=0\.9; .*--gen_kwargs top_p=1"):
        decoding_of({"temperature": 1.0, "top_p": 0.9}, "task t")
    with pytest.raises(LvlmAttnError, match="Did you mean 'max_new_tokens'"):
        decoding_of({"max_new_token": 5}, "task t")


def test_answers_are_cut_where_the_task_says_but_not_inside_reasoning():
    assert stops_of({"until": ["\n\n"]}) == stops_of({}) == stops_of({"until": None}) == ()
    assert stops_of({"until": ["\n\n", "###"]}) == ("###",)
    assert cut_at("A dog.\n\nA cat.", ()) == "A dog.\n\nA cat."
    assert cut_at("Yes ### No", ("###",)) == "Yes "
    assert cut_at("<think>a ### b</think>Yes ### No", ("###",)) == "<think>a ### b</think>Yes "
    assert cut_at("<think>never ### ended", ("###",)) == "<think>never ### ended"


def test_requests_with_the_same_settings_are_one_group():
    groups = same_options([{"a": 1, "b": 2}, {"a": 2}, {"b": 2, "a": 1}])
    assert list(groups.values()) == [[0, 2], [1]]
