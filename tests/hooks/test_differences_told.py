"""Where a method differs from released code, its docstring says how; what was wrong there is said as it is now."""

import pytest

import lvlm_attn as la


def told(kind):
    return " ".join((kind.__doc__ or "").split())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (la.VCD, ["since July 2024", "its own cache"]),
        (la.AGLA, ["share one cache", "corrected in July 2024"]),
        (la.VAR, ["adds 1e-6 to every weight", "above `tau`", "at least `tau`"]),
        (la.OPERA, ["With one candidate the best beam is greedy decoding", "left for the one before it"]),
        (la.DoLa, ["final_norm", "released code"]),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_differences_from_released_code_are_told(kind, words):
    for word in words:
        assert word in told(kind)


def test_what_wordnet_cannot_do_is_told():
    from lvlm_attn.evals.chair import vocab

    assert "tagger" in (vocab.__doc__ or "")
