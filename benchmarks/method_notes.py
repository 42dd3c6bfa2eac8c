"""What each method needs of the model, as rows of the premise table, and why we think it does what it does."""

from __future__ import annotations

from types import MappingProxyType

SINKS, HEADS, PRIOR, VIEWS, POINTING, DEPTH = (
    "Sinks: they draw attention",
    "Heads: those of high VHD carry the answer",
    "Prior: yes without a picture",
    "Views: a crop is no worse than the picture",
    "Attention localises",
    "Depth: answers form over the layers",
)

#: By method the row of the premise table that it rests on.
PREMISE = MappingProxyType(
    {
        "VAR": SINKS,
        "VHR": HEADS,
        "VAR+VHR": HEADS,
        "PAI": PRIOR,
        "PAI, attention only": POINTING,
        "PAINT": POINTING,
        "VCD": PRIOR,
        "ICD": PRIOR,
        "AGLA (self)": POINTING,
        "CARVE": VIEWS,
        "DoLa": DEPTH,
        "CARVEAttention": POINTING,
        "CMAI": POINTING,
        "OPERA": SINKS,
    }
)

NO_PREMISE = "none of the six: a mask or a shorter prompt, made for models trained with it or for speed"
