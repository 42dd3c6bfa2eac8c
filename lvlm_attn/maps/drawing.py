"""The pictures of `AttentionMaps`, as its methods; `lvlm_attn.maps.draw` has what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps


class Drawing:
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

    def compare(self, intervened: AttentionMaps, **options: Any) -> Any:
        """These maps, others of the same picture, and the difference; see `lvlm_attn.maps.draw.compare`."""
        from lvlm_attn.maps.draw.compare import compare

        return compare(self._self, intervened, **options)

    @property
    def _self(self) -> AttentionMaps:
        return cast("AttentionMaps", self)
