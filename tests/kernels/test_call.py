"""What the layers of a forward call share, and how an attention call is described."""

import gc
import weakref

import pytest
import torch

from lvlm_attn.kernels.call import AttentionCall, Memo
from lvlm_attn.kernels.spec import Amplification, Geometry
from lvlm_attn.kernels.visibility import ALL, Visibility


def test_a_value_is_made_once_also_if_it_is_none():
    memo, made = Memo(), []
    for _ in range(3):
        assert memo.shared(("a", 1), lambda: made.append(1)) is None
    assert made == [1]
    assert memo.shared(("a", 2), lambda: 5) == 5
    memo.clear()
    assert memo.shared(("a", 2), lambda: 6) == 6


def test_a_value_that_cannot_be_made_is_not_kept():
    memo = Memo()
    with pytest.raises(ZeroDivisionError):
        memo.shared("a", lambda: 1 // 0)
    assert memo.shared("a", lambda: 1) == 1


def test_tensors_and_specs_are_told_apart_by_identity():
    rows = torch.ones(1, 3, dtype=torch.bool)
    group = torch.zeros(1, 3, dtype=torch.long)
    for one, other in (
        (rows, rows.clone()),
        (Amplification(rows), Amplification(rows)),
        (Visibility(group, ((ALL,),)), Visibility(group, ((ALL,),))),
        (Visibility(group, [[ALL]]), Visibility(group, [[ALL]])),  # lists, which have no hash
    ):
        memo = Memo()
        assert memo.shared(("a", one), lambda: 1) == 1
        assert memo.shared(("a", other), lambda: 2) == 2
        assert memo.shared(("a", one), lambda: 3) == 1


def test_what_a_key_names_lives_as_long_as_its_value():
    memo, rows = Memo(), torch.ones(1, 3)
    gone = weakref.ref(rows)
    memo.shared((rows,), lambda: 1)
    del rows
    gc.collect()
    assert gone() is not None
    memo.clear()
    gc.collect()
    assert gone() is None


def test_the_oldest_value_goes_where_room_is_bounded():
    memo = Memo(2)
    for key in "aba":
        memo.shared(key, lambda: "old")
    memo.shared("c", lambda: "old")
    assert list(memo.kept) == ["b", "c"]
    assert memo.shared("a", lambda: "new") == "new"


@pytest.mark.parametrize(
    ("dtype", "want"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_scores_are_at_least_in_single_precision(dtype, want):
    query = torch.zeros(1, 2, 3, 8, dtype=dtype)
    assert AttentionCall(query, query, query, Geometry(0, 3, 3), 0.5).score_dtype == want


def test_calls_share_nothing_unless_they_are_given_the_same_memo():
    query = torch.zeros(1, 2, 3, 8)
    first, second = (AttentionCall(query, query, query, Geometry(0, 3, 3), 0.5) for _ in range(2))
    assert first.memo is not second.memo
