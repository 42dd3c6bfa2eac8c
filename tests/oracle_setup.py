"""Tiny models with massive activations, and the comparison of a wrapped model with the oracle."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.oracle import Truth, VarRule, VhrRule, oracle
from tests.tiny import BOS, FIRST_WORD, IMAGE, tiny_model

DIM, MARK = 7, 3  # the dimension of massive activations, and the one that says which features get one
LAYERS, HIDDEN = 5, 32
TAU = 0.3125 * HIDDEN**0.5
SINK_WORDS = slice(FIRST_WORD, FIRST_WORD + 12)

VAR_RULE = VarRule(layers=(2, 3), sink_dims=(DIM,), tau=TAU)
VHR_RULE = VhrRule(layers=(1, 3, 4))


def massive(x: Tensor, dim: int = DIM) -> Tensor:
    """Writes 50 times the root mean square into one dimension of every vector."""
    x = x.clone()
    x[..., dim] = 50 * x.pow(2).mean(-1).sqrt()
    return x


def _mark_features(module: Any, args: Any, features: Tensor) -> Tensor:
    """Some image features become massive; which ones depends on the feature alone, not on its place."""
    chosen = features[..., MARK] > 0.8 * features.pow(2).mean(-1).sqrt()
    return torch.where(chosen[..., None], massive(features), features)


PROJECTORS = (
    "multi_modal_projector.image_projector",
    "multi_modal_projector",
    "visual.merger",
    "connector",
    "aligner",
    "visual_embeddings_table",
    "embed_vision",
    "layerwise_projectors.0",
)
"""Where families keep the last module that an image passes before it becomes tokens."""


def find(module: Any, path: str) -> Any:
    """The part of a module at a path of names joined by dots, or None."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def make_sinks(model: Any) -> Any:
    """Gives the beginning of text, a dozen words and some patches a massive activation."""
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[BOS] = massive(table[BOS])
        table[SINK_WORDS] = massive(table[SINK_WORDS])
    base = getattr(model, "model", model)
    projector = next(part for path in PROJECTORS if (part := find(base, path)) is not None)
    projector.register_forward_hook(_mark_features)
    return model


@cache
def sink_model(name: str, dtype: torch.dtype = torch.float32, attn: str = "sdpa", **shape: int) -> Any:
    """A tiny model with sinks. Shared between tests: they have to leave it as it was."""
    # Random models differ in how much they amplify rounding; with these seeds plain float32 stays within
    # 5e-6 of float64, so that a tolerance of 1e-5 judges the interventions. `test_plain_model` holds it.
    shape = {"layers": LAYERS, "hidden": HIDDEN, "seed": 1 if name == "llava_next" else 0} | shape
    return make_sinks(tiny_model(name, dtype=dtype, attn=attn, **shape))


@cache
def twin(name: str, dtype: torch.dtype = torch.float32, **shape: int) -> Any:
    """The same model in float64."""
    return copy.deepcopy(sink_model(name, dtype, **shape)).double()


def massive_at(model: Any, layer: int, choose: Callable[[Tensor], Tensor], dim: int = DIM) -> Any:
    """Makes the input of a decoder layer massive where `choose(hidden)` is True; the oracle does the same."""
    module = model.model.language_model.layers[layer]

    def change(hidden: Tensor) -> Tensor:
        return torch.where(choose(hidden)[..., None], massive(hidden, dim), hidden)

    def hook(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    module.oracle_input = change
    return module.register_forward_pre_hook(hook, with_kwargs=True)


def truths(
    name: str,
    rows: list[dict[str, Tensor]],
    generated: Tensor | None = None,
    var: VarRule | None = None,
    vhr: VhrRule | None = None,
    model: Any = None,
) -> list[Truth]:
    """The oracle's answer for each row."""
    model = twin(name) if model is None else model
    tails = [[]] * len(rows) if generated is None else generated.tolist()
    return [oracle(model, row, tail, var, vhr) for row, tail in zip(rows, tails, strict=True)]


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest difference beside the largest logit."""
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    return float((got.double() - want).abs().max() / want.abs().max())


def generate(model: Any, inputs: dict[str, Tensor], tokens: int = 9, **options: Any) -> tuple[Tensor, Tensor]:
    """Generated ids `(rows, tokens)` and raw logits `(rows, tokens, vocabulary)`."""
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True} | options
    out = model.generate(**inputs, max_new_tokens=tokens, **options)
    return out.sequences[:, -tokens:], torch.stack(out.logits, dim=1)


def first_image(row: dict[str, Tensor]) -> int:
    """Position of the first image token of a single row."""
    return int((row["input_ids"][0] == IMAGE).nonzero()[0])
