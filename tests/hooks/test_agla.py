"""AGLA against separate float64 recomputes of both views, and its invariants."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lvlm_attn as la
from lvlm_attn.hooks.agla import AGLA, assemble_logits
from lvlm_attn.prompts.request import Request
from lvlm_attn.wrapping import target_of
from tests.fuzzing import sized
from tests.maps.test_reading import fail, state
from tests.tiny import IMAGE, tiny_model
from tests.tiny_processors import NAMES, PICTURES, QUESTIONS, picture, tiny_processor

OPTIONS = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}


@cache
def model_of(name):
    """Shared between tests, which leave it as it was."""
    return tiny_model(name)


@cache
def double(name):
    return tiny_model(name).double()


def left_half(image, prompt):
    """A matcher that finds the left side of every image relevant."""
    rows = np.linspace(1, 0, image.width)[None, :] + 1e-3 * np.arange(image.height)[:, None]
    return rows, 0.9


def run(name, item, rows=(0, 1), images=None, **options):
    images = [PICTURES[row] for row in rows] if images is None else images
    with la.wrap(model_of(name), item, processor=tiny_processor(name)) as lvlm:
        out = lvlm.generate(images=images, prompts=[QUESTIONS[row] for row in rows], **OPTIONS | options)
    length = out.sequences.shape[1] - len(out.logits)
    return out.sequences[:, length:], torch.stack(out.logits, 1), lvlm.details.get("AGLA")


def recompute(name, row, image, tokens):
    """`(steps, vocabulary)` next-token logits in float64, whole prompts without cache or padding."""
    target = target_of(double(name), tiny_processor(name))
    request = Request.of_prompts(target, [image], [QUESTIONS[row]])
    steps = []
    for step in range(len(tokens)):
        ids = torch.cat((request.inputs["input_ids"], tokens[None, :step]), 1)
        inputs = dict(request.inputs) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        with torch.no_grad():
            steps.append(double(name)(**inputs, use_cache=False).logits[0, -1])
    return torch.stack(steps)


def fused(main, local, alpha, beta):
    """The formula word by word: token for token, probabilities instead of logits."""
    out = torch.full_like(main, -torch.inf)
    for step in range(len(main)):
        p = main[step].softmax(-1)
        for token in range(main.shape[1]):
            if p[token] >= beta * p.max():
                out[step, token] = main[step, token] + alpha * local[step, token]
    return out


def same(got, want, tolerance=2e-4):
    finite = torch.isfinite(want)
    if not torch.equal(torch.isfinite(got), finite):
        return False
    return float((got.double() - want)[finite].abs().max()) < tolerance


@pytest.mark.parametrize("matcher", ["self", left_half], ids=["self", "function"])
@pytest.mark.parametrize("name", [*NAMES, "llava_onevision", "internvl"])
def test_logits_equal_two_full_recomputes(name, matcher):
    """Cache correctness: at every step both views equal a forward of their own over the generated prefix."""
    tokens, logits, details = run(name, AGLA(alpha=1.5, beta=0.1, matcher=matcher))
    for row in (0, 1):
        view = details[row][0].image
        assert view.size == PICTURES[row].size
        main, local = (recompute(name, row, image, tokens[row]) for image in (PICTURES[row], view))
        assert same(logits[row], fused(main, local, 1.5, 0.1))
        if matcher is left_half:
            assert not same(logits[row], fused(main, main, 1.5, 0.1))


@pytest.mark.parametrize("name", NAMES)
def test_neutral_setting_keeps_bits(name):
    model = model_of(name)
    inputs = Request.of_prompts(target_of(model, tiny_processor(name)), PICTURES[:2], QUESTIONS[:2]).inputs
    with torch.no_grad():
        bare = model(**inputs).logits
        plain = model.generate(**inputs, **OPTIONS)
        with la.wrap(model, AGLA(alpha=0, beta=0, matcher=left_half)):
            assert torch.equal(model(**inputs).logits, bare)
    tokens, logits, _ = run(name, AGLA(alpha=0, beta=0))
    assert torch.equal(logits, torch.stack(plain.logits, 1))
    assert torch.equal(tokens, plain.sequences[:, -4:])


@pytest.mark.parametrize("name", NAMES)
def test_control_equals_sharpened_baseline(name):
    """With the view unmasked both logits are equal at every step, and greedy tokens are the baseline's."""
    tokens, logits, details = run(name, AGLA(beta=0.2, control=True))
    assert details is None
    model = model_of(name)
    inputs = Request.of_prompts(target_of(model, tiny_processor(name)), PICTURES[:2], QUESTIONS[:2]).inputs
    plain = model.generate(**inputs, **OPTIONS)
    assert torch.equal(tokens, plain.sequences[:, -4:])
    base = torch.stack(plain.logits, 1)
    head = torch.isfinite(logits)
    assert torch.equal(head, base >= base.amax(-1, keepdim=True) + math.log(0.2)) or head.sum() > 0
    assert (logits[head] - 3 * base[head]).abs().max() < 3e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_view_acts_after_the_first_token(name):
    """The fault of the released loop is not repeated, unless asked for: then later views are the image's own."""
    everywhere = AGLA(alpha=1, beta=0, matcher=left_half)
    tokens, logits, details = run(name, everywhere)
    for row in (0, 1):
        main = recompute(name, row, PICTURES[row], tokens[row])
        local = recompute(name, row, details[row][0].image, tokens[row])
        assert (local - main).abs().amax(-1)[1:].max() > 1e-2
        assert not same(logits[row], 2 * main)
    tokens, logits, details = run(name, AGLA(alpha=1, beta=0, matcher=left_half, local_steps="first"))
    for row in (0, 1):
        main = recompute(name, row, PICTURES[row], tokens[row])
        local = recompute(name, row, details[row][0].image, tokens[row])
        assert same(logits[row][1:], 2 * main[1:])
        assert same(logits[row][:1], (main + local)[:1])


@pytest.mark.parametrize("matcher", ["self", left_half], ids=["self", "function"])
@pytest.mark.parametrize("name", NAMES)
def test_batch_rows_equal_single_rows(name, matcher):
    item = AGLA(matcher=matcher, beta=0.05)
    tokens, logits, details = run(name, item, rows=(0, 1, 2))
    for row in (0, 1, 2):
        one, alone, seen = run(name, item, rows=(row,))
        assert torch.equal(tokens[row], one[0])
        assert np.array_equal(seen[0][0].mask, details[row][0].mask)
        assert same(logits[row], alone[0].double(), 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_from_the_prompt_before(name):
    item = AGLA(matcher="self")
    fresh = run(name, item, rows=(1,))
    model, ask = model_of(name), {"prompts": [QUESTIONS[0]], **OPTIONS}
    with la.wrap(model, item, processor=tiny_processor(name)) as lvlm:
        lvlm.generate(images=[PICTURES[2]], **ask)
        out = lvlm.generate(images=[PICTURES[1]], **ask | {"prompts": [QUESTIONS[1]]})
    assert torch.equal(out.sequences[:, -4:], fresh[0])
    assert torch.equal(torch.stack(out.logits, 1), fresh[1])


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_leaves_the_model_as_it_was(name):
    def broken(image, prompt):
        raise RuntimeError("broken matcher")

    model = model_of(name)
    run(name, AGLA(matcher=left_half), rows=(0,))
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = torch.tensor([[5]])
    before = state(model)
    with pytest.raises(RuntimeError, match="broken matcher"):
        run(name, AGLA(matcher=broken))
    assert state(model) == before
    handle = model.model.language_model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken layer"):
        run(name, AGLA(matcher=left_half))
    handle.remove()
    assert state(model) == before
    run(name, AGLA(matcher="self"))
    assert state(model) == before  # rotary offsets of Qwen-VL among it


@sized(80)
@given(st.integers(0, 10**6), st.floats(0, 5), st.floats(0, 1))
def test_the_most_likely_token_always_stays(seed, alpha, beta):
    generator = torch.Generator().manual_seed(seed)
    main, local = (3 * torch.randn(2, 3, 40, generator=generator)).unbind()
    out = assemble_logits(main, local, alpha, beta)
    best = main.argmax(-1, keepdim=True)
    assert torch.isfinite(out.gather(-1, best)).all()
    assert not out.isnan().any()
    assert torch.equal(assemble_logits(main, local, alpha, 1.0).argmax(-1), best[:, 0])
    assert torch.equal(assemble_logits(main, local, 0, 0), main)
    wide = torch.isfinite(assemble_logits(main, local, alpha, beta / 2))
    assert (wide | ~torch.isfinite(out)).all()


def test_blocked_tokens_stay_blocked():
    main = torch.tensor([[1.0, -torch.inf, 0.5]])
    out = assemble_logits(main, torch.tensor([[0.0, 5.0, -torch.inf]]), 2.0, 0.0)
    assert out.tolist() == [[1.0, -torch.inf, -torch.inf]]


def test_masked_view_of_each_similarity():
    """The better the match, the more is masked; a map that says nothing masks nothing."""
    image = picture((40, 30))
    map_ = np.random.default_rng(0).permutation(1200).reshape(30, 40).astype(float)
    shares = []
    for similarity in (-0.3, 0.0, 0.2, 0.6, 1.0):
        view = AGLA(matcher="self")._local(image, map_, similarity)
        shares.append(view.mask.mean())
        count = 1200 * min(1 - similarity / 2, 1 - 1e-5)
        assert view.mask.sum() == min(int(count) + 1, 1200)
        assert np.array_equal(np.asarray(view.image), np.asarray(image) * view.mask[..., None])
    assert shares == sorted(shares, reverse=True)
    assert AGLA()._local(image, np.zeros((4, 4)), 0.9).image is image
    assert AGLA(squash_384=True)._local(image, map_, 0.5).image.size == (384, 384)
    assert AGLA()._local(image.convert("L"), np.eye(5), 0.5).image.size == (40, 30)


@pytest.mark.parametrize("name", NAMES)
def test_several_images_and_none(name):
    images = [[PICTURES[0], PICTURES[2]], None, PICTURES[1]]
    seen = []

    def matcher(image, prompt):
        seen.append((image, prompt))
        return left_half(image, prompt)

    tokens, _, details = run(name, AGLA(matcher=matcher), rows=(0, 1, 2), images=images)
    assert [len(row) for row in details] == [2, 0, 1]
    assert [prompt for _, prompt in seen] == [QUESTIONS[0], QUESTIONS[0], QUESTIONS[2]]
    alone, _, _ = run(name, AGLA(matcher=matcher), rows=(0,), images=images[:1])
    assert torch.equal(tokens[0], alone[0])


def test_the_matcher_sees_the_question_alone():
    seen = []

    def matcher(image, prompt):
        seen.append(prompt)
        return left_half(image, prompt)

    with la.wrap(model_of("llava"), AGLA(matcher=matcher), processor=tiny_processor("llava")) as lvlm:
        for prompt in ("<image> is there a cat ?", "<s> USER: <image> is there a cat ? ASSISTANT:"):
            lvlm.generate(images=[PICTURES[0]], prompts=[prompt], max_new_tokens=1)
    assert seen == ["is there a cat ?", "<s> USER:   is there a cat ? ASSISTANT:"]


def test_with_other_methods_in_one_wrap():
    """VAR and VHR act on both views: the control's greedy answer is theirs alone."""
    name = "llava"
    others = [la.VHR(alpha=3.0, layers=[1, 2]), la.VAR(tau=2.0, sink_dims=(7,))]
    with la.wrap(model_of(name), *others, processor=tiny_processor(name)) as lvlm:
        want = lvlm.generate(images=PICTURES[:2], prompts=QUESTIONS[:2], max_new_tokens=4)
    items = [*others, AGLA(control=True, beta=0.5)]
    with la.wrap(model_of(name), *items, processor=tiny_processor(name)) as lvlm:
        assert lvlm.generate(images=PICTURES[:2], prompts=QUESTIONS[:2], max_new_tokens=4) == want
        assert "AGLA" in str(lvlm.report()) or "agla" in str(lvlm.report())


def one_sentence(error):
    text = str(error)
    return len(text.splitlines()) == 1 and text.endswith((".", "?"))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"alpha": -1}, "alpha=-1 must be a number at least 0"),
        ({"alpha": True}, "alpha"),
        ({"beta": 1.5}, "at most 1"),
        ({"local_steps": "frist"}, "Did you mean 'first'"),
        ({"matcher": "slef"}, "Did you mean 'self'"),
        ({"matcher": None}, "matcher=None"),
        ({"control": 1}, "true or false"),
        ({"layers": "x"}, "layers"),
    ],
)
def test_bad_parameters(bad, says):
    with pytest.raises(la.LvlmAttnError, match=says) as caught:
        with la.wrap(model_of("llava"), AGLA(**{"matcher": "self"} | bad)):
            pass
    assert one_sentence(caught.value)


def test_missing_weights_leave_the_model_alone(tmp_path):
    model = model_of("llava")
    before = state(model)
    for matcher in ("blip", str(tmp_path)):
        with pytest.raises(la.LvlmAttnError, match="matcher='self'") as caught:
            with la.wrap(model, AGLA(matcher=matcher), processor=tiny_processor("llava")):
                pass
        assert one_sentence(caught.value)
    assert state(model) == before


@pytest.mark.parametrize("result", [(np.ones(4), 0.5), (np.ones((2, 2)), 3.0), (np.ones((2, 2)), math.nan)])
def test_a_matcher_of_another_form_is_refused(result):
    with pytest.raises(la.LvlmAttnError, match="matcher gave") as caught:
        run("llava", AGLA(matcher=lambda image, prompt: result))
    assert one_sentence(caught.value)


def test_requests_of_tensors_are_refused():
    model = model_of("llava")
    inputs = Request.of_prompts(target_of(model, tiny_processor("llava")), PICTURES[:1], QUESTIONS[:1]).inputs
    with la.wrap(model, AGLA(matcher="self"), processor=tiny_processor("llava")) as lvlm:
        with pytest.raises(la.LvlmAttnError, match="images="):
            lvlm.generate(**inputs, max_new_tokens=2)
        with pytest.raises(la.LvlmAttnError, match=r"lvlm\.generate"):
            model.generate(**inputs, max_new_tokens=2)


def test_images_may_be_paths_or_bytes(tmp_path):
    PICTURES[0].save(tmp_path / "photo.png")
    want, _, _ = run("llava", AGLA(matcher="self"), rows=(0,))
    got, _, details = run("llava", AGLA(matcher="self"), rows=(0,), images=[str(tmp_path / "photo.png")])
    assert torch.equal(got, want)
    assert details[0][0].image.size == PICTURES[0].size
    as_bytes, _, _ = run("llava", AGLA(matcher="self"), rows=(0,), images=[np.asarray(PICTURES[0])])
    assert torch.equal(as_bytes, want)
    with pytest.raises(la.LvlmAttnError, match="array of float64"):
        run("llava", AGLA(matcher="self"), rows=(0,), images=[np.asarray(PICTURES[0]) / 255])


def test_a_function_shows_in_the_report():
    with la.wrap(model_of("llava"), AGLA(matcher=left_half), processor=tiny_processor("llava")) as lvlm:
        assert "agla (given in code)" in str(lvlm.report())


def test_written_form():
    (item,) = la.parse("agla:alpha=2,matcher=self")
    assert item == AGLA(matcher="self")
    for text in ("agla:alpha=1.0,beta=0.1,local_steps=first,matcher=self", "agla:control=true", "agla"):
        assert str(la.parse(text)[0]) == text
    with pytest.raises(la.LvlmAttnError, match="written form"):
        str(AGLA(matcher=left_half))


def test_blip_in_a_wrap(folder_of_blip):
    with la.wrap(model_of("llava"), AGLA(matcher=folder_of_blip), processor=tiny_processor("llava")) as lvlm:
        lvlm.generate(images=PICTURES[:2], prompts=QUESTIONS[:2], max_new_tokens=2)
        (first,), (second,) = lvlm.details["AGLA"]
    assert first.mask.shape == (14, 20)
    assert second.mask.shape == (30, 12)
    assert -1 <= first.similarity <= 1


@pytest.fixture
def folder_of_blip(tmp_path):
    from tests.maps.matchers.test_blip import save_blip

    return save_blip(tmp_path)
