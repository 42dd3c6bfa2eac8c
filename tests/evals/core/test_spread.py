"""Means and standard deviations of the metrics of several seeds."""

from statistics import stdev

import pytest

from lvlm_attn.evals.core.spread import mean_and_spread


def test_counts_by_name_and_missing_values():
    found = mean_and_spread(
        [
            {"top": {"dog": 2, "cat": 1}, "at": None, "mode": "strict"},
            {"top": {"dog": 3}, "at": 4.0, "mode": "strict"},
        ]
    )
    assert found["top"] == {"dog": 2.5, "cat": 0.5}
    assert (found["at"], found["mode"]) == (4.0, "strict")
    assert found["spread"]["top"]["dog"] == pytest.approx(stdev([2, 3]))


def test_numbers_are_averaged_and_spread():
    found = mean_and_spread([{"f1": 0.25}, {"f1": 0.5}, {"f1": 0.75}])
    assert found == {"f1": 0.5, "spread": {"f1": 0.25}, "seeds": 3}


def test_counts_that_agree_stay_whole_numbers():
    found = mean_and_spread([{"n": 4, "share": 0.1}, {"n": 4, "share": 0.1}, {"n": 4, "share": 0.1}])
    assert found == {"n": 4, "share": 0.1, "spread": {"n": 0, "share": 0}, "seeds": 3}
    assert isinstance(found["n"], int)
    assert mean_and_spread([{"n": 4}, {"n": 4}, {"n": 7}])["n"] == 5
    assert mean_and_spread([{"n": 7}, {"n": 4}, {"n": 4}])["n"] == 5


def test_a_value_that_is_not_known_is_left_out_and_a_count_that_is_absent_is_zero():
    unknown = mean_and_spread([{"at": 4.0}, {"at": None}, {"at": 6.0}])
    assert unknown == {"at": 5.0, "spread": {"at": stdev([4, 6])}, "seeds": 3}
    absent = mean_and_spread([{"at": 3}, {}, {"at": 6}])
    assert absent == {"at": 3, "spread": {"at": 3.0}, "seeds": 3}
    assert mean_and_spread([{"at": 3}, {"at": None}, {}])["at"] == 1
    assert mean_and_spread([{"at": 3.0}, {"at": None}])["spread"] == {"at": 0}
    assert mean_and_spread([{"at": None}, {"at": None}]) == {"at": None, "spread": {}, "seeds": 2}


def test_groups_that_a_run_lacks_count_as_empty():
    found = mean_and_spread([{"top": {"dog": 2}}, {"top": None}, {}, {"top": {"dog": 2}}])
    assert found == {"top": {"dog": 1}, "spread": {"top": {"dog": stdev([2, 0, 0, 2])}}, "seeds": 4}


def test_what_is_no_number_is_kept_where_all_runs_agree():
    runs = [{"mode": "strict", "done": True, "by": 1}, {"mode": "pattern", "done": True, "by": "hand"}]
    assert mean_and_spread(runs) == {"done": True, "spread": {}, "seeds": 2}
    assert mean_and_spread([{"done": True}, {"done": False}]) == {"spread": {}, "seeds": 2}
    assert mean_and_spread([{"top": {"dog": 1}}, {"top": 2}]) == {"spread": {}, "seeds": 2}
