"""What the parts of `AttentionMaps` share: each is a class of methods that sees the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps


class Part:
    """Some methods of `AttentionMaps`."""

    @property
    def _self(self) -> AttentionMaps:
        return cast("AttentionMaps", self)
