import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.pope.build import ImageObjects, article, build_questions, read_objects
from tests.cli.test_cli import call
from tests.fuzzing import sized

NAMES = ["apple", "bear", "cat", "dog", "egg", "fork", "goat", "hat", "ice cream", "jar", "kite", "lamp"]
LARGE = [ImageObjects("all-a.jpg", tuple(NAMES[:6])), ImageObjects("all-b.jpg", tuple(NAMES[6:]))]
rows = st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True)
worlds = st.lists(rows, min_size=4, max_size=12).map(
    lambda found: [*(ImageObjects(f"{i}.jpg", tuple(row)) for i, row in enumerate(found)), *LARGE]
)


@sized(60)
@given(world=worlds, k=st.integers(1, 3), seed=st.integers(0, 5))
def test_every_picture_gets_k_true_and_k_false_questions(world, k, seed):
    built = build_questions(world, k=k, seed=seed)
    objects = {item.image: item.objects for item in world}
    kept = [item for item in world if len(item.objects) >= k]
    positives = []
    for rows in built.values():
        assert [q.question_id for q in rows] == list(range(1, 2 * k * len(kept) + 1))
        assert [q.label for q in rows] == ["yes", "no"] * (k * len(kept))
        assert all((q.object in objects[q.image]) == (q.label == "yes") for q in rows)
        assert max(Counter((q.image, q.text) for q in rows).values()) == 1
        positives.append([q for q in rows if q.label == "yes"])
    assert [[q.text for q in rows] for rows in positives] == [[q.text for q in positives[0]]] * 3
    assert built == build_questions(world, k=k, seed=seed)


@sized(30)
@given(world=worlds, seed=st.integers(0, 5))
def test_popular_asks_the_most_frequent_absent_object_first(world, seed):
    built = build_questions(world, k=1, seed=seed, splits=["popular"])["popular"]
    frequency = Counter(name for item in world for name in item.objects)
    objects = {item.image: item.objects for item in world}
    for asked in built[1::2]:
        absent = [count for name, count in frequency.items() if name not in objects[asked.image]]
        assert frequency[asked.object] == max(absent)


def test_ties_keep_the_order_of_first_sight_and_adversarial_follows_co_occurrence():
    world = [
        ImageObjects("1", ("fork", "knife")),
        ImageObjects("2", ("dog", "cat")),
        ImageObjects("3", ("fork", "knife", "cup")),
        ImageObjects("4", ("fork", "dog")),
    ]
    built = build_questions(world, k=1)
    assert [q.object for q in built["popular"][1::2]] == ["dog", "fork", "dog", "knife"]
    assert [q.object for q in built["adversarial"][1::2]] == ["cup", "fork", "dog", "knife"]


def test_adversarial_falls_back_to_random_without_an_absent_neighbour():
    world = [ImageObjects("1", ("cat", "dog")), ImageObjects("2", ("sun",))]
    built = build_questions(world, k=1, splits=["adversarial"])["adversarial"]
    assert built[1].object == "sun"
    assert built[3].object in ("cat", "dog")


def test_frequencies_come_from_the_drawn_pictures_only():
    world = [ImageObjects(str(i), ("apple", f"thing{i}")) for i in range(5)] + [ImageObjects("x", ("zebra",))]
    for seed in range(5):
        rows = build_questions(world, k=2, images=3, seed=seed, splits=["random"])["random"]
        drawn = {q.image for q in rows}
        assert len(drawn) == 3
        assert {q.object for q in rows} <= {"apple", *(f"thing{image}" for image in drawn)}


def test_seed_changes_the_draw():
    world = [ImageObjects(str(i), (f"a{i}", f"b{i}")) for i in range(30)]
    draws = {
        tuple(q.image for q in build_questions(world, k=1, images=5, seed=s)["random"]) for s in range(4)
    }
    assert len(draws) == 4


def test_article_rule_writes_the_article_alone():
    world = [ImageObjects("1", ("orange", "skis")), ImageObjects("2", ("unicycle", "cat"))]
    texts = {q.text for q in build_questions(world, k=2, splits=["random"])["random"][:3:2]}
    assert texts == {"Is there an orange in the image?", "Is there a skis in the image?"}
    assert [article(name) for name in ("apple", "Egg", "hour", "scissors")] == ["an", "an", "a", "a"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"k": 0}, "at least 1"),
        ({"images": 0}, "at least 1"),
        ({"images": 9}, "2 pictures have at least 1 objects but 9 are wanted"),
        ({"k": 3}, "0 pictures have at least 3"),
        ({"splits": ["hard"]}, "no POPE split 'hard'"),
        ({"k": 2}, "no absent object is left"),
    ],
)
def test_impossible_requests(kwargs, message):
    world = [ImageObjects("1", ("cat", "dog")), ImageObjects("2", ("dog", "cat"))]
    with pytest.raises(LvlmAttnError, match=message):
        build_questions(world, **{"k": 1, **kwargs})


def test_object_file(tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_text('{"image": "a.jpg", "objects": ["cat", "dog", "cat"], "width": 3}\n')
    assert read_objects(path) == [ImageObjects("a.jpg", ("cat", "dog"))]
    path.write_text('{"image": "a.jpg"}\n')
    with pytest.raises(LvlmAttnError, match="line 1: expected"):
        read_objects(path)
    with pytest.raises(LvlmAttnError, match="listed more than once"):
        build_questions([ImageObjects("1", ("a",))] * 2, k=1)


def test_pictures_with_too_few_objects_are_told(capsys, tmp_path):
    rows = [{"image": f"{i}.jpg", "objects": ["cat", "dog", "bench"][: 1 + i % 3]} for i in range(6)]
    rows.append({"image": "x.jpg", "objects": ["oven", "chair", "cup"]})
    (tmp_path / "o.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, _, err = call(
        capsys, "pope", "build", "--objects", tmp_path / "o.jsonl", "--k", 2, "--out", tmp_path / "q"
    )
    assert code == 0, err
    assert "2 of 7 pictures hold fewer than 2 kinds of objects" in err
