"""Benchmarks by name."""

import pytest

import lvlm_attn as la
from lvlm_attn.errors import LvlmAttnError
from tests.evals.closed import copies


def test_a_benchmark_by_name_runs(loaded, tmp_path):
    from lvlm_attn.evals.core.answerer import Decoding

    mme = la.load_benchmark("mme", copies.mme(tmp_path / "mme"), subsets=["count"], limit=1)
    done = la.evaluate(*loaded, mme, la.VHR(), out=tmp_path / "run", decoding=Decoding(max_new_tokens=2))
    assert (done.metrics["benchmark"], done.metrics["n"]) == ("mme", 2)
    amber = la.load_benchmark("amber-g", copies.amber(tmp_path / "amber"), limit=1)
    assert [sample.sample_id for sample in amber.samples()] == ["1"]


def test_mistakes_name_the_nearest(tmp_path):
    with pytest.raises(LvlmAttnError, match="Did you mean 'mme'"):
        la.load_benchmark("mmee", tmp_path)
    with pytest.raises(LvlmAttnError, match="Did you mean 'subsets'"):
        la.load_benchmark("mme", tmp_path, subset=["count"])
    with pytest.raises(LvlmAttnError, match="amber-g takes no 'parser'"):
        la.load_benchmark("amber-g", tmp_path, parser="strict")
