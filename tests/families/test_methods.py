"""Every method in every family, against float64 weights made pair by pair, or refused by name and reason.

A batch of unequal rows, padded left and right, read whole and decoded. The eight families of `tests.tiny.NAMES` go
through the same methods in `tests/hooks` in many more settings; here all families do, each method once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import lvlm_attn as la
from lvlm_attn.families import ImageInputs, models, prompt_layout
from tests.families import rules
from tests.families.oracle import Case, Edit, cases, decoder_of, plain, walk
from tests.oracle import VarRule, VhrRule
from tests.oracle_setup import DIM, LAYERS, TAU, generate, relative_error, sink_model
from tests.tiny import ALL_NAMES, NAMES, tiny_inputs, tiny_rows
from tests.versions import skip_faults

HYBRID = ("qwen3_5", "lfm2_vl")
BATCH = [(1,), (0,), (2,)]
TOKENS = 3
NEW = tuple(name for name in ALL_NAMES if name not in NAMES)
ALL = tuple(range(LAYERS))
VAR = VarRule(layers=(1, 3), sink_dims=(DIM,), tau=TAU, rho=0.1, mass_floor=0.05)
VHR = VhrRule(layers=(1, 3, 4))


@dataclass(frozen=True)
class Truth:
    """A method and what its oracle does with a row.

    Attributes:
        method: makes the method.
        edit: makes the weights.
        options: further arguments of `walk` for a row.
    """

    method: Callable[[], Any]
    edit: Callable[[Case], Edit] = lambda case: plain
    options: Callable[[Case], dict[str, Any]] = lambda case: {}


def on(keep: Any = None, opened: Any = None, layers: Sequence[int] = ALL, strength: float = 1) -> Any:
    return lambda case: rules.masked(case, layers, keep, opened, strength)


def on_own(make: Any, *options: Any) -> Any:
    """As `on`, with a rule that remembers its row."""
    return lambda case: rules.masked(case, ALL, make(*options))


METHODS = {
    "var": Truth(
        lambda: la.VAR(
            layers=VAR.layers, sink_dims=(DIM,), tau=TAU, rho=0.1, mass_floor=0.05, removed_fraction=0.4
        ),
        lambda case: rules.var(case, VAR),
    ),
    "vhr": Truth(
        lambda: la.VHR(layers=VHR.layers), options=lambda case: {"scale": rules.vhr(prompt_of(case), VHR)}
    ),
    "pai": Truth(
        lambda: la.PAI(alpha=0.5, gamma=1, layers=(1, 3)), lambda case: rules.louder(case, (1, 3), 0.5)
    ),
    "mma": Truth(la.MMA, on(opened=rules.question)),
    "mma, weaker": Truth(
        lambda: la.MMA(strength=0.5, layers=(1, 3)), on(opened=rules.question, layers=(1, 3), strength=0.5)
    ),
    "visual_self": Truth(la.VisualSelf, on(rules.self_prefix)),
    "visual_self, alone": Truth(lambda: la.VisualSelf("self"), on(rules.only_self)),
    "hollow": Truth(lambda: la.Hollow(window=3), on(rules.near(3))),
    "neighborhood": Truth(lambda: la.Neighborhood(k=3), on_own(rules.around, 1)),
    "delayed": Truth(lambda: la.Delayed(start=2), on(rules.blind, layers=(0, 1))),
    "power": Truth(lambda: la.Power(block=2, window=1), on(rules.power_of_two(2, 1))),
    "frozen_visual": Truth(lambda: la.FrozenVisual(layers=(1, 2)), options=lambda case: {"frozen": (1, 2)}),
    "cmai": Truth(
        lambda: la.CMAI(layer=1, quantile=0.6, keep_min=2), lambda case: rules.inhibited(case, 1, 0.6, 2)
    ),
}


REFUSED = {
    ("paligemma", "mma"): "MMA.*PaliGemma the whole prompt attends to itself already",
    ("gemma4", "neighborhood"): "Neighborhood needs rows and columns, and those of Gemma 4",
    ("lfm2_vl", "neighborhood"): "Neighborhood needs rows and columns, and those of LFM2-VL",
    ("paligemma", "mma, weaker"): "MMA.*PaliGemma the whole prompt attends to itself already",
}


def prompt_of(case: Case) -> Case:
    """The row up to the end of its prompt."""
    if len(case) == case.prompt:
        return case
    return next(one for one in cases(case.name, BATCH) if one.ids == case.ids[: case.prompt])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NEW)
def test_logits_equal_the_definition(name: str, method: str) -> None:
    if name in ("llava_next_video", "granite4_vision") and method == "neighborhood":
        pytest.skip("its grids are LLaVA-NeXT's, whose neighborhoods tests/hooks holds")
    model, truth = sink_model(name), METHODS[method]
    if (name, method) in REFUSED:
        with pytest.raises(la.UnsupportedError, match=REFUSED[name, method]), la.wrap(model, truth.method()):
            pass
        return
    left, right = (tiny_inputs(name, model, BATCH, side) for side in ("left", "right"))
    with torch.no_grad(), la.wrap(model, truth.method()) as lvlm:
        got = {"left": model(**left).logits, "right": model(**right).logits}
        tokens, steps = generate(model, left, TOKENS)
        report = str(lvlm.report())
    assert "nothing yet" not in report
    changed = 0.0
    for index, case in enumerate(cases(name, BATCH)):
        whole = case.with_tokens(tokens[index])
        want = walk(whole, truth.edit(whole), **truth.options(whole)).logits
        length = len(case)
        error = max(
            relative_error(got["left"][index, -length:], want[:length]),
            relative_error(got["right"][index, :length], want[:length]),
            relative_error(steps[index], want[length - 1 : length - 1 + TOKENS]),
        )
        plain = walk(whole).logits
        if (
            error >= 3e-5
        ):  # no method comes nearer than the bare model to its own definition (Qwen 3.5 on some processors)
            with torch.no_grad():
                bare = relative_error(model(**left).logits[index, -length:], plain[:length])
            assert 3e-5 <= error < 1.5 * bare, index
        changed = max(changed, relative_error(want, plain))
    assert changed > 1e-4  # so the equality can fail


@pytest.mark.parametrize("name", NEW)
def test_pooled_images_leave_text_as_it_was_while_patches_are_within_reach(name: str) -> None:
    """`CrossLMM()` attends to every patch beside the pooled tokens, so text attends exactly as it does without it."""
    model = sink_model(name)
    reason = {
        "bidirectional_prompt": "CrossLMM: in PaliGemma text before an image",
        "bidirectional_vision": "CrossLMM: in Molmo 2 the markers before an image attend to its patches",
    }.get(models()[name].mask_of(model.config))
    if not models()[name].has_grid:
        reason = "CrossLMM pools cells of rows and columns"
    if models()[name].late_features:
        reason = "CrossLMM: Granite 4 Vision adds image features in several layers"
    if models()[name].mask_of(model.config) == "chunked":
        reason = "CrossLMM: Llama 4 attends within chunks"
    if name in HYBRID:
        reason = "CrossLMM hides image tokens in every layer, and layers"
    if reason is not None:
        with pytest.raises(la.UnsupportedError, match=reason), la.wrap(model, la.CrossLMM()):
            pass
        return
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare = model(**inputs).logits
        _, steps = generate(model, inputs, TOKENS)
        with la.wrap(model, la.CrossLMM(grid=(2, 2))):
            got = model(**inputs).logits
            _, pooled = generate(model, inputs, TOKENS)
        with la.wrap(model, la.CrossLMM.reuse(grid=(2, 2), w=0)):
            alone = model(**inputs).logits
    for index, case in enumerate(cases(name, BATCH)):
        text = torch.tensor([image is None for image in case.image])
        mine, its, without = (x[index, -len(case) :][text] for x in (got, bare, alone))
        assert relative_error(mine, its.double()) < 3e-5
        assert relative_error(pooled[index], steps[index].double()) < 3e-5
        assert index == 1 or relative_error(without, its.double()) > 1e-3  # so the equality can fail


@pytest.mark.parametrize("name", NEW)
def test_dola_contrasts_with_what_a_lower_layer_predicts(name: str) -> None:
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad(), la.wrap(model, la.DoLa(layers=(2,), beta=0.1, final_norm=True)):
        got = model(**inputs).logits
    for index, case in enumerate(cases(name, BATCH)):
        late = walk(case).logits.log_softmax(-1)
        low = walk(case, last=rules.early(2)).logits.log_softmax(-1)
        floor = late.amax(-1, keepdim=True) + torch.tensor(0.1).double().log()
        want = (late - low).masked_fill(late < floor, -torch.inf)
        mine = got[index, -len(case) :].double()
        sure = (late - floor).abs() > 1e-4  # words on the edge of what is plausible may fall on either side
        assert torch.equal(torch.isinf(mine)[sure], torch.isinf(want)[sure])
        both = torch.isfinite(mine) & torch.isfinite(want)
        assert float((mine - want)[both].abs().max() / want[both].abs().max()) < 1e-4


@pytest.mark.parametrize("name", NEW)
def test_neutral_settings_keep_bits(name: str) -> None:
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    never = la.VAR(rho=1.0, mass_floor=1.0, tau=TAU, sink_dims=(DIM,))
    with torch.no_grad():
        bare_ids, bare = generate(model, inputs, TOKENS)
        for items in ([], [la.VAR(removed_fraction=0), la.VHR(alpha=1)], [never]):
            with la.wrap(model, *items):
                ids, got = generate(model, inputs, TOKENS)
            assert torch.equal(ids, bare_ids)
            if name == "gemma4" and never in items:
                # Its last layers process the last token alone, and all tokens where a method has to see them.
                assert relative_error(got, bare.double()) < 1e-5
            else:
                assert torch.equal(got, bare)


@pytest.mark.parametrize("name", [name for name in NEW if not models()[name].encoder])
@pytest.mark.parametrize("method", [la.PAINT, la.VMTC])
def test_methods_that_read_the_image_encoder_are_refused_by_name(name: str, method: Any) -> None:
    title = models()[name].title
    made = method() if method is la.PAINT else method(keep=2, clusters=1)
    reason = rf"{method.__name__}.*{title}"
    with pytest.raises(la.UnsupportedError, match=reason), la.wrap(sink_model(name), made):
        pass


@pytest.mark.parametrize("name", [name for name in NEW if models()[name].encoder and name not in HYBRID])
def test_vmtc_hides_what_it_merged_from_every_token(name: str) -> None:
    """What is merged comes from the method, which `tests/hooks` holds; who attends to it is told apart from it."""
    model = sink_model(name)
    for case in cases(name, BATCH):
        seen: list[Tensor] = []
        if not case.blocks:
            continue
        with torch.no_grad(), la.wrap(model, la.VMTC(keep=150, clusters=40)) as lvlm:
            hook = (
                decoder_of(model)
                .layers[0]
                .register_forward_pre_hook(
                    lambda module, args, kwargs, seen=seen: seen.append(
                        args[0] if args else kwargs["hidden_states"]
                    ),
                    with_kwargs=True,
                )
            )
            got = model(**case.row).logits[0]
            hook.remove()
            [editor] = lvlm._session.editors
            gone = editor.state.memory["gone"][0]
        assert 0 < int(gone.sum()) < sum(case.is_patch(place) for place in range(len(case)))

        def is_left(case: Case, i: int, j: int, gone: Tensor = gone) -> bool:
            return not bool(gone[j])

        want = walk(case, rules.masked(case, ALL, is_left), embeds=seen[0][0].double()).logits
        assert relative_error(got[~gone], want[~gone]) < 3e-5


def test_beams_of_several_pictures_that_transformers_mixes_up_are_refused_for_that() -> None:
    model = sink_model("granite4_vision")
    mixed, repeated = (tiny_inputs("granite4_vision", model, batch) for batch in (BATCH, [(1,), (1,)]))
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 2}
    with torch.no_grad(), la.wrap(model, la.VHR(), no_image="pass"):
        with pytest.raises(la.UnsupportedError, match="beams each other's pictures"):
            model.generate(**mixed, **options, num_beams=2)
        assert len(model.generate(**mixed, **options)) == len(BATCH)
        assert len(model.generate(**repeated, **options, num_beams=2)) == 2
    too_few = {key: value[:1] for key, value in repeated.items()}
    with pytest.raises(la.LvlmAttnError, match="no image is left"):  # not for the beams
        prompt_layout(models()["granite4_vision"], ImageInputs(model.config, repeated["input_ids"], too_few))


WAYS = {
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "two beams": {"num_beams": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NEW)
def test_ways_to_generate_agree_with_single_rows(name: str, way: str) -> None:
    """Without a cache, with a static one and with beams a batch gives what its rows give alone with a growing cache."""
    if way == "two beams" and name in ("llama4", "granite4_vision"):
        pytest.skip(
            "transformers itself does not repeat the features of several pictures for beams as it should"
        )
    skip_faults(name, way)
    model, options = sink_model(name), {"do_sample": False, "max_new_tokens": TOKENS} | WAYS[way]
    inputs = tiny_inputs(name, model, BATCH)
    rows = tiny_rows(name, model, BATCH)
    var = la.VAR(layers=VAR.layers, sink_dims=(DIM,), tau=TAU, rho=0.1, mass_floor=0.05)
    settings = {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), la.wrap(model, var, la.VisualSelf(), no_image="pass"):
        got = model.generate(**inputs, **options, **settings)
        for index, row in enumerate(rows):
            alone = model.generate(
                **row, **options | {"use_cache": True, "cache_implementation": None}, **settings
            )
            assert torch.equal(got.sequences[index, -TOKENS:], alone.sequences[0, -TOKENS:])
            if way != "two beams":
                whole, single = torch.stack(got.logits, 1)[index], torch.stack(alone.logits, 1)[0]
                assert relative_error(whole, single.double()) < 3e-5
