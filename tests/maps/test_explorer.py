"""The explorer: its controls change the picture; without widgets the page stands in for it."""

import base64
import sys

import pytest

from lvlm_attn.errors import LvlmAttnError
from tests.maps.made import hand_made


@pytest.fixture
def widgets():
    pytest.importorskip("matplotlib")
    return pytest.importorskip("ipywidgets", reason="the extra notebooks is not installed")


def controls(widget):
    return {item.description: item for item in widget.children[0].children}


def test_every_control_changes_the_picture(widgets):
    widget = hand_made().explore()
    found = controls(widget)
    assert list(found) == ["token", "layer", "head", "view"]
    assert found["view"].options == ("raw", "no_sinks", "relative")
    picture = widget.children[2]
    seen = {bytes(picture.value)}
    assert picture.value[:4] == b"\x89PNG"
    for name, value in (("token", 2), ("layer", 1), ("head", 0), ("view", "relative")):
        found[name].value = value
        seen.add(bytes(picture.value))
    assert len(seen) == 5
    assert widget.children[1].value == ""


def test_a_saved_notebook_holds_the_picture_beside_the_widget(widgets):
    widget = hand_made().explore()
    bundle = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]) == bytes(widget.children[2].value)
    controls(widget)["token"].value = 2
    assert widget._repr_mimebundle_()["image/png"] != bundle["image/png"]


def test_two_runs(widgets):
    widget = hand_made().explore(hand_made(seed=1))
    assert widget.children[2].value[:4] == b"\x89PNG"
    broken = hand_made().explore(hand_made(layers=3))
    assert "other views, layers or heads" in broken.children[1].value


def test_without_widgets_the_page_is_shown(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert hand_made().explore()._repr_html_().startswith("<iframe srcdoc=")
    with pytest.raises(LvlmAttnError, match="needs a single sample"):
        hand_made(batch=2).explore()
    with pytest.raises(LvlmAttnError, match="no rows to explore"):
        hand_made()[3:3].explore()
