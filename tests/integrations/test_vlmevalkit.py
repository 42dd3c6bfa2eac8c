"""VLMEvalKit's side stood in for: a table of callables that make models, which are asked by `generate(message)`."""

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.integrations.vlmevalkit import NAMES, register
from tests.evals.conftest import untrained  # noqa: F401


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    from lvlm_attn.toy import scenes

    path = tmp_path_factory.mktemp("scenes") / "scene.png"
    picture = scenes("dev", 1)[0].image
    picture.save(path)
    return path, picture


def ask(model, message, dataset="POPE"):
    """What that tool does with a model: sets how pictures are dumped, builds a prompt or takes its own, generates."""
    model.set_dump_image(lambda line: None)
    assert not model.use_custom_prompt(dataset)
    assert model.INTERLEAVE
    assert not model.is_api
    return model.generate(message=message, dataset=dataset)


def test_registered_models_answer_as_lvlm_generate_does(scene, untrained):  # noqa: F811
    import lvlm_attn as la

    path, picture = scene
    table = {"other": object()}
    wanted = {
        "bare": {"pretrained": str(untrained), "device": "cpu", "max_new_tokens": 6},
        "vhr": {
            "pretrained": str(untrained),
            "device": "cpu",
            "max_new_tokens": 6,
            "intervene": "vhr:alpha=9.0",
        },
    }
    assert register(table, wanted) == ["bare", "vhr"]
    assert set(table) == {"other", "bare", "vhr"}
    question = "Is there a dog in the image?"
    message = [{"type": "image", "value": str(path)}, {"type": "text", "value": question}]
    model, processor = la.load(untrained, device="cpu")
    for name, methods in (("bare", ()), ("vhr", la.parse("vhr:alpha=9.0"))):
        said = ask(table[name](), message)
        with la.wrap(model, *methods, processor=processor) as lvlm:
            (expected,) = lvlm.generate(images=[picture], prompts=[question], max_new_tokens=6)
        assert said.strip() == expected, name
    assert ask(table["bare"](), [str(path), question]) == ask(table["bare"](), message)


def test_nothing_is_put_in_where_something_is_wrong():
    table = {"taken": None}
    with pytest.raises(LvlmAttnError, match="'taken' already"):
        register(table, {"new": {}, "taken": {}})
    with pytest.raises(LvlmAttnError, match="Did you mean 'var'"):
        register(table, {"new": {"intervene": "varr"}})
    assert table == {"taken": None}
    assert register({}) == list(NAMES)


def test_videos_are_refused(scene, untrained):  # noqa: F811
    table = {}
    register(table, {"bare": {"pretrained": str(untrained), "device": "cpu"}})
    with pytest.raises(LvlmAttnError, match="a message of MVBench holds 'video'"):
        ask(
            table["bare"](),
            [{"type": "video", "value": "a.mp4"}, {"type": "text", "value": "What?"}],
            "MVBench",
        )
