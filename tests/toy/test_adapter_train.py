"""Training an adapter on the toy: resumable, seeded, and the model itself stays as it was."""

import pytest
import torch
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling
from typer.testing import CliRunner

import lvlm_attn as la
from lvlm_attn.hooks.crosslmm.adapter import CrossLMMAdapter
from lvlm_attn.hooks.crosslmm.weights import FOLDER, load_adapter
from lvlm_attn.toy.adapter.recipe import BUNDLED, SMOKE
from lvlm_attn.toy.adapter.short import short_hidden
from lvlm_attn.toy.adapter.train import answer_loss, train
from lvlm_attn.toy.data import draw_batch
from lvlm_attn.toy.loops import step_rng
from lvlm_attn.toy.pool import build_pool
from lvlm_attn.toy.vision_stages import cache_features
from tests.oracle_setup import relative_error
from tests.versions import needs_pre_encoding


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    model, processor = la.load("toy")
    pool = build_pool(SMOKE.pool, work / "pool", model.config.vision_config.patch_size)
    return model, processor, pool, cache_features(model, pool, work / "features.npy")


def weights_of(adapter):
    return torch.cat([value.detach().flatten() for value in adapter.parameters()])


def test_an_interrupted_run_ends_as_an_uninterrupted_one(toy, tmp_path):
    model, processor, pool, cached = toy
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for folder, stops in (("whole", (None,)), ("cut", (1, None)), ("other seed", (None,))):
        for stop in stops:
            adapter = train(
                model,
                processor.tokenizer,
                SMOKE,
                pool,
                cached,
                tmp_path / folder,
                seed=folder == "other seed",
                stop_at=stop,
            )
        results.append(weights_of(adapter))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert adapter.shape.grid == SMOKE.grid
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@needs_pre_encoding
def test_a_shortened_prompt_gives_what_the_wrapped_model_gives(toy):
    """Losses and gradients are those of the model inside a wrap, where hidden patches stay in the sequence."""
    model, processor, pool, cached = toy
    torch.manual_seed(0)
    adapter = CrossLMMAdapter.for_model(model.requires_grad_(False), K=2, offset=0, grid=(3, 4), kv_norm=True)
    with torch.no_grad():
        for name, value in adapter.named_parameters():
            value.fill_(0.6) if name.endswith("gate") else value.add_(0.05 * torch.randn(value.shape))
    rng = step_rng(0, "test", 0)
    _, batch = draw_batch(rng, processor.tokenizer, pool.facts[:3], SMOKE.text, 144)
    features = torch.from_numpy(cached[[0, 1, 2]]).float()
    patches = model.model.multi_modal_projector(features)
    short, kept = short_hidden(model, adapter, batch.input_ids, batch.image_starts[0], patches)
    loss, _ = answer_loss(model, adapter, batch, features)
    (gradient,) = torch.autograd.grad(loss, [adapter.branch(2, "v2v").k_proj.weight])
    with la.wrap(model, la.CrossLMM(adapter=adapter)):
        output = model.model(
            input_ids=batch.input_ids,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=list(patches))},
            use_cache=False,
        ).last_hidden_state
    assert len(kept) == batch.input_ids.shape[1] - 144 + 12
    assert relative_error(short.detach(), output[:, kept].detach().double()) < 1e-5
    logits = model.lm_head(output)[:, :-1].flatten(0, 1)
    want = F.cross_entropy(logits, batch.labels[:, 1:].flatten(), ignore_index=-100)
    assert float(loss.detach()) == pytest.approx(float(want.detach()), rel=1e-5)
    (slope,) = torch.autograd.grad(want, [adapter.branch(2, "v2v").k_proj.weight])
    assert relative_error(gradient, slope.double()) < 1e-3


def test_the_command_writes_a_file_that_wraps(tmp_path):
    import typer

    from lvlm_attn.toy.adapter.train import main

    app = typer.Typer()
    app.command()(main)
    out = tmp_path / "adapter.safetensors"
    options = [
        "--out",
        str(out),
        "--work",
        str(tmp_path / "work"),
        "--smoke",
        "--threads",
        "1",
        "--scenes",
        "3",
    ]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "pooled, with the adapter: " in result.output
    assert load_adapter(out).shape.grid == SMOKE.grid


def test_the_adapter_in_the_package_belongs_to_the_recipe_and_is_small():
    path = FOLDER / "toy.safetensors"
    shape = load_adapter(path).shape
    assert shape.grid == BUNDLED.grid
    assert shape.grid[0] * shape.grid[1] <= 16
    assert (shape.K, shape.offset, shape.kv_norm) == (BUNDLED.K, BUNDLED.offset, BUNDLED.kv_norm)
    assert path.stat().st_size < 4_000_000


def test_the_adapter_in_the_package_recovers_most_of_what_pooling_loses():
    """On questions about a few dev scenes; the whole measurement is in the docs."""
    from lvlm_attn.hooks.crosslmm.method import CrossLMM
    from lvlm_attn.toy.adapter.train import yes_no_accuracy

    model, processor = la.load("toy")
    full = yes_no_accuracy(model, processor, [], 12)
    pooled = yes_no_accuracy(model, processor, [CrossLMM.reuse(grid=BUNDLED.grid, w=0.0)], 12)
    adapted = yes_no_accuracy(model, processor, [CrossLMM(weights="toy")], 12)
    assert full - pooled > 0.1
    assert adapted - pooled > 0.5 * (full - pooled)
