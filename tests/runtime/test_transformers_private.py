"""What transformers does not promise to keep, one test a name; its message says what to do when it fails."""

import pytest
import torch
from transformers import CompileConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lvlm_attn as la
from lvlm_attn.runtime import transformers_private
from lvlm_attn.runtime.transformers_private import (
    attention_of,
    backend_function,
    generate_variables,
    has_mask,
    is_registered,
    register,
    revision_of,
    set_attention_of,
)
from tests.tiny import NAMES, tiny_inputs, tiny_model

assert la.wrap  # the registries learn our names on import, once per process
PRIVATE = "lvlm_attn/runtime/transformers_private.py"


@pytest.fixture
def name():
    """A name that is free, and free again afterwards."""
    yield "lvlm_attn_test"
    for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        registry._global_mapping.pop("lvlm_attn_test", None)


def text_model(model):
    return model.model.language_model


@pytest.mark.parametrize("family", NAMES)
def test_attention_of(family):
    model = tiny_model(family, attn="eager")
    config = text_model(model).config
    assert attention_of(config) == "eager", (
        f"`_attn_implementation` no longer says which attention a model uses: point attention_of in {PRIVATE} at what "
        f"PreTrainedModel.set_attn_implementation writes now."
    )
    model.set_attn_implementation("sdpa")
    assert attention_of(config) == "sdpa", (
        f"set_attn_implementation writes somewhere else: point attention_of in {PRIVATE} there."
    )


@pytest.mark.parametrize("family", NAMES)
def test_set_attention_of(family):
    model = tiny_model(family)
    set_attention_of(model.config, "eager")
    assert attention_of(model.config) == "eager", (
        f"`_attn_implementation_internal` is not what `_attn_implementation` gives: let set_attention_of in {PRIVATE} "
        f"write what set_attn_implementation writes."
    )
    assert attention_of(text_model(model).config) == "sdpa", (
        f"Writing one configuration changes its sub-configurations, so wraps would change the image encoder: let "
        f"set_attention_of in {PRIVATE} write past the setter."
    )
    set_attention_of(model.config, "lvlm_attn|sdpa")
    assert "lvlm_attn" not in model.config.to_json_string(), (
        f"A saved configuration would name our attention: let set_attention_of in {PRIVATE} write an attribute that "
        f"to_dict leaves out."
    )


@pytest.mark.parametrize("family", NAMES)
def test_register(family, name):
    """A layer asks for the function by name at every call, with the mask of the backend that it stands for."""
    model, seen = tiny_model(family), []

    def attend(module, query, key, value, mask=None, **kwargs):
        seen.append((module, None if mask is None else mask.shape))
        return backend_function("sdpa", module)(module, query, key, value, mask, **kwargs)

    assert not is_registered(name)
    register(name, attend, "sdpa")
    assert is_registered(name)
    inputs = tiny_inputs(family, model, [(1,), (2,)])
    with torch.no_grad():
        bare = model(**inputs).logits
        set_attention_of(text_model(model).config, name)
        got = model(**inputs).logits
    layers = [layer.self_attn for layer in text_model(model).layers]
    assert [module for module, _ in seen] == layers, (
        f"Layers no longer look their attention up by the name in their configuration: find how they choose it, and "
        f"let register in {PRIVATE} put ours there."
    )
    assert all(shape is not None for _, shape in seen), (
        f"A registered name loses its mask: find how masking_utils chooses the mask function of a name, and let "
        f"register in {PRIVATE} write that."
    )
    assert torch.equal(got, bare), "A registered copy of sdpa differs from sdpa: compare the two masks first."


def test_has_mask(name):
    assert all(has_mask(backend) for backend in ("eager", "sdpa", "flash_attention_2", "flex_attention")), (
        f"The mask registry of transformers lacks a stock backend: let has_mask and register in {PRIVATE} look where "
        f"masking_utils keeps mask functions now."
    )
    assert not has_mask(name)
    with pytest.raises(la.UnsupportedError, match="no mask function"):
        register("lvlm_attn_test", print, "of nobody")
    assert not is_registered(name)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("family", NAMES)
def test_backend_function(family, backend):
    """What is found by name gives the bits that the model's own call gives."""
    model, calls = tiny_model(family, attn=backend), []
    layer = text_model(model).layers[0].self_attn
    inputs = tiny_inputs(family, model, [(1,)])

    def keep(module, args):
        calls.append(args[0])

    handle = layer.o_proj.register_forward_pre_hook(keep)
    function = backend_function(backend, layer)
    assert function.__module__.startswith("transformers."), (
        f"{backend} attention of {family} is not found: let backend_function in {PRIVATE} look where the module's "
        f"forward takes it from."
    )

    def ours(module, query, key, value, mask=None, **kwargs):
        return function(module, query, key, value, mask, **kwargs)

    register("lvlm_attn_test_backend", ours, backend)
    try:
        with torch.no_grad():
            model(**inputs)
            set_attention_of(text_model(model).config, "lvlm_attn_test_backend")
            model(**inputs)
    finally:
        handle.remove()
        for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            registry._global_mapping.pop("lvlm_attn_test_backend", None)
    assert torch.equal(*calls), (
        f"{backend} attention of {family} gives other values than the model's own: let backend_function in {PRIVATE} "
        f"take the function that the module's forward takes."
    )


def test_a_module_without_eager_attention_is_refused():
    with pytest.raises(la.UnsupportedError, match="Linear has no eager attention"):
        backend_function("eager", torch.nn.Linear(2, 2))


def look_at_generate(model, inputs, **options):
    """The local variables of `generate` at each forward of the language model, as the package reads them."""
    seen = []

    def look(*_):
        found = [
            (item["self"], item["input_ids"].shape, item["generation_config"].num_beams)
            for item in generate_variables()
        ]
        seen.append(found)

    handle = text_model(model).register_forward_pre_hook(look)
    with torch.no_grad():
        model.generate(**inputs, max_new_tokens=3, do_sample=False, **options)
        count = len(seen)
        model(**inputs)
    handle.remove()
    return seen[:count], seen[-1]


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("family", NAMES)
def test_generate_variables(family, options):
    model = tiny_model(family)
    inputs = tiny_inputs(family, model, [(1,), (0,)])
    rows, length = inputs["input_ids"].shape
    beams = options.get("num_beams", 1)
    steps, plain = look_at_generate(model, inputs, **options)
    assert len(steps) == 3
    for found in steps:
        assert [(owner, tuple(shape)) for owner, shape, _ in found] == [(model, (rows * beams, length))], (
            f"`generate` keeps the prompt elsewhere while it decodes: let generate_variables in {PRIVATE} give what "
            f"generate_frame.py reads (self, input_ids, generation_config) from there."
        )
        assert (found[0][2] or 1) == beams, (
            f"`generate` keeps its settings elsewhere: let generate_variables in {PRIVATE} give them."
        )
    assert plain == [], (
        f"A plain forward looks like generate: let generate_variables in {PRIVATE} tell them apart."
    )


def test_revision_of():
    config = tiny_model("llava").config
    assert revision_of(config) is None
    config._commit_hash = "0123abc"
    assert revision_of(config) == "0123abc", (
        f"A configuration refuses the attribute `_commit_hash`: let revision_of in {PRIVATE} look where transformers "
        f"keeps it, or results files lose the revision."
    )


@pytest.mark.parametrize("name", ["generate", "torch_dynamo_resume_in_generate_at_2431"])
def test_a_compiled_generate_is_refused(name):
    names = {}
    code = f"def {name}(look):\n    return list(look())"
    exec(compile(code, transformers_private._GENERATE.co_filename, "exec"), names)
    with pytest.raises(la.UnsupportedError, match="call generate from outside of what is compiled"):
        names[name](generate_variables)


def test_generate_compiles_without_cuda_graphs_unless_it_is_asked_to():
    model = tiny_model("llava")
    asked = []
    model.get_compiled_call = asked.append
    ((_, name, compiled_call),) = transformers_private.compiling_without_cuda_graphs(model)
    assert name == "get_compiled_call"
    compiled_call(None)
    compiled_call(CompileConfig(mode="reduce-overhead"))
    assert [config.mode for config in asked] == ["default", "reduce-overhead"], (
        f"`generate` asks get_compiled_call otherwise: see what GenerationMixin._sample calls, and mend {PRIVATE}."
    )
