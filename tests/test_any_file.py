"""Any bytes, and anything changed, in pictures, adapters, maps and plugins: a value or one sentence, in a second."""

import io
import json
import sys
from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lvlm_attn as la
from lvlm_attn.hooks import catalogue
from lvlm_attn.hooks.crosslmm.adapter import AdapterShape, CrossLMMAdapter
from lvlm_attn.hooks.crosslmm.weights import load_adapter, save_adapter
from lvlm_attn.hooks.plugins import load_plugin
from lvlm_attn.prompts.images import FORMATS, image_area, open_image
from tests.evals.test_any_input import VALUES
from tests.fuzzing import drawn, value_or_sentence
from tests.json_changes import changed, places_in
from tests.maps.made import hand_made

IMAGE_HEADS = [
    b"", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08", b"P5 3 3 255\n", b"P2 2 2 9 ", b"Pf 2 2 1 ", b"\0\0\0\x20ftypavif", b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"RIFF\x40\0\0\0WEBPVP8X", b"RIFF\x40\0\0\0WEBPVP8L", b"\0\0\x01\0\x01\0",
    b"\n\x05\x01\x08", b"qoif\0\0\0\x02\0\0\0\x02", b"\x01\xda\x01\x01", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.7",
    b"8BPS", b"\xd7\xcd\xc6\x9a", b"SIMPLE  =", b"GRIB",
]  # fmt: skip


@drawn(200)
@given(head=st.sampled_from(IMAGE_HEADS), data=st.binary(max_size=120))
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_as_a_picture(tmp_path, head, data):
    path = tmp_path / "a.png"
    path.write_bytes(head + data)
    value_or_sentence(open_image, path)
    value_or_sentence(image_area, path)


@drawn(100)
@given(
    form=st.sampled_from([one for one in FORMATS if one != "HEIF"]),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"]),
    cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    new=st.binary(max_size=12),
)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_inside_a_picture(form, mode, cuts, new):
    written = io.BytesIO()
    try:
        Image.effect_noise((20, 12), 90).convert(mode).save(written, form)
    except (OSError, KeyError, ValueError):
        return  # no format takes every mode
    whole = written.getvalue()
    first, last = sorted(int(cut * len(whole)) for cut in cuts)
    value_or_sentence(open_image, whole[:first] + new + whole[last:])


ADAPTER = AdapterShape(K=2, offset=1, layers=4, hidden=8, n_heads=2, n_kv=1, head_dim=4)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float64, torch.uint8])


def cut(path, first, last, new):
    """A file with a piece exchanged."""
    whole = path.read_bytes()
    start, stop = sorted((int(first * len(whole)), int(last * len(whole))))
    path.write_bytes(whole[:start] + new + whole[stop:])


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def odd_tensor(data, name, tensor):
    kind = data.draw(st.sampled_from(["type", "shape", "nan", "gone", "empty"]))
    if kind == "gone":
        return {}
    if kind == "type":
        return {name: tensor.to(data.draw(DTYPES))}
    if kind == "empty":
        return {name: torch.zeros(0)}
    return {name: tensor[None] if kind == "shape" else tensor.double().fill_(float("nan")).to(tensor.dtype)}


@drawn(60)
@given(data=st.data())
def test_any_adapter(tmp_path, data):
    path = tmp_path / "adapter.safetensors"
    save_adapter(CrossLMMAdapter(ADAPTER), path)
    tensors, metadata = load_file(path), metadata_of(path)
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensors |= odd_tensor(data, name, tensors.pop(name))
    key = data.draw(st.sampled_from(sorted(metadata)))
    value = data.draw(VALUES | SCALARS)
    text = value.encode("utf-8", "replace").decode() if isinstance(value, str) else json.dumps(value)
    save_file(tensors, path, metadata | {key: text})
    value_or_sentence(load_adapter, path)


@drawn(60)
@given(
    places=st.tuples(st.floats(0, 0.2), st.floats(0, 0.2)),
    new=st.binary(max_size=20),
    length=st.integers(0, 2**64 - 1),
)
def test_any_bytes_in_an_adapter(tmp_path, places, new, length):
    path = tmp_path / "adapter.safetensors"
    save_adapter(CrossLMMAdapter(ADAPTER), path)
    cut(path, *places, new)
    value_or_sentence(load_adapter, path)
    path.write_bytes(length.to_bytes(8, "little") + new)
    value_or_sentence(load_adapter, path)


def read_maps(path):
    maps = la.AttentionMaps.load(path)
    return repr(maps), maps.layout.batch and maps.sample(0)


@drawn(100)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_any_maps(tmp_path, data):
    path = hand_made().save(tmp_path / "m")
    tensors, header = load_file(path), json.loads(metadata_of(path)["lvlm_attn.maps"])
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensors |= odd_tensor(data, name, tensors.pop(name))
    for _ in range(data.draw(st.integers(0, 2))):
        header = changed(
            header, data.draw(st.sampled_from(list(places_in(header)))), data.draw(VALUES | SCALARS)
        )
    save_file(tensors, path, {"lvlm_attn.maps": json.dumps(header)})
    value_or_sentence(read_maps, path)


@drawn(60)
@given(
    places=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    new=st.binary(max_size=20),
    head=st.sampled_from(
        ["[" * 9999, "{", "5", "null", '{"format": "lvlm_attn.maps", "version": 1}', "9" * 9999]
    ),
)
def test_any_bytes_in_maps(tmp_path, places, new, head):
    path = hand_made().save(tmp_path / "m")
    cut(path, *places, new)
    value_or_sentence(read_maps, path)
    save_file({"a": torch.zeros(1)}, path, {"lvlm_attn.maps": head})
    value_or_sentence(read_maps, path)


LINES = st.sampled_from(
    [
        "import lvlm_attn as la", "class A(la.Intervention):", "    name = 'fuzzed'", "    name = 5", "    name = ''",
        "    name = 'var'", "    name = 'a b'", "    layers = 3", "    edit_weight = 1", "def f(:", "raise SystemExit",
        "1/0", "raise SystemExit('a\\nb')", "(" * 300, "x = " + "9" * 5000, "from __future__ import x", "é = 1", "\0",
        "import not_there", "la.register(A)", "la.register(la.VAR)", "\ufffd", "# coding: nothing", "exit()", "del la",
        "    def scale_heads(self): return 1", "@la.register", "__name__ = 5", "raise la.LvlmAttnError('own')",
    ]
)  # fmt: skip
NUMBERS = count()


@pytest.fixture
def methods(monkeypatch):
    monkeypatch.setattr(catalogue, "_METHODS", dict(catalogue._METHODS))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith("lvlm_attn_plugin"):
            del sys.modules[name]


@drawn(120)
@given(lines=st.lists(LINES, max_size=7), data=st.binary(max_size=40))
@pytest.mark.filterwarnings("ignore")
def test_any_plugin(tmp_path, methods, lines, data):
    path = tmp_path / f"p{next(NUMBERS)}.py"
    path.write_text("\n".join(lines))
    value_or_sentence(load_plugin, path)
    path = path.with_name(f"b{next(NUMBERS)}.py")
    path.write_bytes(data)
    value_or_sentence(load_plugin, path)
