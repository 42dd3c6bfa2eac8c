"""The worked examples of CONTRIBUTING run as they are printed, and do what they say."""

import copy
import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

import lvlm_attn as la
from lvlm_attn import families
from lvlm_attn.hooks.plugins import load_plugin
from lvlm_attn.interventions.sites import SITES
from tests.families.more_processors import MAKERS
from tests.tiny import IMAGE, tiny_inputs, tiny_model, tiny_rows
from tests.tiny_processors import tokenizer

PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
BATCH = [(1,), (2,)]


def defined(name):
    """What the block that defines a name defines."""
    block = next(block for block in BLOCKS if re.search(rf"^(class )?{name}\b", block, re.MULTILINE))
    names = {"__name__": "contributing"}
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    return names[name]


def logits(model, inputs, *items):
    with torch.no_grad(), la.wrap(model, *items):
        return model(**inputs).logits


def test_the_table_of_sites_names_all_of_them():
    rows = re.findall(r"^\| `(\w+)\(", PAGE[: PAGE.index("### What they return")], re.MULTILINE)
    assert sorted(rows) == sorted(SITES)


def test_scaling_heads():
    kind = defined("Dim")
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    bare = logits(model, inputs)
    assert torch.equal(logits(model, inputs, kind(factor=1)), bare)
    seen = []
    projection = model.model.language_model.layers[1].self_attn.o_proj
    handle = projection.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    dimmed = logits(model, inputs, kind(heads=(1,), factor=0.0, layers=(1,)))
    handle.remove()
    heads = seen[0].view(*seen[0].shape[:2], model.config.text_config.num_attention_heads, -1)
    assert (heads[:, :, 1] == 0).all()
    assert (heads[:, :, 0] != 0).any()
    assert not torch.equal(dimmed, bare)


def test_a_mask():
    kind = defined("NearText")
    model = tiny_model("llava", attn="eager")
    row = tiny_rows("llava", model, [(1, 2, 9)])[0]
    with torch.no_grad(), la.wrap(model, kind(reach=2)):
        weights = model(**row, output_attentions=True).attentions[0][0]
    ids = row["input_ids"][0]
    image = ids == IMAGE
    last = int(image.nonzero().max())
    for query in range(last + 1, len(ids)):
        for key in range(len(ids)):
            may = key <= query and (bool(image[key]) or query - key <= 2)
            assert bool((weights[:, query, key] > 0).all()) == may
    bare = logits(model, row)
    assert torch.equal(logits(model, row, kind(reach=2))[:, : last + 1], bare[:, : last + 1])


def test_a_contrastive_view():
    kind = defined("AgainstDark")
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    options = {
        "max_new_tokens": 3,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    dark = inputs | {"pixel_values": inputs["pixel_values"] * 0.2}
    with torch.no_grad():
        with la.wrap(model, kind()) as lvlm:
            got = lvlm.generate(**inputs, **options).logits[0]
            assert lvlm.report().rows[0][0]["views"] == 1
        main, other = (model(**given).logits[:, -1] for given in (inputs, dark))
    torch.testing.assert_close(got, 1.5 * main - 0.5 * other, rtol=1e-4, atol=1e-5)


def test_a_family_with_a_mask_that_is_not_causal(monkeypatch):
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    family = defined("FAMILY")
    model = copy.deepcopy(tiny_model("gemma3"))
    inputs = tiny_inputs("gemma3", model, BATCH)
    method = la.PAI(alpha=0.5, gamma=1)
    want = logits(model, inputs, method)
    model.config.model_type = model.model.config.model_type = "my_gemma"
    with pytest.raises(la.UnsupportedError, match="my_gemma"), la.wrap(model, method):
        pass
    la.register_family(family)
    assert torch.equal(logits(model, inputs, method), want)
    assert not torch.equal(want, logits(model, inputs))
    causal = dataclasses.replace(family, text_mask="causal")
    monkeypatch.setitem(families._FAMILIES, "my_gemma", causal)
    with pytest.raises(la.UnsupportedError, match="its family says that it is causal"):
        logits(model, inputs, method)


def test_a_folder_of_a_type_that_transformers_does_not_know_loads_with_its_plugin(monkeypatch, tmp_path):
    for table in (CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PROCESSOR_MAPPING):
        monkeypatch.setattr(table, "_extra_content", dict(table._extra_content))
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    folder = tmp_path / "model"
    tiny_model("gemma3").config.save_pretrained(folder)
    MAKERS["gemma3"]().save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "my_gemma"}))
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(
        json.dumps(processor | {"processor_class": "MyGemmaProcessor"})
    )
    with pytest.raises(
        la.LvlmAttnError, match=r"does not know its model type 'my_gemma'.*AutoConfig\.register.*--plugin"
    ):
        la.load(folder, device="cpu")
    file = tmp_path / "my_family.py"
    blocks = [block for block in BLOCKS if re.search(r"^(FAMILY =|AutoConfig\.)", block, re.MULTILINE)]
    assert len(blocks) == 2
    file.write_text("\n".join(blocks))
    load_plugin(file)
    own = transformers.AutoConfig.from_pretrained(folder)
    made = transformers.AutoModelForImageTextToText.from_config(own)
    made.load_state_dict(tiny_model("gemma3").state_dict())
    made.save_pretrained(folder)
    model, found = la.load(folder, device="cpu")
    assert type(model).__name__ == "MyGemma"
    assert type(found).__name__ == "MyGemmaProcessor"
    inputs = tiny_inputs("gemma3", model, BATCH)
    want = logits(tiny_model("gemma3"), inputs, la.PAI(alpha=0.5, gamma=1))
    assert torch.equal(logits(model, inputs, la.PAI(alpha=0.5, gamma=1)), want)


def test_what_is_not_registered_is_named(monkeypatch, tmp_path):
    for table in (CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PROCESSOR_MAPPING):
        monkeypatch.setattr(table, "_extra_content", dict(table._extra_content))
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    la.register_family(dataclasses.replace(families.models()["gemma3"], name="my_gemma"))
    tiny_model("gemma3").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"model_type": "my_gemma"}))
    own = type("MyGemmaConfig", (transformers.Gemma3Config,), {"model_type": "my_gemma"})
    transformers.AutoConfig.register("my_gemma", own)
    with pytest.raises(la.LvlmAttnError, match=r"has no processor for its type.*AutoProcessor\.register"):
        la.load(tmp_path, device="cpu")  # nothing of a processor
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(la.LvlmAttnError, match=r"has no processor for its type.*AutoProcessor\.register"):
        la.load(tmp_path, device="cpu")  # a tokenizer alone
    MAKERS["gemma3"]().save_pretrained(tmp_path)
    with pytest.raises(
        la.LvlmAttnError, match=r"has no model for the config.*ImageTextToText\.register"
    ) as caught:
        la.load(tmp_path, device="cpu")
    assert "AriaConfig" not in str(caught.value)


def test_a_misspelt_site_names_the_nearest():
    with pytest.raises(la.LvlmAttnError, match=r"edit_weight is no site.*'edit_weights'"):

        class Wrong(la.Intervention):
            def edit_weight(self, layer, weights):
                return weights

    with pytest.raises(la.LvlmAttnError, match=r"VAR has no parameter named 'roh'. Did you mean 'rho'"):
        la.VAR(roh=0.5)


def test_a_layer_is_not_compared_with_a_number():
    class Third(la.Intervention):
        def observe(self, layer, hidden):
            if layer == 3:
                raise AssertionError

    model = tiny_model("llava")
    with pytest.raises(TypeError, match=r"layer.index == 3"), la.wrap(model, Third()):
        model(**tiny_inputs("llava", model, BATCH))
