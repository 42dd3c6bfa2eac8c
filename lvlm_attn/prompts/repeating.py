"""The same prompt several times in one batch."""

from __future__ import annotations

from typing import Any

from lvlm_attn.prompts.pixels import IMAGE_KEYS, join_pictures
from lvlm_attn.prompts.request import Request
from lvlm_attn.prompts.videos import VIDEO_KEYS, join_videos


def repeated(request: Request, rows: int) -> dict[str, Any]:
    """The inputs of a request with every row, and its images and videos, as often as answers were returned for it."""
    times = rows // request.batch
    if times <= 1:
        return dict(request.inputs)
    found: dict[str, Any] = {
        key: value.repeat_interleave(times, 0)
        for key, value in request.inputs.items()
        if key not in (*IMAGE_KEYS, *VIDEO_KEYS)
    }
    pictures = [row for row in request.pictures for _ in range(times)]
    found |= join_videos([row for row in request.videos for _ in range(times)])
    return found | join_pictures(pictures, counts="batch_num_images" in request.inputs)
