"""How many frames a video has, and the grids of videos whose frames all take the same tokens."""

from __future__ import annotations

from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.family import ImageInputs, encoded_features
from lvlm_attn.layout.grids import ImageGrid, video_grid


def grids_of_frames(image_inputs: ImageInputs, rows: int, cols: int, after: int = 0) -> list[ImageGrid]:
    """One grid for each video whose frames take `rows x cols` tokens each, with `after` fillers behind the last.

    The number of frames is that of the encoded features, or of `pixel_values_videos` `(videos, frames, channels,
    height, width)`.

    Raises:
        LvlmAttnError: if nothing tells the number of frames, or the features fill no whole number of them.
    """
    features = encoded_features(image_inputs, "video")
    pixels = image_inputs.call.get("pixel_values_videos")
    if features is not None:
        counts = []
        for number, feature in enumerate(features):
            count, rest = divmod(len(feature) - after, rows * cols)
            if rest or count < 1:
                raise LvlmAttnError(
                    f"Video {number} has {len(feature)} features, no whole number of {rows} x {cols} frames; pass "
                    f"pixel_values_videos as the processor returns them, and prefill_chunk_size=None."
                )
            counts.append(count)
    elif isinstance(pixels, Tensor) and pixels.dim() == 5:
        counts = [pixels.shape[1]] * pixels.shape[0]
    else:
        raise LvlmAttnError(
            f"The prompt holds video tokens, but neither pixel_values_videos nor video features of this "
            f"{image_inputs.config.model_type} model; pass pixel_values_videos as the processor returns them."
        )
    return [video_grid(count, rows, cols, trailing_fillers=after) for count in counts]
