"""What is asked together, what is made ready meanwhile, and what happens when memory does not suffice."""

import threading
import time

import pytest
import torch
from PIL import Image

from lvlm_attn.evals.core import runner
from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.evals.core.plan import batches, left_to_ask
from lvlm_attn.evals.core.run_folder import RunFolder
from lvlm_attn.evals.core.runner import Answer, is_out_of_memory, run
from lvlm_attn.prompts.images import as_image

IMAGE = Image.new("RGB", (4, 4))


def sample(i, prompt=None, image=IMAGE, name=None):
    return Sample(f"s{i}", image, name or f"{i}.png", prompt or f"q{i}")


def names(planned):
    return [[group[0].sample_id for group in batch] for batch in planned]


def test_prompts_of_a_length_are_asked_together():
    listed = [sample(i, "x" * (1 + i % 2 * 50)) for i in range(8)]
    assert names(batches(listed, 4, False)) == [["s0", "s2", "s4", "s6"], ["s1", "s3", "s5", "s7"]]
    assert names(batches(listed, 1, False)) == [[f"s{i}"] for i in range(8)]
    large = [sample(i, image=Image.new("RGB", (4 + i % 2, 4))) for i in range(4)]
    assert names(batches(large, 2, False)) == [["s0", "s2"], ["s1", "s3"]]


def test_questions_about_a_picture_are_asked_together():
    """Pictures whose longest questions are of a length lie side by side, and so do the questions of each."""
    listed = [sample(i, "x" * (1 + i % 4 * 9), name="abc"[i % 3]) for i in range(12)]
    assert names(batches(listed, 4, False)) == [
        ["s0", "s9", "s6", "s3"],
        ["s4", "s1", "s10", "s7"],
        ["s8", "s5", "s2", "s11"],
    ]
    assert names(batches(listed, 1, False)) == [[f"s{i}"] for i in range(12)]


class Opens:
    """A model that notes which pictures it is asked about."""

    def __init__(self):
        self.images = []

    def answer(self, images, prompts, seeds):
        self.images += images
        return [Answer(prompt) for prompt in prompts]


def test_a_picture_is_opened_once_per_batch(tmp_path, monkeypatch):
    IMAGE.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    asked = [sample(i, image=tmp_path / f"{name}.png", name=name) for i, name in enumerate("aaabb")]
    opened, model = [], Opens()
    monkeypatch.setattr(runner, "as_image", lambda path: opened.append(path.name) or as_image(path))
    lines = run(asked, model, RunFolder(tmp_path / "r", {}), batch_size=8)
    assert sorted(opened) == ["a.png", "b.png"]
    assert len(model.images) == 3
    assert len({id(image) for image in model.images}) == 1
    assert ["error" in line for line in lines] == [False] * 3 + [True] * 2


def test_a_run_still_goes_from_front_to_back():
    listed = [sample(i, "x" * (200 - i)) for i in range(200)]
    planned = names(batches(listed, 2, False))
    assert all(abs(int(name[1:]) - 2 * place) <= 64 for place, batch in enumerate(planned) for name in batch)


def test_pictures_that_cannot_be_read_are_planned_all_the_same(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    planned = batches([sample(0, image=tmp_path / "a.png"), sample(1, image=tmp_path / "b.png")], 4, False)
    assert names(planned) == [["s0", "s1"]]


def test_what_is_left():
    planned = batches([sample(i) for i in range(6)], 2, False)
    whole = {f"s{i}" for i in range(6)}
    assert left_to_ask(planned, whole, whole) == []
    assert names(left_to_ask(planned, whole - {"s3"}, whole - {"s3"})) == [["s2", "s3"]]
    assert names(left_to_ask(planned, whole - {"s3"}, whole)) == [["s3"]]


class Small:
    """A model with room for some prompts only."""

    def __init__(self, room, error=None):
        self.room, self.tried = room, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    def answer(self, images, prompts, seeds):
        self.tried.append(len(prompts))
        if len(prompts) > self.room:
            raise self.error
        return [Answer(prompt) for prompt in prompts]


@pytest.mark.parametrize(
    "error",
    [None, RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
     MemoryError(), RuntimeError("MPS backend out of memory (...)")],
)  # fmt: skip
def test_a_batch_that_does_not_fit_is_halved_and_the_run_goes_on(tmp_path, error):
    answerer, notes = Small(3, error), []
    out = run(
        [sample(i) for i in range(20)], answerer, RunFolder(tmp_path, {}), batch_size=8, on_note=notes.append
    )
    assert [line["raw_text"] for line in out] == [f"q{i}" for i in range(20)]
    assert answerer.tried == [8, 4, *[2] * 10]
    assert [note.split("going on with ")[1] for note in notes] == ["4.", "2."]


def test_a_prompt_that_does_not_fit_alone_fails_alone(tmp_path):
    out = run([sample(i) for i in range(3)], Small(0), RunFolder(tmp_path, {}), batch_size=2)
    assert all("does not fit into memory (CUDA out of memory" in line["error"] for line in out)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path):
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run([sample(0)], Small(0, RuntimeError("shape mismatch")), RunFolder(tmp_path, {}))


class Prepared:
    """Takes a moment to make ready and a moment to answer."""

    def __init__(self):
        self.threads = set()

    def prepare(self, images, prompts):
        self.threads.add(threading.current_thread().name)
        time.sleep(0.03)
        return list(prompts)

    def answer_prepared(self, prepared, seeds):
        time.sleep(0.03)
        return [Answer(prompt) for prompt in prepared]


def test_the_next_batch_is_made_ready_while_the_model_answers(tmp_path):
    answerer = Prepared()
    start = time.perf_counter()
    out = run([sample(i) for i in range(20)], answerer, RunFolder(tmp_path, {}), batch_size=1)
    assert time.perf_counter() - start < 20 * 0.06 * 0.85
    assert [line["raw_text"] for line in out] == [f"q{i}" for i in range(20)]
    assert threading.current_thread().name not in answerer.threads


def test_an_error_while_making_ready_is_raised(tmp_path):
    class Broken(Prepared):
        def prepare(self, images, prompts):
            raise ValueError("no such template")

    with pytest.raises(ValueError, match="no such template"):
        run([sample(i) for i in range(5)], Broken(), RunFolder(tmp_path, {}), batch_size=1)
