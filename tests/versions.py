"""What older supported versions of transformers do not do, for skips that say so."""

import pytest
import transformers
from packaging.version import Version
from transformers import AutoImageProcessor

INSTALLED = Version(transformers.__version__)

# By family and way to generate: the first version whose bare model is wrong, the one that mended it, and the fault.
FAULTS = {
    ("paligemma", "no cache"): ("5.17", "5.18", "generated tokens join the prefix that sees both ways"),
    ("llava", "images of beams"): ("5.17", "5.19", "beams mix up several images of a prompt"),
    ("qwen2_5_vl", "images of beams"): ("5.18", "5.19", "beams mix up several images of a prompt"),
    ("mistral3", "two beams"): ("5.17", "5.19", "beams mix up several images of a prompt"),
    ("llava_next_video", "two beams"): ("5.17", "5.19", "beams mix up several images of a prompt"),
    ("qwen3_5", "two beams"): ("5.18", "5.21", "beams mix up the grids of several images"),
    ("llama4", "static cache"): ("5.17", "5.20", "the masks of chunked attention raise a TypeError"),
    ("gemma4", "static cache"): ("5.17", "5.23", "image tokens see no later token of their image"),
}

needs_pre_encoding = pytest.mark.skipif(
    Version("5.23") > INSTALLED,
    reason="transformers before 5.23 encodes images inside the forward, so chunks of a prompt lose them; before 5.19 "
    "beams and returned sequences mix up several images of a prompt",
)
needs_own_image_processors = pytest.mark.skipif(
    "torchvision" in getattr(AutoImageProcessor, "_backends", ()),
    reason="this version of transformers has no image processors without torchvision",
)


def skip_faults(name: str, way: str) -> None:
    """Skips a way to generate in which the bare model of a family is wrong in this version of transformers."""
    first, mended, fault = FAULTS.get((name, way), ("0", "0", ""))
    if Version(first) <= INSTALLED < Version(mended):
        pytest.skip(f"transformers {transformers.__version__} itself, mended in {mended}: {fault}")
