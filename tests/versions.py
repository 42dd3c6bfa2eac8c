"""What older supported versions of transformers do not do, for skips that say so."""

import pytest
from transformers import AutoImageProcessor, LlavaForConditionalGeneration

needs_pre_encoding = pytest.mark.skipif(
    not hasattr(LlavaForConditionalGeneration, "_supports_mm_encoder_outputs"),
    reason="this version of transformers encodes images inside the forward: chunks of a prompt lose them, and beams "
    "and returned sequences mix up several images of a prompt",
)
needs_own_image_processors = pytest.mark.skipif(
    "torchvision" in getattr(AutoImageProcessor, "_backends", ()),
    reason="this version of transformers has no image processors without torchvision",
)
