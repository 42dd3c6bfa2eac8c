import pytest
import torch

import lvlm_attn as la
from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.evals.core.answerer import Decoding, ModelAnswerer
from lvlm_attn.evals.core.environment import fingerprint
from lvlm_attn.evals.core.evaluate import evaluate
from lvlm_attn.evals.core.first_token import Choices, FirstToken, choices_of
from lvlm_attn.evals.core.sampling import SeededSampler
from lvlm_attn.toy import scenes
from lvlm_attn.toy.benchmarks import toy_chair, toy_pope

PROMPTS = ["Is there a dog in the image?", "Please describe this image in detail.", "Describe this image."]


@pytest.fixture(scope="module")
def images():
    return [scene.image for scene in scenes("dev", 3)]


def test_sampler_draws_from_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    sampler = SeededSampler([7], temperature=0.5)
    draws = torch.stack([sampler(torch.zeros(1, 1), logits[None]).argmax(-1)[0] for _ in range(8000)])
    shares = torch.bincount(draws, minlength=4) / 8000
    expected = torch.softmax(logits / 0.5, -1)
    assert torch.allclose(shares, expected, atol=4 * (0.25 / 8000) ** 0.5)


def test_sampler_refuses_another_number_of_rows():
    with pytest.raises(UnsupportedError, match="2 rows for 1 seeds"):
        SeededSampler([0])(torch.zeros(2, 1), torch.zeros(2, 4))


@pytest.mark.parametrize("decode", ["greedy", "sample"])
@pytest.mark.parametrize("text", ["none", "var+vhr"])
def test_batch_rows_equal_the_same_prompts_alone(loaded, images, decode, text):
    decoding = Decoding(decode, max_new_tokens=6)
    with ModelAnswerer(*loaded, la.parse(text), decoding) as answerer:
        together = answerer.answer(images, PROMPTS, [11, 12, 13])
        alone = [
            answerer.answer([image], [prompt], [seed])[0]
            for image, prompt, seed in zip(images, PROMPTS, (11, 12, 13))
        ]
    assert together == alone
    assert all(answer.n_new_tokens <= 6 for answer in together)


def test_seeds_change_samples(loaded, images):
    with ModelAnswerer(*loaded, decoding=Decoding("sample", max_new_tokens=6)) as answerer:
        texts = {answerer.answer(images[:1], PROMPTS[:1], [seed])[0].raw_text for seed in range(5)}
    assert len(texts) == 5


def test_greedy_answers_equal_a_plain_generate(loaded, images):
    model, processor = loaded
    with ModelAnswerer(model, processor, decoding=Decoding(max_new_tokens=6)) as answerer:
        (answer,) = answerer.answer(images[:1], PROMPTS[:1], [0])
    inputs = processor(images=images[:1], text=[answer.prompt], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answer.raw_text == processor.tokenizer.decode(output, skip_special_tokens=True)
    assert answer.n_prompt_tokens == inputs["input_ids"].shape[1]


def test_first_token_mass_is_that_of_a_plain_forward(loaded, images):
    model, processor = loaded
    with ModelAnswerer(model, processor, decoding=Decoding(max_new_tokens=2), asks_yes_no=True) as answerer:
        answers = answerer.answer(images, PROMPTS, [0, 0, 0])
    ids = choices_of(processor.tokenizer, ("yes", "no")).ids
    assert ids["yes"]
    assert ids["no"]
    for image, answer in zip(images, answers):
        inputs = processor(images=[image], text=[answer.prompt], return_tensors="pt")
        with torch.no_grad():
            mass = model(**inputs).logits[0, -1].softmax(-1)
        for word, tokens in ids.items():
            assert answer.first_token[word] == pytest.approx(float(mass[tokens].sum()), abs=2e-6)


def test_words_without_a_token_of_their_own_are_left_out():
    assert FirstToken(Choices({"yes": [1], "no": []})).of_row(0) is None


def test_suffix_goes_into_the_prompt(loaded, images):
    with ModelAnswerer(
        *loaded, decoding=Decoding(max_new_tokens=1, suffix=" Answer with one word.")
    ) as answerer:
        (answer,) = answerer.answer(images[:1], PROMPTS[:1], [0])
        assert answerer.describe()["suffix"] == " Answer with one word."
    assert "in the image? Answer with one word." in answer.prompt


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"decode": "gredy"}, "Did you mean 'greedy'"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": 0.0}, "above 0"),
    ],
)
def test_impossible_decoding(kwargs, message):
    with pytest.raises(LvlmAttnError, match=message):
        Decoding(**kwargs)


def test_the_model_is_left_as_it_was(loaded, images):
    model, processor = loaded
    before = model.generation_config.to_dict()
    with ModelAnswerer(model, processor, la.parse("var"), Decoding("sample", 2)) as answerer:
        answerer.answer(images[:1], PROMPTS[:1], [0])
    assert model.generation_config.to_dict() == before


def test_pope_on_the_toy_writes_a_run_and_resumes(loaded, tmp_path):
    benchmark = toy_pope("dev", 8, limit=4)
    done = evaluate(*loaded, benchmark, la.parse("vhr"), out=tmp_path, batch_size=4)
    assert done.metrics["n"] == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "config.json",
        "env.json",
        "metrics.json",
        "report.json",
        "samples.jsonl",
    ]
    assert (
        sum("same_as" in line for line in done.lines) >= 4
    )  # the yes questions of three splits are the same
    again = evaluate(*loaded, benchmark, la.parse("vhr"), out=tmp_path, batch_size=4)
    assert again.lines == done.lines
    with pytest.raises(LvlmAttnError, match="interventions"):
        evaluate(*loaded, benchmark, la.parse("var"), out=tmp_path, batch_size=4)


def test_sampled_runs_do_not_depend_on_batch_size(loaded, tmp_path):
    benchmark = toy_chair("dev", 5)
    decoding = Decoding("sample", 5)
    runs = [
        evaluate(*loaded, benchmark, decoding=decoding, out=tmp_path / str(size), batch_size=size, seed=3)
        for size in (1, 3)
    ]
    assert [line["raw_text"] for line in runs[0].lines] == [line["raw_text"] for line in runs[1].lines]
    assert runs[0].metrics["truncated"] > 0


def test_toy_names_are_all_in_the_vocabulary():
    from lvlm_attn.evals.chair.vocab import nodes_of
    from lvlm_attn.toy import vocabulary

    assert nodes_of(vocabulary())[1] == []


def test_fingerprint_sees_other_weights(loaded):
    model, _ = loaded
    before = fingerprint(model)
    with torch.no_grad():
        weight = next(model.parameters())
        kept = weight.view(-1)[0].clone()
        weight.view(-1)[0] += 1
        changed = fingerprint(model)
        weight.view(-1)[0] = kept
    assert changed != before
    assert fingerprint(model) == before
