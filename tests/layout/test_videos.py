"""Grids of videos, and layouts in which images and videos stand beside one another."""

import torch

from lvlm_attn.layout.grids import Block, ImageGrid, video_grid
from lvlm_attn.layout.prompt import PromptLayout
from tests.layout.test_prompt import IMAGE, SQUARE, same

VIDEO = 8


def test_a_video_is_a_block_for_each_frame():
    assert video_grid(3, 2, 4) == ImageGrid(
        tuple(Block(2, 4, "frame", time=time, frames=1) for time in range(3)), trailing_fillers=0
    )
    assert video_grid(2, 1, 1, frames=2, trailing_fillers=3) == ImageGrid(
        (Block(1, 1, "frame", time=0, frames=2), Block(1, 1, "frame", time=1, frames=2)), trailing_fillers=3
    )
    assert str(video_grid(8, 14, 14, trailing_fillers=1)) == "8 x frame 14x14 + 1 trailing filler"


def test_one_frame_makes_a_video():
    assert not SQUARE.is_video
    assert video_grid(1, 2, 2).is_video
    assert ImageGrid((Block(1, 1, "base"), Block(1, 1, "frame", time=0))).is_video


def test_tokens_of_videos_are_laid_out_as_those_of_images():
    video = video_grid(2, 1, 2)
    ids = torch.tensor([[5, 9, 9, 9, 9, 6, 8, 8, 8, 8, 7], [8, 8, 8, 8, 5, 6, 7, 9, 9, 9, 9]])
    grids = [SQUARE, video, video, SQUARE]
    layout = PromptLayout.build(ids, IMAGE, grids, video_token_id=VIDEO)
    assert same(layout, PromptLayout.build(torch.where(ids == VIDEO, IMAGE, ids), IMAGE, grids))
    assert layout.block[0].tolist() == [-1, 0, 0, 0, 0, -1, 0, 0, 1, 1, -1]
    # Without the id of videos its tokens are text.
    assert PromptLayout.build(ids[:, :6], IMAGE, [SQUARE]).is_text[1].tolist() == [True] * 6
