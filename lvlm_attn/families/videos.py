"""Videos in prompts: which tokens they are, what is known of them, and their place among the images.

A video is laid out as an image whose blocks are its frames. Families write it with a token id of its own; GLM writes
its frames with the id of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families.checks import checked_grids
from lvlm_attn.layout.grids import ImageGrid

if TYPE_CHECKING:
    from lvlm_attn.families.family import Family, ImageInputs


@dataclass(frozen=True, eq=False)
class Videos:
    """How a family writes videos.

    Attributes:
        grids: gives the grids of the videos that begin in `image_inputs.input_ids`, in flat order.
        are_images: whether frames have the id of images, so that a call holds either images or videos.
        has_timestamps: whether words stand between the frames.
    """

    grids: Callable[[ImageInputs], list[ImageGrid]]
    are_images: bool = False
    has_timestamps: bool = False


def video_token_id(config: Any) -> int | None:
    """The id that stands at every video position; None where there is none but that of images (Molmo 2)."""
    found = getattr(config, "video_token_id", None)
    return found if isinstance(found, int) and found != getattr(config, "image_token_id", None) else None


def has_video_tokens(config: Any, ids: Tensor) -> bool:
    """Whether token ids hold the id of videos."""
    token = video_token_id(config)
    return token is not None and bool((ids == token).any())


def holds_videos(family: Family, image_inputs: ImageInputs) -> bool:
    """Whether a prompt, or the next piece of one, holds videos.

    Raises:
        UnsupportedError: if it does in a family whose videos are not laid out, or holds images as well in a family
            that writes both with one id.
    """
    config = image_inputs.config
    is_given = _are_given(image_inputs, "pixel_values_videos", "video")
    has_token = has_video_tokens(config, image_inputs.input_ids)
    if family.videos is None:
        if is_given or has_token:
            raise UnsupportedError(
                f"The prompt holds a video, which is not supported for model type {config.model_type!r}; pass single "
                f"frames as images."
            )
        return False
    if not family.videos.are_images:
        return has_token
    if has_token:
        raise LvlmAttnError(
            f"The prompt holds the placeholder of a video, id {video_token_id(config)}, which the processor of "
            f"{family.title} replaces by frames; build ids and videos with one processor call."
        )
    if is_given and _are_given(image_inputs, "pixel_values", "image"):
        raise UnsupportedError(
            f"videos: {family.title} writes frames and images with one token id and cannot take both in one call; put "
            f"images and videos into calls of their own."
        )
    return is_given and bool((image_inputs.input_ids == config.image_token_id).any())


def in_prompt_order(
    is_image: Tensor, is_video: Tensor, images: Sequence[ImageGrid], videos: Sequence[ImageGrid]
) -> list[ImageGrid]:
    """Puts the grids of images and videos in the order in which their tokens stand, row by row.

    Args:
        is_image: `(batch, length)`, True at image tokens.
        is_video: `(batch, length)`, True at video tokens; none is both.
        images: one grid per image, in flat order.
        videos: one grid per video, in flat order.

    Returns:
        All grids; those for which there are no tokens come last.

    Raises:
        LvlmAttnError: if an image or a video is followed by the other kind before it is complete.

    Example:
        >>> from lvlm_attn.layout.grids import Block
        >>> one, two = (ImageGrid((Block(1, cols, "base"),)) for cols in (1, 2))
        >>> is_image = torch.tensor([[False, False, True]])
        >>> in_prompt_order(is_image, ~is_image, [one], [two]) == [two, one]
        True
    """
    left = {False: list(images), True: list(videos)}
    ordered: list[ImageGrid] = []
    for row, (image, video) in enumerate(zip(is_image, is_video)):
        kinds = cast("list[bool]", video[image | video].tolist())
        place = 0
        while place < len(kinds) and left[kinds[place]]:
            grid = left[kinds[place]].pop(0)
            found = kinds[place : place + grid.tokens]
            if any(kind != kinds[place] for kind in found):
                this, other = ("video", "image") if kinds[place] else ("image", "video")
                raise LvlmAttnError(
                    f"Row {row} of the prompt has an {other} token before its {this} of {grid.tokens} tokens ({grid}) "
                    f"is complete; build the ids, the images and the videos with the same processor call."
                )
            ordered.append(grid)
            place += grid.tokens
    return [*ordered, *left[False], *left[True]]


def with_videos(
    family: Family, image_inputs: ImageInputs, token: int, images: Sequence[ImageGrid]
) -> list[ImageGrid]:
    """The grids of a prompt that holds videos, images among them, in prompt order.

    Args:
        family: the model's family.
        image_inputs: token ids and what is known of their videos.
        token: the id of images.
        images: the grids of the images.
    """
    assert family.videos is not None
    videos = checked_grids(family, family.videos.grids(image_inputs), "video")
    if family.videos.are_images:
        return videos
    ids, own = image_inputs.input_ids, cast("int", video_token_id(image_inputs.config))
    return in_prompt_order(ids == token, ids == own, images, videos)


def refuse_videos(title: str, layout: Any, reason: str) -> None:
    """Refuses a prompt with videos for a method.

    Raises:
        UnsupportedError: naming the method and the reason.
    """
    if any(grid.is_video for row in layout.grids for grid in row):
        raise UnsupportedError(f"{title}: videos: {reason}; pass single frames as images.")


def _are_given(image_inputs: ImageInputs, pixels: str, kind: str) -> bool:
    """Whether a call holds images or videos, as pixels or encoded."""
    encoded = image_inputs.call.get("mm_encoder_outputs") or {}
    return image_inputs.call.get(pixels) is not None or encoded.get(kind) is not None
