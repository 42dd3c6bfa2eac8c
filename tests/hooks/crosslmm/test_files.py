"""Adapters in files that are damaged or written by others: one sentence, never a traceback or a silent NaN."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lvlm_attn as la
from lvlm_attn.hooks.crosslmm.adapter import AdapterShape, CrossLMMAdapter
from lvlm_attn.hooks.crosslmm.weights import load_adapter, read_shape, save_adapter

SHAPE = AdapterShape(K=2, offset=1, layers=4, hidden=8, n_heads=2, n_kv=1, head_dim=4)
WRONG = [[], {}, "x", None, True, -1, 0, 1.5, 10**30, "[" * 5000, "9" * 5000, [[1, 2]], float("nan")]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(CrossLMMAdapter(SHAPE), path)
    return path


def metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        return dict(opened.metadata())


def test_what_is_written_is_read(file):
    assert read_shape(file) == SHAPE
    assert load_adapter(file).shape == SHAPE


@pytest.mark.parametrize("key", list(AdapterShape.__dataclass_fields__))
def test_metadata_of_the_wrong_kind_is_one_sentence(file, key):
    tensors, right = load_file(file), metadata(file)
    for value in WRONG:
        text = value if isinstance(value, str) else json.dumps(value)
        save_file(tensors, file, right | {key: text})
        try:
            load_adapter(file)
        except la.LvlmAttnError as error:
            message = str(error)
        else:
            message = ""
            assert getattr(read_shape(file), key) == json.loads(text)
        assert "\n" not in message
        assert len(message) < 500


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: one.fill_(float("nan")), "not finite"),
        (lambda one: one.fill_(float("inf")), "not finite"),
        (lambda one: one.to(torch.int64), "int64"),
        (lambda one: one.bool(), "bool"),
    ],
    ids=["nan", "inf", "integers", "booleans"],
)
def test_weights_that_are_no_finite_fractions_are_refused(file, change, words):
    tensors, right = load_file(file), metadata(file)
    name = sorted(tensors)[1]
    tensors[name] = change(tensors[name].clone())
    save_file(tensors, file, right)
    with pytest.raises(la.LvlmAttnError, match=words) as caught:
        load_adapter(file)
    assert name in str(caught.value)


def test_a_file_cut_off_anywhere_is_one_sentence(file):
    whole = file.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(la.LvlmAttnError, match="safetensors") as caught:
            load_adapter(file)
        assert "\n" not in str(caught.value)
