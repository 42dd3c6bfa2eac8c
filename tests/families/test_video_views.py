"""Second views of prompts with videos: joined logits against each view read by itself in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.prompts.repeating import repeated
from lvlm_attn.prompts.request import Request
from lvlm_attn.wrapping import target_of
from tests.families.oracle import Case, walk
from tests.families.test_views import VIEWS, WORDS, Tokenizer
from tests.families.video_cases import batch_of, case_of
from tests.oracle_setup import relative_error, sink_model
from tests.tiny.videos import GLM, SPLIT, VIDEO_NAMES, clip, collated, video_inputs, video_rows

TOKENS = 3
NAMES = ("llava_next_video", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "glm4v")


def changed(view: str, name: str, model: Any, row: Any) -> Case:
    """The row as the view has it."""
    if view == "words":
        return case_of(name, model, row).without_images()
    if view == "longer":
        ids, image = [row.ids[0], *WORDS, *row.ids[1:]], [None, *[None] * len(WORDS), *row.image[1:]]
        return case_of(name, model, dataclasses.replace(row, ids=ids, image=image))
    before = len(row.pictures)  # which stand in front of the videos
    clips = [
        (item, pixels.flip(-1) * (1 + number + before) + 0.5)
        for number, (item, pixels) in enumerate(row.clips)
    ]
    pictures = [dataclasses.replace(one, pixels=one.pixels.flip(-1) + 0.5) for one in row.pictures]
    return case_of(name, model, dataclasses.replace(row, clips=clips, pictures=pictures))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", NAMES)
def test_joined_logits_equal_views_read_alone(name: str, view: str) -> None:
    kind, join, _ = VIEWS[view]
    model, batch = sink_model(name), batch_of(name)
    rows = video_rows(name, model, batch)
    options = {"max_new_tokens": TOKENS, "do_sample": False}
    settings = {"return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad(), la.wrap(model, kind(), processor=Tokenizer()) as lvlm:
        out = lvlm.generate(**collated(name, model, rows), **options, **settings)
    tokens, logits = out.sequences[:, -TOKENS:], torch.stack(out.logits, 1)
    for index, row in enumerate(rows):
        pair = [
            walk(one.with_tokens(tokens[index])).logits[one.prompt - 1 : one.prompt - 1 + TOKENS]
            for one in (case_of(name, model, row), changed(view, name, model, row))
        ]
        assert relative_error(logits[index], join(*pair)) < 5e-5
        if view == "longer" or row.blocks:
            assert relative_error(pair[1], pair[0]) > 1e-2  # so the equality can fail


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl"])
def test_repeated_prompts_keep_their_videos_together(name: str) -> None:
    model = sink_model(name)
    rows = video_rows(name, model, batch_of(name))
    request = Request.of_tensors(target_of(model, None), collated(name, model, rows))
    want = collated(name, model, [row for row in rows for _ in range(2)])
    got = repeated(request, 2 * len(rows))
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert torch.equal(got[key], value), key


class NoBeginning(Tokenizer):
    bos_token_id = None  # type: ignore[assignment]


@pytest.mark.parametrize("name", [*SPLIT, *GLM])
def test_words_do_not_part_a_frame_from_its_time(name: str) -> None:
    model = sink_model(name)
    inputs = video_inputs(name, model, [(3, clip(name, 2), 3)])
    with (
        la.wrap(model, VIEWS["longer"][0](), processor=NoBeginning()) as lvlm,
        pytest.raises(la.UnsupportedError, match="Longer: videos: words in front of the video of row 0"),
    ):
        lvlm.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("method", [la.AGLA(matcher="self"), la.CARVE()], ids=["agla", "carve"])
@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl"])
def test_methods_that_see_pictures_refuse_videos(name: str, method: Any) -> None:
    model = sink_model(name)
    inputs = video_inputs(name, model, [(3, clip(name, 2), 3)])
    with (
        la.wrap(model, method, processor=Tokenizer()) as lvlm,
        pytest.raises(la.UnsupportedError, match=f"{method.title}: videos: it has to see pictures"),
    ):
        lvlm.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_contrast_with_noisy_frames_acts(name: str) -> None:
    """All frames get noise, and a prompt without a video keeps its logits."""
    model = sink_model(name)
    inputs = video_inputs(name, model, batch_of(name))
    options = {
        "max_new_tokens": 1,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    with torch.no_grad():
        bare = model.generate(**inputs, **options).scores[0]
        with la.wrap(model, la.VCD(alpha=1, beta=0, noise_step=700)) as lvlm:
            got = lvlm.generate(**inputs, **options).scores[0]
    kept = torch.isfinite(bare)
    assert torch.allclose(got[1][kept[1]], bare[1][kept[1]], atol=1e-4)
    for row in (0, 2):
        assert (got[row][kept[row]] - bare[row][kept[row]]).abs().max() > 1e-2
