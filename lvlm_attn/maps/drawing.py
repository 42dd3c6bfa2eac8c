"""The pictures of `AttentionMaps`, as its methods; `lvlm_attn.maps.draw` has what they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn.maps.part import Part

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps


class Drawing(Part):
    """Methods that draw; each returns a matplotlib figure, and needs the extra `viz`."""

    def overlay(self, token: int | str | tuple[str, int] | None = None, **options: Any) -> Any:
        """The picture, and beside it what the tokens attended to; see `lvlm_attn.maps.draw.overlay`.

        Args:
            token: a word or the number of a row; all rows if not given.
            **options: `image`, `level`, `smooth`.
        """
        from lvlm_attn.maps.draw.overlay import overlay

        return overlay(self._self if token is None else self._self[token], **options)

    def strip(self, **options: Any) -> Any:
        """One map for every token; see `lvlm_attn.maps.draw.strip`."""
        from lvlm_attn.maps.draw.overlay import strip

        return strip(self._self, **options)

    def layer_head_grid(self, **options: Any) -> Any:
        """Image mass of every layer and head; see `lvlm_attn.maps.draw.layer_head_grid`."""
        from lvlm_attn.maps.draw.layers import layer_head_grid

        return layer_head_grid(self._self, **options)

    def by_layer(self) -> Any:
        """Image mass and entropy by layer; see `lvlm_attn.maps.draw.by_layer`."""
        from lvlm_attn.maps.draw.layers import by_layer

        return by_layer(self._self)

    def class_plot(self) -> Any:
        """Classes of keys by layer, stacked; see `lvlm_attn.maps.draw.class_plot`."""
        from lvlm_attn.maps.draw.layers import class_plot

        return class_plot(self._self)

    def sink_map(self, **options: Any) -> Any:
        """Which patches are sinks, by layer; see `lvlm_attn.maps.draw.sink_map`."""
        from lvlm_attn.maps.draw.sinks import sink_map

        return sink_map(self._self, **options)

    def vhd_along(self, hallucinated: Sequence[str | tuple[str, int]] = (), **options: Any) -> Any:
        """T-VHD of every recorded token: how much the heads depend on the image there; runs the model again.

        Args:
            hallucinated: words to mark, as in `maps[word]`.
            **options: `top`, `layers`, `power`; see `lvlm_attn.maps.divergence.t_vhd`, which gives the numbers.

        Raises:
            LvlmAttnError: if a word has no row, or the model or its inputs are not at hand.

        Example:
            >>> lvlm.maps.vhd_along(hallucinated=["bus"])  # doctest: +SKIP
        """
        from lvlm_attn.maps.divergence import vhd_along

        return vhd_along(self._self, hallucinated, **options)

    def compare(self, intervened: AttentionMaps, **options: Any) -> Any:
        """These maps, others of the same picture, and the difference; see `lvlm_attn.maps.draw.compare`."""
        from lvlm_attn.maps.draw.compare import compare

        return compare(self._self, intervened, **options)

    def to_html(
        self,
        path: str | Path | None = None,
        *,
        intervened: AttentionMaps | None = None,
        neutral: AttentionMaps | None = None,
        limit: int = 40 * 10**6,
        word: str | tuple[str, int] | None = None,
    ) -> str:
        """One HTML page to look around in, which opens offline; see `lvlm_attn.maps.viewer.page`.

        Args:
            path: where to write it; it is returned either way.
            intervened: maps of the same prompt under interventions, shown beside these.
            neutral: maps of a neutral prompt about the same pictures, for the view `contrast`.
            limit: most bytes; heads are averaged in groups where they do not fit.
            word: what is chosen when the page opens, as in `maps[word]`.

        Raises:
            LvlmAttnError: if the maps cannot be shown together, have no such word, or the page cannot be written.
        """
        from lvlm_attn.maps.naming import short_name
        from lvlm_attn.maps.viewer.page import page, write

        runs = {short_name(self._self): self._self}
        if intervened is not None:
            name = short_name(intervened)
            runs[name if name not in runs else f"{name} (2)"] = intervened
        text = page(runs, neutral=neutral, limit=limit, word=word)
        if path is not None:
            write(Path(path), text)
        return text

    def explore(self, intervened: AttentionMaps | None = None) -> Any:
        """Widgets to look around in, for notebooks; see `lvlm_attn.maps.explorer`."""
        from lvlm_attn.maps.explorer import explore

        return explore(self._self, intervened)

    def _repr_html_(self) -> str | None:
        """The page inline, for notebooks; None where it cannot be made."""
        from lvlm_attn.errors import LvlmAttnError
        from lvlm_attn.maps.viewer.page import inline

        try:
            return inline(self.to_html(limit=4 * 10**6))
        except LvlmAttnError:
            return None
