"""Videos in prompts: methods against float64 weights made pair by pair, both paddings, read whole and decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lvlm_attn as la
from lvlm_attn.families import ImageInputs, family_of, prompt_layout
from lvlm_attn.hooks.crosslmm.pooling import pooled_positions
from lvlm_attn.hooks.crosslmm.reach import pooled_runs
from lvlm_attn.maps.viewer.describe import images_of
from tests.families import rules
from tests.families.oracle import plain, walk
from tests.families.test_methods import METHODS, TOKENS, VHR
from tests.families.video_cases import batch_of, video_cases
from tests.oracle_setup import DIM, TAU, generate, relative_error, sink_model, twin
from tests.tiny.videos import LLAVA, VIDEO_NAMES, clip, collated, video_inputs, video_rows
from tests.tiny_processors import tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*right-padding.*")

FULL = ("llava_onevision", "qwen2_5_vl", "qwen3_vl")
"""Families on which every method runs; on the others those that use most of the layout do."""
SHORT = ("var", "vhr", "pai", "mma", "neighborhood")
PAIRS = [(name, method) for name in VIDEO_NAMES for method in (METHODS if name in FULL else SHORT)]


NEAR = 3e-5


def judged(name: str) -> Any:
    """The model: in float32, but Qwen 3.5, whose linear attention rounds so much there that it would show nothing."""
    return twin(name) if name == "qwen3_5" else sink_model(name)


def inputs_for(name: str, model: Any, batch: Any, side: Any = "left") -> dict[str, Tensor]:
    """Its inputs, in its type."""
    given = video_inputs(name, model, batch, side)
    return {key: item.to(model.dtype) if item.is_floating_point() else item for key, item in given.items()}


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_logits_equal_the_definition(name: str, method: str) -> None:
    model, truth = judged(name), METHODS[method]
    # The places of an image in tiles are those of tests/hooks; here neighbors are those within a frame.
    batch = batch_of(name, pictures=not (name in LLAVA and method == "neighborhood"))
    left, right = (inputs_for(name, model, batch, side) for side in ("left", "right"))
    with torch.no_grad(), la.wrap(model, truth.method(), no_image="pass") as lvlm:
        got = {"left": model(**left).logits, "right": model(**right).logits}
        tokens, steps = generate(model, left, TOKENS)
        report = str(lvlm.report())
    assert "nothing yet" not in report
    changed = 0.0
    for index, case in enumerate(video_cases(name, batch)):
        whole, length = case.with_tokens(tokens[index]), len(case)
        options = {"scale": rules.vhr(case, VHR)} if method == "vhr" else truth.options(whole)
        want = walk(whole, truth.edit(whole), **options).logits
        bare = walk(whole).logits
        error = max(
            relative_error(got["left"][index, -length:], want[:length]),
            relative_error(got["right"][index, :length], want[:length]),
            relative_error(steps[index], want[length - 1 : length - 1 + TOKENS]),
        )
        assert error < NEAR, index
        changed = max(changed, relative_error(want, bare))
    assert changed > 1e-4  # so the equality can fail


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_recorded_weights_are_those_of_the_definition(name: str) -> None:
    model, batch = judged(name), batch_of(name)
    inputs = inputs_for(name, model, batch)
    recorder = la.record(layers=(1, 3), rows="all")
    with torch.no_grad(), la.wrap(model, recorder, no_image="pass") as lvlm:
        tokens, _ = generate(model, inputs, TOKENS)
        maps = lvlm.maps
    assert maps is not None
    for index, case in enumerate(video_cases(name, batch)):
        seen: dict[int, Tensor] = {}

        def keep(layer: int, *parts: Tensor, seen: dict[int, Tensor] = seen) -> Tensor:
            seen[layer] = plain(layer, *parts)
            return seen[layer]

        walk(case.with_tokens(tokens[index][:-1]), keep)
        for layer in (1, 3):
            rows, places = maps.weights[layer][index], maps.rows[index]
            offset = inputs["input_ids"].shape[1] - len(case)
            kept = places >= offset
            want = seen[layer][:, places[kept] - offset]
            assert kept.sum() >= len(case)
            assert float((rows[:, kept][..., offset:].double() - want).abs().max()) < NEAR
            assert float(rows[:, kept][..., :offset].abs().max() if offset else 0) == 0


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_a_map_of_every_frame(name: str) -> None:
    model = sink_model(name)
    batch = [(3, clip(name, 3), 5)]
    with torch.no_grad(), la.wrap(model, la.record()) as lvlm:
        generate(model, video_inputs(name, model, batch), TOKENS)
        maps = lvlm.maps
    assert maps is not None
    [case] = video_cases(name, batch)
    mean = maps.mean()
    blocks = maps.grid()
    assert [block.shape for block in blocks] == case.blocks[0]
    places = [place for place in range(len(case)) if case.is_patch(place)]
    assert torch.cat([torch.tensor(block).flatten() for block in blocks]).tolist() == mean[places].tolist()
    with pytest.raises(la.LvlmAttnError, match=r"videos: the pictures of the frames.*maps.grid gives a map"):
        maps.pixels()
    with pytest.raises(la.UnsupportedError, match=r"Occlusion: videos: regions are cut in one picture"):
        maps.occlude(0)


def test_maps_with_frames_are_saved_and_shown_side_by_side(tmp_path: Path) -> None:
    name = "qwen2_5_vl"
    model = sink_model(name)
    with torch.no_grad(), la.wrap(model, la.record(), processor=tokenizer()) as lvlm:
        tokens, _ = generate(model, video_inputs(name, model, [(3, "image", 2, clip(name, 3), 5)]), TOKENS)
        maps = lvlm.maps
        assert maps is not None
        word = tokenizer().decode(tokens[0, :1])
        check = maps.occlude(word, image=0)
        with pytest.raises(la.UnsupportedError, match="image 1 is a video; choose another image"):
            maps.occlude(word, image=1)
    assert (
        float(abs(check.drop).max()) > 1e-4
    )  # the video stays in the prompt while regions of the image are hidden
    again = la.AttentionMaps.load(maps.save(tmp_path / "maps.safetensors"))
    assert again.layout.grids == maps.layout.grids
    assert [block.time for block in again.layout.grids[0][1].blocks] == [0, 1, 2]
    shown = images_of(again, list(range(maps.layout.length)))[1]
    [level] = shown["levels"]
    keys = np.array(level["keys"]).reshape(level["rows"], level["cols"])
    first = int((maps.layout.image[0] == 1).nonzero()[0])
    frames = first + np.arange(18).reshape(3, 2, 3)
    assert keys.tolist() == np.block([[frames[0], frames[1]], [frames[2], np.full((2, 3), -1)]]).tolist()
    maps.to_html(tmp_path / "page.html")


def never() -> Any:
    return la.VAR(rho=1.0, mass_floor=1.0, tau=TAU, sink_dims=(DIM,))


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_neutral_settings_keep_bits(name: str) -> None:
    model = sink_model(name)
    inputs = video_inputs(name, model, batch_of(name))
    with torch.no_grad():
        bare_ids, bare = generate(model, inputs, TOKENS)
        for items in ([], [la.VAR(removed_fraction=0), la.VHR(alpha=1)], [never()]):
            with la.wrap(model, *items):
                ids, got = generate(model, inputs, TOKENS)
            assert torch.equal(ids, bare_ids)
            assert torch.equal(got, bare)


WAYS = {
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "two beams": {"num_beams": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llava_next_video", "llava_onevision", "qwen2_5_vl", "qwen3_vl"])
def test_ways_to_generate_agree_with_single_rows(name: str, way: str) -> None:
    model, batch = sink_model(name), batch_of(name)
    options = {"do_sample": False, "max_new_tokens": TOKENS, "return_dict_in_generate": True} | WAYS[way]
    rows = video_rows(name, model, batch)
    var = METHODS["var"].method()
    with torch.no_grad(), la.wrap(model, var, la.VisualSelf(), no_image="pass"):
        got = model.generate(**collated(name, model, rows), **options).sequences
        for index, row in enumerate(rows):
            plain_way = options | {"use_cache": True, "cache_implementation": None}
            alone = model.generate(**collated(name, model, [row]), **plain_way).sequences
            assert torch.equal(got[index, -TOKENS:], alone[0, -TOKENS:])


@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_a_chunked_prefill_is_refused(name: str) -> None:
    model = sink_model(name)
    inputs = video_inputs(name, model, [(3, clip(name, 3), 5)])
    reason = "image features" if name.startswith("glm") else "videos: the chunked prefill may cut a video"
    with (
        la.wrap(model, la.VAR()),
        pytest.raises(la.LvlmAttnError, match=f"{reason}.*prefill_chunk_size=None"),
    ):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=4)


@pytest.mark.parametrize(
    "name", ["llava_next_video", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
)
@pytest.mark.parametrize("method", [la.PAINT, lambda: la.VMTC(keep=2, clusters=1)])
def test_methods_that_read_the_image_encoder_refuse_videos(name: str, method: Callable[[], Any]) -> None:
    model, made = sink_model(name), method()
    inputs = video_inputs(name, model, [(3, clip(name, 3), 5)])
    with (
        la.wrap(model, made),
        pytest.raises(la.UnsupportedError, match=f"{made.title}: videos: .*single frames"),
    ):
        model(**inputs)


@pytest.mark.parametrize("name", ["llava_next_video", "qwen2_5_vl", "qwen3_vl"])
def test_pooled_frames_attend_within_their_frame_or_up_to_it(name: str) -> None:
    model = sink_model(name)
    [case] = video_cases(name, [(3, clip(name, 3), 5)])
    image_inputs = ImageInputs(model.config, case.row["input_ids"], case.row)
    layout = prompt_layout(family_of(model), image_inputs, case.row["attention_mask"])
    pooled = pooled_positions(layout, (1, 1))
    assert int(pooled.sum()) == 3
    size = case.blocks[0][0][0] * case.blocks[0][0][1]
    for scope, firsts in (("frame", [0, size, 2 * size]), ("global", [0, 0, 0])):
        runs = pooled_runs(layout, pooled, 0, len(case), scope)
        assert runs.first[pooled].tolist() == firsts
        assert runs.stop[pooled].tolist() == [size, 2 * size, 3 * size]


@pytest.mark.parametrize("name", [name for name in VIDEO_NAMES if name != "qwen3_5"])
def test_pooled_videos_leave_text_as_it_was_while_patches_are_within_reach(name: str) -> None:
    model, batch = sink_model(name), batch_of(name)
    inputs = video_inputs(name, model, batch)
    with torch.no_grad():
        bare = model(**inputs).logits
        with la.wrap(model, la.CrossLMM(grid=(1, 1)), no_image="pass"):
            got = model(**inputs).logits
        with la.wrap(model, la.CrossLMM.reuse(grid=(1, 1), w=0), no_image="pass"):
            alone = model(**inputs).logits
    for index, case in enumerate(video_cases(name, batch)):
        text = torch.tensor([image is None for image in case.image])
        mine, its, without = (x[index, -len(case) :][text] for x in (got, bare, alone))
        assert relative_error(mine, its.double()) < 3e-5
        assert index == 1 or relative_error(without, its.double()) > 1e-3  # so the equality can fail
