"""The numbers of `AttentionMaps`, as its methods: means over what was chosen, by patch, pixel, token and key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps import onto_image
from lvlm_attn.maps.maps import Map, Mask
from lvlm_attn.maps.part import Part
from lvlm_attn.maps.places import Place

if TYPE_CHECKING:
    from lvlm_attn.maps.tables import KeyWeight, RowWeight


class Numbers(Part):
    """Methods that average over the rows, layers and heads there are."""

    def mean(self) -> Map:
        """`(keys,)`: the weights of a single sample averaged over layers, heads and rows, in fp64."""
        self._self._lone("mean")
        if not len(self._self) or not self._self.weights:
            raise LvlmAttnError("There are no rows to average; choose at least one word, token and layer.")
        total = sum(value[0].double().mean((0, 1)) for value in self._self.weights.values())
        return cast("Map", (cast("Tensor", total) / len(self._self.weights)).numpy())

    def grid(self, image: int | None = None) -> list[Map]:
        """The mean on every patch of an image of a single sample.

        Args:
            image: which image; may be left out where there is one.

        Returns:
            Per block of the image's grid `(rows, cols)`: the whole image, its thumbnail, or its tiles.

        Raises:
            LvlmAttnError: if there is no such image, or several and none was chosen.
        """
        return onto_image.grid(self._self, self.mean(), image)

    def pixels(
        self, image: int | None = None, level: Literal["all", "coarse", "fine"] = "all", smooth: bool = False
    ) -> Map:
        """The mean on the pixels of the original picture of a single sample.

        The weight of a patch lies evenly on the part of the picture it shows, so that the pixels sum to the recorded
        weight on the picture. Newline and break tokens belong to no pixel.

        Args:
            image: which image; may be left out where there is one.
            level: an image in tiles is seen twice, as a thumbnail (`"coarse"`) and as tiles (`"fine"`); `"all"`
                adds both up.
            smooth: bilinear between the centres of patches, scaled to the same sum.

        Returns:
            `(height, width)`; 0 where the model sees nothing of the picture.

        Raises:
            LvlmAttnError: if where the patches lie is not known.
        """
        return onto_image.pixels(self._self, self.grid(image), image, level, smooth)

    def seen(self, image: int | None = None) -> Mask:
        """`(height, width)`, True at the pixels of the picture that some patch shows."""
        return onto_image.seen_pixels(self._self, image)

    def text(self) -> list[KeyWeight]:
        """The mean on every text token of a single sample, in the order of the sequence."""
        from lvlm_attn.maps.tables import text_weights

        return text_weights(self._self)

    def attended_by(self, place: Place) -> list[RowWeight]:
        """Who attends to a place: for every recorded row its weight there, averaged over layers and heads.

        Args:
            place: a patch as `(row, col)`, or `(image, block, row, col)`; a word of the prompt or answer; or a
                position in the padded sequence.

        Raises:
            LvlmAttnError: if there is no such place.
        """
        from lvlm_attn.maps.tables import row_weights

        return row_weights(self._self, place)

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """`(layers, batch, heads, rows, keys)` in fp32."""
        return np.stack([value.numpy() for value in self._self.weights.values()])

    def to_pandas(self, limit: int = 20_000_000) -> Any:
        """One line per sample, layer, head, row and key that is no padding.

        Args:
            limit: most lines.

        Raises:
            LvlmAttnError: if there would be more lines, or pandas is not installed.
        """
        from lvlm_attn.maps.tables import to_pandas

        return to_pandas(self._self, limit)
