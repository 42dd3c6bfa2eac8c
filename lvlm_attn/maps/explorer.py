"""Looking around in maps with ipywidgets (extra `notebooks`); the HTML page where widgets are not installed."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.views import VIEWS

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps


class Page:
    """A page that a notebook shows in place.

    Args:
        html: the page, framed.
    """

    def __init__(self, html: str):
        self._html = html

    def _repr_html_(self) -> str:
        return self._html


def explore(maps: AttentionMaps, intervened: AttentionMaps | None = None) -> Any:
    """Pickers for token, layer, head, view and image, and the picture they choose.

    Args:
        maps: of a single sample.
        intervened: maps of the same prompt under interventions; the picture then shows both and the difference.

    Returns:
        A widget; without ipywidgets the HTML page, which holds the same controls and works in Colab and VS Code.

    Raises:
        LvlmAttnError: if there are several samples, or nothing to show.

    Example:
        >>> explore(lvlm.maps)  # doctest: +SKIP
    """
    maps._lone("explore")
    if not len(maps):
        raise LvlmAttnError("There are no rows to explore; choose at least one token.")
    try:
        import ipywidgets
    except ImportError:
        from lvlm_attn.maps.viewer.page import inline

        return Page(inline(maps.to_html(intervened=intervened, limit=8 * 10**6)))
    return _Explorer(ipywidgets, maps, intervened).widget


class _Explorer:
    def __init__(self, widgets: Any, maps: AttentionMaps, other: AttentionMaps | None):
        self.maps, self.other = maps, other
        tokens = [(f"{number}: {text!r}", number) for number, text in enumerate(maps.tokens)]
        layers = [("mean of all", None), *((str(layer), layer) for layer in maps.layers)]
        heads = [("mean of all", None), *((str(head), head) for head in maps.heads)]
        images = list(range(len(maps.layout.grids[0])))
        self.token = widgets.SelectionSlider(options=tokens, description="token", continuous_update=False)
        self.layer = widgets.Dropdown(options=layers, description="layer")
        self.head = widgets.Dropdown(options=heads, description="head")
        self.view = widgets.Dropdown(options=self._views(), description="view")
        self.image = widgets.Dropdown(options=images or [0], description="image")
        self.picture = widgets.Image(format="png")
        self.said = widgets.Label()
        controls = [self.token, self.layer, self.head, self.view]
        controls += [self.image] if len(images) > 1 else []
        for control in controls:
            control.observe(lambda change: self.draw(), names="value")
        rows = [widgets.HBox(controls, layout={"flex_flow": "row wrap"}), self.said, self.picture]
        self.widget = _with_picture(widgets.VBox)(rows, self.picture)
        self.draw()

    def _views(self) -> list[str]:
        """The views that what was recorded allows."""
        found = ["raw"]
        for name in VIEWS:
            try:
                self.maps.view(name)
            except LvlmAttnError:
                continue
            found.append(name)
        return found

    def draw(self) -> None:
        """Draws what the controls say, or says why it cannot be drawn."""
        try:
            shown = self._chosen(self.maps)
            if self.other is None:
                figure = shown.overlay(image=self.image.value)
            else:
                figure = shown.compare(self._chosen(self.other), image=self.image.value)
        except LvlmAttnError as error:
            self.said.value = str(error)
            return
        self.said.value = ""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        self.picture.value = buffer.getvalue()

    def _chosen(self, maps: AttentionMaps) -> AttentionMaps:
        found = maps.view(self.view.value)[min(self.token.value, len(maps) - 1)]
        if self.view.value == "rollout":
            return found
        found = found if self.layer.value is None else found.layer(self.layer.value)
        return found if self.head.value is None else found.head(self.head.value)


def _with_picture(box: Any) -> Any:
    """A kind of box that is shown as the picture in it where widgets do not run, as in a saved notebook."""

    class Box(box):  # type: ignore[misc]
        def __init__(self, rows: list[Any], picture: Any):
            super().__init__(rows)
            self._picture = picture

        def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
            found = dict(super()._repr_mimebundle_(**options) or {})
            return found | {"image/png": base64.b64encode(self._picture.value).decode("ascii")}

    return Box
