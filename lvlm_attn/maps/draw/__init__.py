"""Pictures of recorded attention, as matplotlib figures (extra `viz`)."""

from lvlm_attn.maps.draw.compare import compare
from lvlm_attn.maps.draw.divergence import vhd_along, vhd_heat_map
from lvlm_attn.maps.draw.layers import by_layer, class_plot, layer_head_grid
from lvlm_attn.maps.draw.overlay import overlay, strip
from lvlm_attn.maps.draw.sinks import sink_map

__all__ = [
    "by_layer",
    "class_plot",
    "compare",
    "layer_head_grid",
    "overlay",
    "sink_map",
    "strip",
    "vhd_along",
    "vhd_heat_map",
]
