"""An untrained toy on disk: the real processor and scenes with a model of two narrow layers."""

import pytest


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    from lvlm_attn.toy.bundle import save
    from lvlm_attn.toy.model import ModelSizes, build_model
    from lvlm_attn.toy.tokenizer import build_processor, build_tokenizer, token_ids

    sizes = ModelSizes(
        patch=24, vision_width=32, vision_layers=1, vision_heads=2, width=32, layers=2, inner=48
    )
    folder = tmp_path_factory.mktemp("untrained")
    save(build_model(sizes, token_ids(build_tokenizer()), seed=1), build_processor(sizes), folder)
    return folder


@pytest.fixture(scope="session")
def loaded(untrained):
    from lvlm_attn.loading import load

    return load(untrained, device="cpu")
