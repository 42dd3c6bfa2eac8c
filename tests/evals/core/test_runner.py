"""The runner with an answerer that is no model: what is written, kept, shared, retried and refused."""

import io
import json
import os
from collections import Counter

import pytest
from PIL import Image, features

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.evals.core.run_folder import RunFolder, check_writable
from lvlm_attn.evals.core.runner import Answer, RunInterrupted, run, sample_seed

SETTINGS = {"model": "none", "intervention": "none"}


class Echo:
    """Answers with prompt and seed; may stop after some batches."""

    def __init__(self, stop_after=None):
        self.calls, self.stop_after = [], stop_after

    def answer(self, images, prompts, seeds):
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(list(prompts))
        assert all(image.mode == "RGB" for image in images)
        return [Answer(f"{prompt}/{seed}", n_new_tokens=2) for prompt, seed in zip(prompts, seeds)]


def samples(count=7, image=None):
    image = image or Image.new("L", (4, 4))
    return [Sample(f"s{i}", image, f"{i}.png", f"q{i}", {"label": "yes"}) for i in range(count)]


def lines_of(path):
    return [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]


def test_one_line_per_sample_in_order(tmp_path):
    out = run(samples(), Echo(), RunFolder(tmp_path, SETTINGS), batch_size=3)
    assert [line["sample_id"] for line in out] == [f"s{i}" for i in range(7)]
    assert lines_of(tmp_path) == out
    assert out[0]["raw_text"] == f"q0/{sample_seed(0, 's0')}"
    assert out[0]["label"] == "yes"
    assert {"prompt", "n_new_tokens", "finish_reason", "latency_s", "image", "question"} <= set(out[0])


def test_answers_do_not_depend_on_batch_size_or_order(tmp_path):
    first = run(samples(), Echo(), RunFolder(tmp_path / "a", SETTINGS), batch_size=1)
    second = run(samples()[::-1], Echo(), RunFolder(tmp_path / "b", SETTINGS), batch_size=4)
    assert [line["raw_text"] for line in first] == [line["raw_text"] for line in second[::-1]]
    third = run(samples(), Echo(), RunFolder(tmp_path / "c", SETTINGS), seed=1)
    assert all(a["raw_text"] != b["raw_text"] for a, b in zip(first, third))


def test_identical_questions_are_asked_once(tmp_path):
    image = Image.new("RGB", (4, 4))
    twins = [
        Sample(f"{split}:1", image, "x.png", "q", {"category": split}) for split in ("random", "popular")
    ]
    answerer = Echo()
    out = run(twins, answerer, RunFolder(tmp_path / "a", SETTINGS))
    assert answerer.calls == [["q"]]
    assert out[0]["raw_text"] == out[1]["raw_text"]
    assert ("same_as" in out[0], out[1]["same_as"], out[1]["category"]) == (False, "random:1", "popular")
    answerer = Echo()
    out = run(twins, answerer, RunFolder(tmp_path / "b", SETTINGS), share_identical=False)
    assert answerer.calls == [["q", "q"]]
    assert out[0]["raw_text"] != out[1]["raw_text"]


def test_ctrl_c_keeps_what_is_done_and_resuming_asks_only_the_rest(tmp_path):
    with pytest.raises(RunInterrupted, match=r"4 of 7 samples answered .* to go on"):
        run(samples(), Echo(stop_after=2), RunFolder(tmp_path, SETTINGS), batch_size=2)
    assert len(lines_of(tmp_path)) == 4
    rest = Echo()
    out = run(samples(), rest, RunFolder(tmp_path, SETTINGS), batch_size=2)
    assert rest.calls == [["q4", "q5"], ["q6"]]
    assert out == run(samples(), Echo(stop_after=0), RunFolder(tmp_path, SETTINGS), batch_size=2)
    fresh = run(samples(), Echo(), RunFolder(tmp_path.parent / "fresh", SETTINGS), batch_size=2)
    assert [line["raw_text"] for line in out] == [line["raw_text"] for line in fresh]


def test_resuming_copies_answers_to_twins(tmp_path):
    image = Image.new("RGB", (4, 4))
    twins = [Sample(f"{split}:1", image, "x.png", "q") for split in ("random", "popular")]
    run(twins[:1], Echo(), RunFolder(tmp_path, SETTINGS))
    out = run(twins, Echo(stop_after=0), RunFolder(tmp_path, SETTINGS))
    assert (out[1]["raw_text"], out[1]["same_as"]) == (out[0]["raw_text"], "random:1")


@pytest.mark.parametrize(
    "torn", ['{"sample_id": "s3", "raw_te', '{"sample_id": "s3", "raw_text": "x"}', "\x00\x00"]
)
def test_a_torn_last_line_is_asked_again(tmp_path, torn):
    run(samples(3), Echo(), RunFolder(tmp_path, SETTINGS))
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(torn)
    answerer = Echo()
    out = run(samples(4), answerer, RunFolder(tmp_path, SETTINGS))
    assert answerer.calls == [["q0", "q1", "q2", "q3"]]  # the batch as an uninterrupted run asks it
    assert lines_of(tmp_path) == out


def test_other_settings_are_refused_and_nothing_changes(tmp_path):
    run(samples(3), Echo(), RunFolder(tmp_path, SETTINGS))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LvlmAttnError, match='intervention was "none", now "var"'):
        RunFolder(tmp_path, {**SETTINGS, "intervention": "var"})
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_setting_that_is_gone_or_new_is_refused(tmp_path):
    run(samples(3), Echo(), RunFolder(tmp_path, SETTINGS))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LvlmAttnError, match='intervention was "none", now null'):
        RunFolder(tmp_path, {"model": "none"})
    with pytest.raises(LvlmAttnError, match="limit was null, now 3"):
        RunFolder(tmp_path, {**SETTINGS, "limit": 3})
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_samples_without_config_are_refused(tmp_path):
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(LvlmAttnError, match=r"no config\.json"):
        RunFolder(tmp_path, SETTINGS)


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    run(samples(2), Echo(), RunFolder(tmp_path, SETTINGS))
    text = (tmp_path / "samples.jsonl").read_text().splitlines()
    (tmp_path / "samples.jsonl").write_text("\n".join([text[0], "{broken", text[1]]) + "\n")
    with pytest.raises(LvlmAttnError, match=r"samples\.jsonl, line 2: not valid JSON"):
        RunFolder(tmp_path, SETTINGS)


def test_a_corrupt_image_fails_alone_and_is_retried(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        Image.new("RGB", (64, 64), (i, 9, 9)).save(images / f"{i}.png")
    whole = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(whole[: len(whole) // 2])
    (images / "2.png").write_text("this is no picture")
    (images / "3.png").unlink()
    asked = [Sample(f"s{i}", images / f"{i}.png", f"{i}.png", f"q{i}") for i in range(4)]
    out = run(asked, Echo(), RunFolder(tmp_path / "run", SETTINGS))
    assert Counter("error" in line for line in out) == {True: 3, False: 1}
    assert "1.png cannot be read" in out[1]["error"]
    assert "2.png cannot be read: it is no picture" in out[2]["error"]
    assert "3.png does not exist" in out[3]["error"]
    (images / "1.png").write_bytes(whole)
    answerer = Echo()
    out = run(asked, answerer, RunFolder(tmp_path / "run", SETTINGS))
    assert answerer.calls == [["q1"]]
    assert [bool(line.get("error")) for line in out] == [False, False, True, True]


@pytest.mark.skipif(
    not features.check("avif") or not hasattr(os, "mkfifo"), reason="needs AVIF and named pipes"
)
def test_a_damaged_avif_or_a_pipe_is_one_failed_sample(tmp_path):
    """AVIF's decoder raises RuntimeError, which once ended the run; a pipe that nobody writes never ended."""
    whole = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(whole, "AVIF")
    head, mark, payload = whole.getvalue().partition(b"mdat")
    (tmp_path / "0.png").write_bytes(head + mark + bytes(len(payload)))
    os.mkfifo(tmp_path / "1.png")
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "2.png")
    asked = [Sample(f"s{i}", tmp_path / f"{i}.png", f"{i}.png", f"q{i}") for i in range(3)]
    out = run(asked, Echo(), RunFolder(tmp_path / "run", SETTINGS))
    assert "0.png cannot be read" in out[0]["error"]
    assert "1.png is no regular file" in out[1]["error"]
    assert out[2]["raw_text"].startswith("q2/")


def test_bad_calls(tmp_path):
    with pytest.raises(LvlmAttnError, match="batch size is 0"):
        run(samples(), Echo(), RunFolder(tmp_path, SETTINGS), batch_size=0)
    with pytest.raises(LvlmAttnError, match="share one sample_id"):
        run(samples(2) + samples(1), Echo(), RunFolder(tmp_path, SETTINGS))
    (tmp_path / "file").write_text("")
    with pytest.raises(LvlmAttnError, match="is a file"):
        check_writable(tmp_path / "file")
    with pytest.raises(LvlmAttnError, match="cannot be written"):
        check_writable(tmp_path / "file" / "below")


def test_metrics_are_replaced_whole(tmp_path):
    folder = RunFolder(tmp_path, SETTINGS)
    folder.write_metrics({"accuracy": 0.5})
    folder.write_metrics({"accuracy": 0.75})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"accuracy": 0.75}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json", "metrics.json"]
