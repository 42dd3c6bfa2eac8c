"""The page: what is packed comes back, it is escaped, says what it left out, and holds no address of a network."""

import base64
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.layout.prompt import Block, ImageGrid
from lvlm_attn.maps.onto_image import MapImage
from lvlm_attn.maps.viewer.packing import pack, quantised
from lvlm_attn.maps.viewer.page import inline, page
from tests.maps.made import hand_made

HOSTILE = [
    " </script><script>alert(1)</script>",
    " <!--",
    " &quot;'\"",
    " \u2028\ud800",
    " {{blocks}}",
    " a",
    ".",
]


class Found(HTMLParser):
    """The elements of a page."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open = [], {}, None

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open = dict(attributes).get("id") if tag == "script" else None

    def handle_data(self, data):
        if self.open:
            self.texts[self.open] = self.texts.get(self.open, "") + data


def parsed(text):
    found = Found()
    found.feed(text)
    return found


def weights_of(found, name, rows, keys):
    raw = zlib.decompress(base64.b64decode(found.texts[name]))
    heads = len(raw) // (rows * (4 + keys))
    top = np.frombuffer(raw[: heads * rows * 4], "<f4").reshape(heads, rows, 1)
    steps = np.frombuffer(raw[heads * rows * 4 :], np.uint8).reshape(heads, rows, keys)
    return top * (steps / 255.0) ** 2


def test_packed_weights_come_back():
    maps = hand_made(layers=3, heads=4)
    found = parsed(page({"bare": maps}))
    told = json.loads(found.texts["told"])
    run = told["runs"][0]
    assert run["layers"] == ["mean of all", "0", "1", "2"]
    assert run["heads"] == ["mean of all", "0", "1", "2", "3"]
    stacked = torch.stack([maps.weights[layer][0] for layer in range(3)]).numpy()
    for name, wanted in {"r0-2": stacked[1], "r0-0": stacked.mean(0)}.items():
        got = weights_of(found, name, len(maps), maps.layout.length)
        full = np.concatenate((wanted.mean(0, keepdims=True), wanted))
        assert (np.abs(got - full) <= full.max(-1, keepdims=True) / 255 + 1e-7).all()
    masses = np.frombuffer(zlib.decompress(base64.b64decode(found.texts["r0-mass"])), "<f4").reshape(4, 5, 7)
    assert np.allclose(masses[1, 1], stacked[0, 0, :, 2:14].sum(-1), atol=1e-6)


def test_quantising_keeps_zero_and_the_largest():
    top, small = quantised(np.zeros((2, 3), np.float32))
    assert not top.any()
    assert not small.any()
    values = np.random.default_rng(0).random((5, 100)).astype(np.float32) ** 8
    top, small = quantised(values)
    assert np.array_equal(top, values.max(-1))
    assert (small.max(-1) == 255).all()


def test_tokens_images_and_keys():
    maps = hand_made()
    told = json.loads(parsed(page({"bare": maps})).texts["told"])
    tokens = told["runs"][0]["tokens"]
    assert [token["text"] for token in tokens] == ["<s>", "USER:", "", " Say", " it", ":", *maps.tokens]
    assert [token["kind"] for token in tokens] == ["prompt"] * 2 + ["image"] + ["prompt"] * 3 + ["answer"] * 7
    assert [token["row"] for token in tokens[-7:]] == list(range(7))
    assert tokens[-1]["key"] == -1
    assert tokens[-2]["key"] == maps.layout.length - 1
    level = told["images"][0]["levels"][0]
    assert level["keys"] == list(range(2, 14))
    assert level["frame"] == [0, 0, 40, 30]
    assert told["images"][0]["source"].startswith("data:image/png;base64,")


def test_padding_is_left_out():
    maps = hand_made(batch=1)
    layout = maps.layout
    kind = layout.kind.clone()
    kind[0, 0] = 0
    told = json.loads(parsed(page({"bare": replace(maps, layout=replace(layout, kind=kind))})).texts["told"])
    assert told["runs"][0]["keys"] == layout.length - 1
    assert told["images"][0]["levels"][0]["keys"] == list(range(1, 13))


def test_text_of_a_model_cannot_become_markup():
    maps = hand_made(words=HOSTILE)
    maps = replace(
        maps, meta={**maps.meta, "prompts": ["</title><img src=x onerror=alert(1)>"], "model": "<b>"}
    )
    text = page({"</script><i>": maps})
    found = parsed(text)
    assert [tag for tag, _ in found.tags if tag in ("img", "i", "b")] == []
    scripts = [attributes for tag, attributes in found.tags if tag == "script"]
    assert [item.get("type") for item in scripts if item.get("type") is None] == [None]
    told = json.loads(found.texts["told"])
    assert [token["text"] for token in told["runs"][0]["tokens"][-7:]] == HOSTILE
    assert "alert(1)</script>" not in text
    text.encode("utf-8")
    assert "<iframe" in inline(text)
    assert len(parsed(inline(text)).tags) == 1


def test_nothing_is_loaded_from_anywhere():
    text = page({"bare": hand_made()})
    assert not re.search(r"https?://|//[a-z0-9.-]+\.[a-z]{2,}/|@import|url\(", text)
    found = parsed(text)
    assert not [
        a for _, a in found.tags if a.get("href") or (a.get("src") and not a["src"].startswith("data:"))
    ]
    policy = next(a["content"] for tag, a in found.tags if tag == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_heads_are_averaged_where_they_do_not_fit():
    maps = hand_made(layers=4, heads=16)
    keys = list(range(maps.layout.length))
    whole = pack(maps, keys, 10**9)
    assert whole.group == 1
    packed = pack(maps, keys, whole.size // 3)
    assert 1 < packed.group < 16
    assert packed.size <= whole.size // 3
    assert packed.heads[0] == f"0-{packed.group - 1}"
    assert pack(maps, keys, 1).group == 16
    told = json.loads(parsed(page({"bare": maps}, limit=1)).texts["told"])
    assert told["runs"][0]["group"] == 16
    assert told["runs"][0]["heads"] == ["mean of all", "0-15"]


def test_a_page_opens_at_a_word():
    bare, other = hand_made(), hand_made(words=[" A", " cat", "."])
    told = json.loads(parsed(page({"bare": bare, "var": other}, word="dog")).texts["told"])
    assert [run["start"] for run in told["runs"]] == [5, -1]
    assert json.loads(parsed(page({"bare": bare}, word=("a", 2))).texts["told"])["runs"][0]["start"] == 4
    assert json.loads(parsed(page({"bare": bare})).texts["told"])["runs"][0]["start"] == -1
    with pytest.raises(LvlmAttnError, match="No recorded token holds the word 'cat'"):
        page({"bare": bare, "var": other}, word="cat")


def test_two_runs_and_every_view():
    bare, other = hand_made(), hand_made(seed=1)
    told = json.loads(parsed(page({"bare": bare, "var": other}, neutral=hand_made(seed=2)[:1])).texts["told"])
    assert [run["name"] for run in told["runs"]] == ["bare", "var"]
    assert told["runs"][0]["views"] == ["raw", "no_sinks", "relative", "contrast"]
    assert len(told["runs"][0]["sinks"]) == 3


def test_without_known_places_the_grid_is_shown():
    grid = ImageGrid((Block(3, 4, "base"),))
    maps = replace(hand_made(), images=((MapImage.of(grid, None, None, None),),))
    told = json.loads(parsed(page({"bare": maps})).texts["told"])
    assert told["images"][0]["size"] == [96, 72]
    assert "the picture itself is not known" in told["images"][0]["reason"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: page({}), "one run, or two"),
        (lambda: page({"a": hand_made(batch=2)}), "needs a single sample"),
        (lambda: page({"a": hand_made().view("relative")}), "give it raw maps"),
        (lambda: page({"a": hand_made(), "b": hand_made(layers=3)}), "layers and heads are the same"),
        (lambda: page({"a": hand_made()[3:3]}), "no rows to show"),
        (lambda: hand_made().to_html("/no/such/folder/x.html"), "could not be written"),
    ],
)
def test_one_sentence_each(make, message):
    with pytest.raises(LvlmAttnError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_writing_and_showing_in_a_notebook(tmp_path):
    maps = hand_made()
    text = maps.to_html(tmp_path / "map.html")
    assert (tmp_path / "map.html").read_text("utf-8") == text
    assert maps._repr_html_().startswith("<iframe srcdoc=")
    assert hand_made(batch=2)._repr_html_() is None
