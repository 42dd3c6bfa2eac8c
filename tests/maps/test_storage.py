"""Saved maps come back as they were; damaged files are told so in one sentence."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lvlm_attn as la
from lvlm_attn.errors import LvlmAttnError
from tests.maps.made import hand_made, toy_maps


@pytest.mark.parametrize("make", [hand_made, lambda: hand_made(batch=3), toy_maps])
def test_round_trip(tmp_path, make):
    maps = make()
    path = tmp_path / "answer"
    assert maps.save(path) == path
    read = la.AttentionMaps.load(path)
    assert read.layers == maps.layers
    for layer in maps.layers:
        assert torch.equal(read.weights[layer], maps.weights[layer])
    for name in ("rows", "targets", "ids"):
        assert torch.equal(getattr(read, name), getattr(maps, name))
    assert read.pieces == maps.pieces
    assert read.heads == maps.heads
    assert read.meta == dict(maps.meta)
    assert read.layout.grids == maps.layout.grids
    assert all(torch.equal(*pair) for pair in zip(read.layout.tensors, maps.layout.tensors))
    old, new = maps.sample(0), read.sample(0)
    assert np.array_equal(new[0].pixels(), old[0].pixels())
    assert np.array_equal(np.asarray(new.images[0][0].picture), np.asarray(old.images[0][0].picture))
    assert [item.name for item in tmp_path.iterdir()] == ["answer"]


def test_extra_mass_and_sink_scores_are_kept(tmp_path):
    from dataclasses import replace

    maps = hand_made()
    maps = replace(maps, extra={0: torch.rand(1, 2, 7)}, sink_scores={1: torch.rand(1, maps.layout.length)})
    read = la.AttentionMaps.load(maps.save(tmp_path / "m"))
    assert torch.equal(read.extra[0], maps.extra[0])
    assert torch.equal(read.sink_scores[1], maps.sink_scores[1])


def rewritten(path, change):
    """The file with its header, a dict, or its tensors changed."""
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["lvlm_attn.maps"])
    change(header, tensors)
    save_file(tensors, path, {"lvlm_attn.maps": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: header.pop("grids"), "damaged"),
        (lambda header, tensors: header.update(version=99), "format version 99"),
        (lambda header, tensors: header.update(pieces=[["a"]]), "texts are not as many"),
        (lambda header, tensors: header.update(heads=[0]), "weights of layer 0 have shape"),
        (lambda header, tensors: tensors.pop("weights.1"), "damaged"),
        (lambda header, tensors: tensors.update(targets=torch.zeros(1, 2)), "different sizes"),
        (
            lambda header, tensors: tensors.update({"picture.0.0": torch.zeros(9, dtype=torch.uint8)}),
            "damaged",
        ),
    ],
)
def test_files_whose_parts_do_not_fit(tmp_path, change, message):
    path = hand_made().save(tmp_path / "m")
    rewritten(path, change)
    with pytest.raises(LvlmAttnError) as caught:
        la.AttentionMaps.load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files(tmp_path):
    path = hand_made().save(tmp_path / "m")
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:5], b"", b"\x80\x04pickle", b"{}" * 50):
        path.write_bytes(broken)
        with pytest.raises(LvlmAttnError, match="is damaged or no file of attention maps"):
            la.AttentionMaps.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(LvlmAttnError, match="holds no attention maps"):
        la.AttentionMaps.load(path)
    with pytest.raises(LvlmAttnError, match="There is no file"):
        la.AttentionMaps.load(tmp_path / "none")
    with pytest.raises(LvlmAttnError, match="is a folder"):
        hand_made().save(tmp_path)
    with pytest.raises(LvlmAttnError, match="could not be written"):
        hand_made().save(tmp_path / "no" / "such" / "folder")
