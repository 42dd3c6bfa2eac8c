"""AMBER's descriptions: words, and metrics worked out by hand."""

import json

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.amber.benchmark import AmberCaptions, score_lines
from lvlm_attn.evals.amber.scoring import score_files
from lvlm_attn.evals.amber.words import lists_of
from lvlm_attn.evals.compare import compare
from tests.evals.closed import copies
from tests.evals.runs import settings, write_run

LISTS = lists_of(
    {"dog": [], "hot": [], "can": [], "knife": ["blade"], "television": ["TV"], "sunglasses": [], "bus": []},
    (),
)


@pytest.mark.parametrize(
    ("text", "nouns"),
    [
        ("Two dogs and a Dog.", ["dog", "dog"]),
        ("A dog can be seen near a can.", ["dog", "can"]),
        ("Cans of paint; the can is red", ["can", "can"]),
        ("A hot day. A hot dog on a plate, two hot dogs", ["hot", "hot"]),
        ("Knives and blades", ["knife", "blade"]),
        ("a TV, sunglasses, buses", ["tv", "sunglasses", "bus"]),
        ("<think>a dog</think> a knife", ["knife"]),
        ("dogged, the doghouse", []),
    ],
)
def test_nouns_of_the_list(text, nouns):
    assert LISTS.nouns(text) == nouns


@pytest.fixture
def benchmark(tmp_path):
    return AmberCaptions.from_folder(copies.amber(tmp_path / "copy"))


def lines(benchmark, texts):
    return [
        {"sample_id": sample.sample_id, "image": sample.image_name, **sample.fields, "question": sample.prompt,
         "raw_text": text}
        for sample, text in zip(benchmark.samples(), texts, strict=True)
    ]  # fmt: skip


# truth of 1: child, grass, ship, ship; likely: sky, dog. Truth of 2: beach; likely: sea, cloud. Safe: line, light.
FIRST = "A boy and a kid stand on the ground near a boat; a line of knives, and a dog."
SECOND = "Sand."


def test_metrics_by_hand(benchmark):
    assert [sample.prompt for sample in benchmark.samples()] == ["Describe this image."] * 2
    done = benchmark.score(lines(benchmark, [FIRST, SECOND]))
    # First: boy, kid (child), ground (grass), boat (first ship), line (safe), knives, dog: 7 nouns, 2 wrong, 3 of the 4
    # objects, 1 of the 2 likely. Second: sand (beach): 1 noun, 1 of 1 object, none of the 2 likely.
    assert (done["nouns"], done["hallucinated_nouns"]) == (8, 2)
    assert done["chair"] == pytest.approx(2 / 8)
    assert done["cover"] == pytest.approx(4 / 5)
    assert done["hal"] == pytest.approx(1 / 2)
    assert done["cog"] == pytest.approx(1 / 4)
    assert done["len"] == pytest.approx((len(FIRST.split()) + 1) / 2)
    assert done["matching"] == "exact and associated words, without the similarity step"


def test_two_runs_are_compared(benchmark, tmp_path):
    made = settings("amber-g", benchmark=benchmark.describe())
    folders = [
        write_run(tmp_path / name, lines(benchmark, texts), made, benchmark.scoring(), {})
        for name, texts in (("bare", [FIRST, "A cloud."]), ("better", ["A child.", SECOND]))
    ]
    found = compare(folders, resamples=200).runs["better"]
    assert found.metrics["hal"].difference == -1.0
    assert (found.better, found.worse) == (2, 0)
    # chair from (2 + 1) / (7 + 1) to 0; cover from 3/5 to 2/5; cog from (1 + 1) / 4 to 0
    assert found.metrics["chair"].difference == pytest.approx(-3 / 8)
    assert found.metrics["cover"].difference == pytest.approx(-1 / 5)
    assert found.metrics["cog"].difference == pytest.approx(-1 / 2)


def test_answer_files_and_runs_of_our_own_score_alike(benchmark, tmp_path):
    rows = [{"id": 1, "response": FIRST}, {"id": 2, "response": SECOND}, {"id": 3, "response": "Yes"}]
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(rows))
    theirs, notes = score_files([path], tmp_path / "copy")
    assert "'response'" in notes[0]
    run = write_run(
        tmp_path / "run", lines(benchmark, [FIRST, SECOND]), settings("amber-g"), benchmark.scoring()
    )
    ours, _ = score_files([run], None)
    assert theirs["answers"] == {**ours["run"], "unasked": 1}
    with pytest.raises(LvlmAttnError, match="pass --data FOLDER"):
        score_files([path], None)
    path.write_text(json.dumps(rows[:1]))
    with pytest.raises(LvlmAttnError, match="1 of 2 questions have no answer"):
        score_files([path], tmp_path / "copy")


def test_bad_copies_are_one_sentence(tmp_path):
    with pytest.raises(LvlmAttnError, match=r"relation\.json is not in"):
        AmberCaptions.from_folder(tmp_path)
    copies.amber(tmp_path)
    (tmp_path / "data" / "relation.json").write_text('{"dog": "puppy"}')
    with pytest.raises(LvlmAttnError, match="expected lists of words"):
        AmberCaptions.from_folder(tmp_path)
    (tmp_path / "data" / "relation.json").write_text("{")
    with pytest.raises(LvlmAttnError, match="not valid JSON"):
        AmberCaptions.from_folder(tmp_path)
    with pytest.raises(LvlmAttnError, match="holds no word lists"):
        score_lines([{"raw_text": "a"}], {})
