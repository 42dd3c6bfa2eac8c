"""Keys and values of un-pooled patches at every layer, as the language model itself makes them.

The language model processes the patches in a silent pass, in which no intervention acts, and the keys and values of its
layers are kept. Keys are rotated to the patches' own positions. Three depths to choose from:

- `S0`: every layer is given the embeddings, as the first layer is.
- `S1`: patches go through the layers one by one and attend to nothing but themselves, so that each layer gets states of
  its own depth at a cost that grows with the number of patches alone (the aligner of EE-MLLM, arXiv 2408.11795).
- `S2`: the whole prompt is processed once with all its tokens, which gives exactly the keys and values of the model
  without pooling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.context import Call
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.runtime.active import without_interventions

SOURCES = ("S0", "S1", "S2")
CHUNK = 1024
"""Patches that go through the layers at a time."""

KeysValues = dict[int, tuple[Tensor, Tensor]]


def image_keys(
    target: Target, call: Call, embeds: Tensor, rows: Rows, source: str, layers: Sequence[int]
) -> KeysValues:
    """Keys and values of the patches of a call.

    Args:
        target: the model.
        call: the call that holds the patches; for `S2` it has to begin the prompt.
        embeds: `(batch, queries, hidden)`, un-pooled.
        rows: which queries are patches, packed.
        source: `"S0"`, `"S1"` or `"S2"`.
        layers: which layers' keys and values are wanted.

    Returns:
        By layer, keys and values `(batch, kv_heads, patches, head_dim)`; those of padding rows are no
        patches of the sample. A backward pass that would need their gradient is refused.
    """
    if source == "S2":
        found = _whole(target, call, embeds, rows, layers)
    else:
        found = _one_by_one(target, call, embeds, rows, layers, is_deep=source == "S1")
    if not torch.is_grad_enabled():
        return found
    weights = (weight for weight in target.parts.language_model.parameters() if weight.requires_grad)
    asks = embeds if embeds.requires_grad else next(weights, None)
    if asks is None:
        return found
    refusing = cast("Any", _Constant).apply
    return {layer: (refusing(key, asks), refusing(value, asks)) for layer, (key, value) in found.items()}


class _Constant(torch.autograd.Function):
    """What was made without gradients of something that asks for one: it refuses to pass on none in silence."""

    @staticmethod
    def forward(ctx: Any, made: Tensor, asks: Tensor) -> Tensor:
        return made.view_as(made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise UnsupportedError(
            "CrossLMM: a backward pass would leave out of the model's gradients what its keys and values of un-pooled "
            "patches add, which are made without; freeze the model (model.requires_grad_(False)) and train the adapter."
        )


def _whole(target: Target, call: Call, embeds: Tensor, rows: Rows, layers: Sequence[int]) -> KeysValues:
    kept: KeysValues = {}
    wanted = set(layers)

    def capture(layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        if layer in wanted:
            kept[layer] = (_pick(key, rows), _pick(value, rows))

    # A mask that `generate` made ahead for a static cache is longer than the prompt; this one says the same.
    # It is given even without padding: where there is none, transformers takes a gap in the positions for the seam of
    # two packed samples.
    mask: Any = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    if call.attends_ahead:
        mask = _cropped(call.inputs["attention_mask"], call.queries)
    elif call.is_valid is not None:
        mask = call.is_valid.to(embeds.device).long()
    _silent(target, capture, inputs_embeds=embeds, attention_mask=mask, **_given(call))
    return kept


def _cropped(mask: Any, queries: int) -> Any:
    """A dense mask, or one for each kind of layer, over the columns of the prompt alone."""
    if isinstance(mask, Mapping):
        return {kind: _cropped(part, queries) for kind, part in mask.items()}
    return mask if mask is None else mask[..., :queries]


def _one_by_one(
    target: Target, call: Call, embeds: Tensor, rows: Rows, layers: Sequence[int], is_deep: bool
) -> KeysValues:
    """Every patch is a sequence of its own of one token, so that it can attend to nothing else."""
    batch, count = rows.index.shape
    index = rows.index.to(embeds.device)
    hidden = embeds.gather(1, index[..., None].expand(-1, -1, embeds.shape[2])).flatten(0, 1)[:, None]
    positions = _positions(call, embeds)
    picked = positions.gather(-1, index.to(positions.device).expand(*positions.shape[:-2], -1, -1))
    picked = picked.flatten(-2)[..., None]
    pieces: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}

    def capture(layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        if layer in pieces:
            pieces[layer].append((key[:, :, 0], value[:, :, 0]))

    deep = _deepstack(call, rows) if is_deep else None
    for start in range(0, len(hidden), CHUNK):
        span = slice(start, start + CHUNK)
        given: dict[str, Any] = {"position_ids": picked[..., span, :]}
        if deep is not None:
            given["deepstack_visual_embeds"] = [item[span] for item in deep]
            given["visual_pos_masks"] = torch.ones(
                hidden[span].shape[:2], dtype=torch.bool, device=hidden.device
            )
        handles = []
        try:
            if not is_deep:
                handles = [_feed(target.parts.layers[layer], hidden[span]) for layer in layers]
            _silent(target, capture, inputs_embeds=hidden[span], **given)
        finally:
            for handle in handles:
                handle.remove()

    def whole(parts: list[Tensor]) -> Tensor:
        joined = torch.cat(parts)
        return joined.view(batch, count, *joined.shape[1:]).transpose(1, 2)

    return {
        layer: (whole([key for key, _ in found]), whole([value for _, value in found]))
        for layer, found in pieces.items()
    }


def _silent(target: Target, capture: Any, **inputs: Any) -> None:
    model = cast("Any", target.parts.language_model)
    with torch.no_grad():
        without_interventions(lambda: model(use_cache=False, **inputs), capture)


def _feed(layer: nn.Module, hidden: Tensor) -> Any:
    """Makes a layer take the given states whatever it is handed."""

    def feed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (hidden.to(args[0].device), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden.to(kwargs["hidden_states"].device)}

    return layer.register_forward_pre_hook(feed, with_kwargs=True, prepend=True)


def _given(call: Call) -> dict[str, Any]:
    """Positions and what other image features the language model of the call is given."""
    names = ("position_ids", "visual_pos_masks", "deepstack_visual_embeds")
    return {name: call.inputs[name] for name in names if call.inputs.get(name) is not None}


def _positions(call: Call, embeds: Tensor) -> Tensor:
    """`(..., batch, queries)` rotary positions of a call; counted up where the language model would do so."""
    given = call.inputs.get("position_ids")
    if given is None:
        counted = torch.arange(call.start, call.start + call.queries, device=embeds.device)
        return counted.expand(embeds.shape[0], -1)
    given = cast(Tensor, given)
    return given.expand(*given.shape[:-2], embeds.shape[0], -1)


def _deepstack(call: Call, rows: Rows) -> list[Tensor] | None:
    """The features added after early layers, `(batch * patches, hidden)` each, in the order of `rows`."""
    given, mask = call.inputs.get("deepstack_visual_embeds"), call.inputs.get("visual_pos_masks")
    if given is None or mask is None:
        return None
    index = rows.index.to(mask.device)
    return [
        spread(item, mask).gather(1, index[..., None].expand(-1, -1, item.shape[-1])).flatten(0, 1)
        for item in given
    ]


def spread(features: Tensor, mask: Tensor) -> Tensor:
    """Puts `(patches, hidden)` features of a batch at the True places of `(batch, queries)`, 0 elsewhere."""
    full = features.new_zeros(*mask.shape, features.shape[-1])
    full[mask.to(features.device)] = features
    return full


def _pick(states: Tensor, rows: Rows) -> Tensor:
    index = rows.index.to(states.device)[:, None, :, None]
    return states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))
