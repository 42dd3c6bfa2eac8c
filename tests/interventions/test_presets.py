"""Published settings by name: they fill what is left out, and nothing else."""

import copy
import dataclasses
import pickle

import pytest

import lvlm_attn as la
from lvlm_attn.hooks.frozen_visual import default_layers
from lvlm_attn.interventions.base import parameters
from lvlm_attn.interventions.presets import HasPresets
from lvlm_attn.measures.sinks import KNOWN

NAMED = [
    (kind, name) for kind in la.methods().values() if issubclass(kind, HasPresets) for name in kind.presets
]
named = pytest.mark.parametrize(("kind", "name"), NAMED, ids=lambda one: getattr(one, "__name__", one))


def test_a_preset_does_not_beat_what_is_written():
    assert la.VAR(preset="general").rho == 0.8
    assert la.VAR(rho=0.5, preset="general").rho == 0.5
    assert la.VAR(0.5, preset="general").rho == 0.5
    assert la.parse("var:rho=0.5,preset=general")[0].rho == 0.5
    assert la.parse("var:preset=general,rho=0.5") == (la.VAR(rho=0.5, removed_fraction=0.6),)


@named
def test_every_setting_of_every_preset_yields_to_its_written_default(kind, name):
    defaults = {item.name: item.default for item in parameters(kind)}
    for key in kind.presets[name].settings:
        made = kind(**{key: defaults[key], "preset": name})
        assert getattr(made, key) == getattr(kind(), key)


@named
def test_presets_are_taken_written_and_read_back(kind, name):
    made = kind(preset=name)
    assert {key: getattr(made, key) for key in kind.presets[name].settings} == {
        key: getattr(kind(**{key: value}), key) for key, value in kind.presets[name].settings.items()
    }
    assert la.parse(str(made)) == (made,)
    assert la.parse(f"{kind.name}:preset={name}") == (made,)
    assert dataclasses.replace(made) == made
    assert copy.deepcopy(made) == made == pickle.loads(pickle.dumps(made))
    assert kind.presets[name].source


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in NAMED}, key=lambda kind: kind.name))
def test_auto_is_the_default_and_unknown_names_suggest_one(kind):
    assert kind() == kind(preset="auto") == kind(preset=None)
    assert str(kind(preset="auto")) == kind.name
    for bad in ("papr", "", 5, ["paper"]):
        with pytest.raises(la.LvlmAttnError, match="preset"):
            kind(preset=bad)


def test_published_settings():
    """Numbers as their sources give them, typed in here once more."""
    carve = la.CARVE(preset="code")
    assert (carve.p, carve.K, carve.regions, carve.mode) == (0.2, 3, "released", "all")
    assert (carve.images, carve.suffix_on_general, carve.suffix_on_question) == (
        "original_plus_refined",
        True,
        True,
    )
    assert carve.layers == (20, 21, 22, 23, 24, 25)
    assert (la.PAINT(preset="code").beta, la.PAINT(preset="paper").beta) == (0.3, 0.4)
    assert (la.VCD(preset="pope").beta, la.VCD(preset="code").beta) == (0.2, 0.1)
    assert (la.PAI(preset="readme").gamma, la.PAI(preset="script").gamma) == (1.1, 2.0)
    assert la.DoLa(preset="code") == la.DoLa(divergence="code", final_norm=False)
    assert la.DoLa(preset="truthfulqa").layers == "high"
    assert la.AGLA(preset="code") == la.AGLA(local_steps="first", squash_384=True)
    assert (la.VHR(preset="paper").vhd_power, la.VHR(preset="paper").std_guard) == (1, False)
    assert la.MMA(preset="code").mode == "reference"
    assert la.VisualSelf(preset="paper").mode == "self"
    assert (la.Power(preset="paper").block, la.Power(preset="paper").window) == (256, 5)


def test_shortv_lists_for_all_four_models():
    next_13b = "39,32,29,36,27,30,37,23,25,31,26,2,28,22,33,35,34,24,38,21,20,18,1,17"
    assert default_layers("llava_next", 40) == tuple(sorted(map(int, next_13b.split(","))))
    assert la.FrozenVisual(preset="llava-next-13b").layers == default_layers("llava_next", 40)
    assert la.FrozenVisual(preset="llava-1.5-7b").layers == default_layers("llava", 32)
    assert [one.model for one in la.FrozenVisual.by_model][-1] == "LLaVA-NeXT-13B"


def test_known_sink_dimensions_say_who_gives_them():
    assert all(known.source and known.model for known in KNOWN)
    assert tuple(la.VAR.by_model) == KNOWN
    assert la.VHR(layers=la.VHR.by_model[0].settings["layers"]).layers == (1, *range(18, 32))
