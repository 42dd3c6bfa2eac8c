"""Readers and metrics of the benchmarks of closed questions, against numbers worked out by hand in each test."""

import json

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
from lvlm_attn.evals.closed.catalogue import CLOSED
from lvlm_attn.prompts.images import as_image
from tests.evals.closed import copies


def load(name, folder, **options):
    return ClosedBenchmark.from_folder(CLOSED[name], folder, **options)


def lines(benchmark, answers):
    """Result lines with these answers in the order of the samples; None is a failed sample."""
    samples = benchmark.samples()
    assert len(samples) == len(answers)
    return [
        {
            "sample_id": sample.sample_id,
            "image": sample.image_name,
            **sample.fields,
            "question": sample.prompt,
        }
        | ({"raw_text": answer} if answer is not None else {"raw_text": None, "error": "gone"})
        for sample, answer in zip(samples, answers)
    ]


def score(benchmark, answers):
    return benchmark.score(lines(benchmark, answers))


@pytest.mark.parametrize("nested", [False, True])
def test_mme_adds_accuracy_and_accuracy_of_pictures_per_task(tmp_path, nested):
    benchmark = load("mme", copies.mme(tmp_path, nested=nested))
    samples = benchmark.samples()
    assert len(samples) == 2 * 3 * 2
    assert samples[0].image.is_file()
    assert samples[0].prompt == "Is there a cup0 of count? Please answer yes or no."
    # count: 3 pictures, answers (right, right), (right, wrong), (wrong, unknown). existence: all right.
    done = score(benchmark, ["Yes", "No.", "yes", "Yes", "no", "a cow"] + ["Yes", "No"] * 3)
    assert done["count_points"] == pytest.approx(100 * 3 / 6 + 100 * 1 / 3)
    assert done["existence_points"] == 200
    assert done["accuracy"] == pytest.approx(9 / 12)
    assert done["accuracy_plus"] == pytest.approx(4 / 6)
    assert done["yes_ratio"] == pytest.approx(6 / 12)
    assert (done["unknown"], done["n"], done["groups"]) == (1, 12, {"plus": 6})
    assert not {"perception", "cognition", "hallucination"} & set(done), (
        "sums of tasks that are not all there"
    )


def test_mme_keeps_perception_and_cognition_apart(tmp_path):
    from lvlm_attn.evals.closed.mme import COGNITION, PERCEPTION

    benchmark = load("mme", copies.mme(tmp_path, tasks=(*PERCEPTION, *COGNITION), pictures=1))
    answers = {
        item.sample_id: "Yes" if item.sample_id.endswith(":1") else "No" for item in benchmark.questions
    }
    answers["color/0000:2"] = "Yes"  # color: acc 1/2, acc+ 0 -> 50 points
    answers["OCR/0000:1"] = "No"  # OCR: the same
    answers["code_reasoning/0000:1"] = answers["code_reasoning/0000:2"] = "?"  # 0 points
    done = score(benchmark, [answers[item.sample_id] for item in benchmark.questions])
    assert done["perception"] == 2000 - 150 - 150
    assert done["cognition"] == 800 - 200
    assert done["hallucination"] == 800 - 150
    assert list(done["per_category"])[:4] == ["existence", "count", "position", "color"]
    only = load("mme", tmp_path, subsets=["hallucination"])
    assert {item.part for item in only.questions} == {"existence", "count", "position", "color"}
    assert "perception" not in score(only, ["Yes", "No"] * 4)


def test_mme_pictures_with_a_failed_question_are_in_no_pair(tmp_path):
    benchmark = load("mme", copies.mme(tmp_path, tasks=("count",), pictures=2))
    done = score(benchmark, ["Yes", "No", "Yes", None])
    assert (done["accuracy"], done["accuracy_plus"]) == (1.0, 1.0)
    assert (done["n"], done["failed"], done["groups"]["plus"]) == (3, 1, 1)


def test_mmvp_counts_pairs(tmp_path):
    benchmark = load("mmvp", copies.mmvp(tmp_path))
    assert benchmark.samples()[2].prompt == "Is door 2 open or closed? (a) Open (b) Closed"
    # right answers a, b, b, a: the first pair is right, of the second one
    done = score(benchmark, ["(a)", "It is closed.", "B", "b. Closed"])
    assert (done["accuracy"], done["accuracy_pair"], done["groups"]["pair"]) == (0.75, 0.5, 2)
    done = score(benchmark, ["open or closed", "(b)", "(b)", "The answer is (a)"])
    assert (done["accuracy"], done["accuracy_pair"], done["unknown"]) == (0.75, 0.5, 1)


def test_mmvp_says_that_the_original_file_exchanges_two_pairs(tmp_path):
    answers = ["(a)", "(b)"] * 150
    assert "279" in load("mmvp", copies.mmvp(tmp_path / "a", answers[:280])).remarks[0]
    answers[98], answers[99] = "(b)", "(a)"
    assert not load("mmvp", copies.mmvp(tmp_path / "b", answers[:280])).remarks


def test_hallusionbench_has_three_accuracies(tmp_path):
    benchmark = load("hallusionbench", copies.hallusionbench(tmp_path))
    assert benchmark.remarks == ("1 questions of HallusionBench have no picture; left out.",)
    assert [item.label for item in benchmark.questions] == ["yes", "no", "no", "yes", "yes"]
    # figure 0: right, right; figure 1: right, wrong. So question 0 is right twice, question 1 once. The chart: wrong.
    done = score(benchmark, ["Yes", "No", "No", "No", "No"])
    assert done["aAcc"] == pytest.approx(3 / 5)
    assert done["fAcc"] == pytest.approx(1 / 3)
    assert done["qAcc"] == pytest.approx(1 / 3)
    assert (done["aAcc_VD"], done["aAcc_VS"]) == (3 / 4, 0)
    assert load("hallusionbench", tmp_path, subsets=["VS"]).questions[0].part == "VS/chart"


def test_naturalbench_counts_questions_pictures_and_groups(tmp_path):
    benchmark = load("naturalbench", copies.naturalbench(tmp_path))
    samples = benchmark.samples()
    assert samples[0].prompt == "Is cup 0 full? Please answer Yes or No."
    assert samples[4].prompt == "Is cup 1 full? Please output the letter corresponding to the correct option."
    assert [as_image(sample.image).getpixel((0, 0)) for sample in samples[:2]] == [(255, 0, 0), (0, 128, 0)]
    # in order q0i0 q0i1 q1i0 q1i1; right: yes no no yes, then A B B A
    done = score(benchmark, ["Yes", "No", "No", "No", "A", "B", "B.", "(A)"])
    assert done["accuracy"] == 7 / 8
    assert done["q_acc"] == 3 / 4  # of group 0 question 0 alone
    assert done["i_acc"] == 3 / 4  # of group 0 picture 0 alone
    assert done["g_acc"] == 1 / 2
    assert done["groups"] == {"question": 4, "image": 4, "group": 2}
    assert score(benchmark, ["Yes"] * 4 + ["A"] * 4)["q_acc"] == 0, "who does not look scores nothing"


def test_dash_b_reports_both_rates(tmp_path):
    benchmark = load("dash-b", copies.dash_b(tmp_path))
    assert (
        benchmark.samples()[0].prompt
        == "Can you see a kettle in this image? Please answer only with yes or no."
    )
    assert all(sample.image.is_file() for sample in benchmark.samples())
    done = score(benchmark, ["Yes", "no", "yes", "Yes"])  # right: no no no yes
    assert (done["accuracy"], done["tnr"], done["tpr"]) == (2 / 4, 1 / 3, 1.0)
    assert done["harmonic_mean"] == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))
    assert done["false_yes_objects"] == {"kettle": 1, "drum": 1}


def test_amber_counts_no_as_positive(tmp_path):
    benchmark = load("amber-d", copies.amber(tmp_path))
    assert [item.part for item in benchmark.questions] == [
        "existence", "existence", "state", "number", "action", "relation", "relation"
    ]  # fmt: skip
    # right: no no yes no yes yes no
    done = score(benchmark, ["No", "Yes", "No", "No", "Yes", "Yes", "maybe"])
    assert done["accuracy"] == pytest.approx(4 / 7)
    assert done["precision"] == pytest.approx(2 / 3)  # three answers no, two of them right
    assert done["recall"] == pytest.approx(2 / 4)  # four right answers are no
    assert done["f1"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert done["accuracy_attribute"] == pytest.approx(2 / 3)
    assert done["f1_existence"] == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert (done["accuracy_relation"], done["unknown"]) == (0.5, 1)
    assert len(load("amber-d", tmp_path, subsets=["attribute"]).questions) == 3


def test_amber_reads_files_of_single_dimensions(tmp_path):
    copies.amber(tmp_path)
    path = tmp_path / "data" / "query" / "query_all.json"
    rows = json.loads(path.read_text())
    path.unlink()
    copies.dump(path.with_name("query_discriminative-relation.json"), rows[-2:])
    assert [item.question_id for item in load("amber-d", tmp_path).questions] == ["8", "9"]


def test_limit_keeps_whole_pictures_and_sets(tmp_path):
    assert len(load("mme", copies.mme(tmp_path / "m"), limit=1).questions) == 4
    assert len(load("mmvp", copies.mmvp(tmp_path / "p"), limit=1).questions) == 2
    assert len(load("hallusionbench", copies.hallusionbench(tmp_path / "h"), limit=1).questions) == 5
    assert len(load("naturalbench", copies.naturalbench(tmp_path / "n", groups=3), limit=1).questions) == 8


def test_other_questions_are_another_run(tmp_path):
    all_of_it = load("mme", copies.mme(tmp_path))
    assert all_of_it.describe() != load("mme", tmp_path, limit=1).describe()
    assert all_of_it.describe() == load("mme", tmp_path, parser="mme").describe()
    assert all_of_it.scoring() == {"parser": "strict", "parts": ["existence", "count"]}


@pytest.mark.parametrize("name", CLOSED)
def test_an_empty_folder_is_one_sentence(tmp_path, name):
    with pytest.raises(LvlmAttnError, match=r"pass the folder"):
        load(name, tmp_path)
    with pytest.raises(LvlmAttnError, match="does not exist"):
        load(name, tmp_path / "nowhere")


def test_bad_entries_are_named(tmp_path):
    copies.mme(tmp_path / "m")
    (tmp_path / "m" / "MME_Benchmark_release_version" / "count" / "0001.txt").write_text("Is it?\tYes\n")
    with pytest.raises(LvlmAttnError, match=r"0001\.txt: expected two lines"):
        load("mme", tmp_path / "m")
    with pytest.raises(LvlmAttnError, match=r"right answer is '\(c\)', expected a or b"):
        load("mmvp", copies.mmvp(tmp_path / "p", ["(a)", "(c)"]))
    copies.amber(tmp_path / "a")
    copies.dump(tmp_path / "a" / "data" / "annotations.json", [{"id": 1, "type": "generative"}])
    with pytest.raises(LvlmAttnError, match="query 2 has no annotation"):
        load("amber-d", tmp_path / "a")
    copies.dash_b(tmp_path / "d")
    (tmp_path / "d" / "images" / "dash_benchmark_neg.json").write_text('{"a": ["b.jpg"]}')
    with pytest.raises(LvlmAttnError, match="expected data sets of objects"):
        load("dash-b", tmp_path / "d")


def test_names_that_do_not_exist_are_refused_with_the_nearest(tmp_path):
    copies.mme(tmp_path)
    with pytest.raises(LvlmAttnError, match="Did you mean 'hallucination'"):
        load("mme", tmp_path, subsets=["halucination"])
    with pytest.raises(LvlmAttnError, match="your copy has no questions of cognition"):
        load("mme", tmp_path, subsets=["cognition"])
    with pytest.raises(LvlmAttnError, match="no answer parser 'mmee'"):
        load("mme", tmp_path, parser="mmee")
    with pytest.raises(LvlmAttnError, match="'official' for questions answered by a letter"):
        load("mmvp", copies.mmvp(tmp_path / "p"), parser="official")


def test_pictures_elsewhere_are_said_before_a_model_answers(tmp_path):
    copies.dash_b(tmp_path)
    benchmark = load("dash-b", tmp_path / "images", images=copies.mmvp(tmp_path / "other") / "MMVP Images")
    with pytest.raises(LvlmAttnError, match="none of the 4 pictures is in"):
        benchmark.samples()
