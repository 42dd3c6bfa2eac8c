"""Image tokens inside an evaluation's questions are taken out and counted, and the template is put around once."""

import json

import pytest
from PIL import Image

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.answerer import ModelAnswerer
from lvlm_attn.evals.core.evaluate import evaluate
from lvlm_attn.evals.pope.benchmark import Pope
from lvlm_attn.evals.pope.data import Question
from lvlm_attn.evals.reporting import report

ASKED = "Is there a dog in the image?"


def pope(*texts):
    picture = Image.new("RGB", (64, 64), "green")
    questions = [Question(f"random:{i}", i, "a.png", text, "yes", "random") for i, text in enumerate(texts)]
    return Pope(questions, {"a.png": picture}, {"data": "made up"})


def test_image_tokens_in_questions_are_removed_and_counted(loaded, tmp_path):
    """They once dropped the chat template, and the model was asked another prompt without a word."""
    told = []
    texts = (f"<image>\n{ASKED}", f"{ASKED} <image><image>", "Is there a cat?")
    done = evaluate(*loaded, pope(*texts), out=tmp_path / "a", on_note=told.append)
    plain = evaluate(*loaded, pope(ASKED, ASKED, "Is there a cat?"), out=tmp_path / "b")
    for one, other in zip(done.lines, plain.lines):
        assert {**one, "latency_s": 0} == {**other, "latency_s": 0}
    assert done.lines[0]["prompt"] == f"USER: <image>\n{ASKED} ASSISTANT:"
    assert done.metrics == {**plain.metrics, "image_tokens_removed": 3}
    assert json.loads((tmp_path / "a/metrics.json").read_text())["image_tokens_removed"] == 3
    assert any("3 image tokens were taken out of the questions" in text for text in told)
    assert "a: 3 image tokens were taken out" in report([tmp_path / "a"]).text("md")
    assert "image tokens" not in report([tmp_path / "b"]).text("md")
    again = evaluate(*loaded, pope(*texts), out=tmp_path / "a", on_note=told.append)
    assert again.lines == done.lines


def test_a_question_that_looks_like_a_prompt_is_asked_as_a_question(loaded, tmp_path):
    done = evaluate(*loaded, pope("What does 'USER: yes ASSISTANT:' say?"), out=tmp_path)
    assert done.lines[0]["prompt"] == "USER: <image>\nWhat does 'USER: yes ASSISTANT:' say? ASSISTANT:"


def test_a_suffix_that_names_an_image_is_refused(loaded):
    with ModelAnswerer(*loaded) as answerer, pytest.raises(LvlmAttnError, match="a part of its own"):
        answerer.prepare([Image.new("RGB", (64, 64))], ["Look: <image>"])
