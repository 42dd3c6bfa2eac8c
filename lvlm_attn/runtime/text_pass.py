"""Running a prompt without its images: what the model makes of the text alone."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.target import Target
from lvlm_attn.layout.prompt import PromptLayout
from lvlm_attn.runtime.active import without_interventions
from lvlm_attn.runtime.fingerprint import Structure, arithmetic, digest, structure_of, weights_of
from lvlm_attn.runtime.remembered import Remembered

TEXTS = Remembered(most=32)
"""Head outputs of the latest texts, by model: 250 KB each for a 7B model and one row."""


class Text(NamedTuple):
    """Where the text of a prompt stands, packed to the right.

    Attributes:
        order: `(batch, longest text)`, which position each one was.
        mask: `(batch, longest text)`, False at padding.
        is_padded: whether there is any.
    """

    order: Tensor
    mask: Tensor
    is_padded: bool

    @staticmethod
    def of(layout: PromptLayout, length: int) -> Text:
        """The text among the first `length` positions.

        Raises:
            LvlmAttnError: if a sample has no text at all.
        """
        known, is_kept = ((of.is_text & of.is_prompt)[:, :length] for of in (layout.on_host, layout))
        counts = cast("list[int]", known.sum(1).tolist())
        if 0 in counts:
            raise LvlmAttnError(
                f"Row {counts.index(0)} of the prompt is all image; a text-only pass needs at least one text token."
            )
        # A stable sort moves the kept positions to the right end and keeps their order.
        order = is_kept.to(torch.uint8).argsort(dim=1, stable=True)[:, -max(counts) :]
        return Text(order, is_kept.gather(1, order), min(counts) < max(counts))

    def packed(self, values: Tensor) -> Tensor:
        """The text of `(batch, length, size)`, 0 at padding."""
        found = values.gather(1, self.order[..., None].expand(-1, -1, values.shape[2]))
        return found.masked_fill(~self.mask[..., None], 0)


class _Enough(Exception):
    """Ends the pass at the last layer that is wanted."""


def text_heads(
    target: Target, layout: PromptLayout | None, inputs: Mapping[str, Any], layers: Sequence[int]
) -> dict[int, Tensor]:
    """Runs the language model on the text of a prompt and returns head outputs at its last token.

    The pass has no cache, counts positions afresh, and changes nothing: interventions are silent, and neither
    the cache, the random state nor what the model remembers of its last prompt is touched. It ends at the last of the
    layers. The same text is not run again while the model is the same (`runtime.fingerprint` says what that is); what
    is compared are the embeddings of the whole batch, so a remembered output has the bits of a new one.

    Args:
        target: the model.
        layout: of the prompt.
        inputs: the keyword arguments of the language model: `inputs_embeds` `(batch, length, hidden)`, the
            embeddings of the prompt with image features in place, and in some models `per_layer_inputs`.
        layers: the layers whose head outputs are returned; those without softmax attention are left out.

    Returns:
        For each layer `(batch, heads, head_dim)` in fp32.

    Raises:
        LvlmAttnError: if a sample has no text at all.
    """
    assert layout is not None
    embeds = inputs["inputs_embeds"].detach()
    text = Text.of(layout, embeds.shape[1])
    packed, more = text.packed(embeds), {}
    if (per_layer := inputs.get("per_layer_inputs")) is not None:
        flat = text.packed(per_layer.detach().flatten(2))
        more["per_layer_inputs"] = flat.view(*flat.shape[:2], *per_layer.shape[2:])
    projections = {
        layer: projection
        for layer in sorted(layers)
        if (projection := target.parts.output_projections[layer]) is not None
    }
    if not projections:
        return {}
    structure = structure_of(target.parts.language_model)

    def run() -> dict[int, Tensor]:
        return _run(target, text, packed, more, projections, may_stop=structure is not None)

    key = _key(target, structure, text, (packed, *more.values()), tuple(projections))
    found = TEXTS.found(target.parts.language_model, key, run)
    return {layer: heads.clone() for layer, heads in found.items()}


def _key(
    target: Target, structure: Structure | None, text: Text, given: Sequence[Tensor], layers: tuple[int, ...]
) -> Hashable | None:
    """All that the heads of a text depend on; None where that cannot be told."""
    if structure is None or structure.is_training:
        return None
    weights = weights_of(target.parts.language_model)
    if weights is None:
        return None
    told, sampled = weights
    content = digest([*given, text.mask, *sampled])
    return structure.key, told, content, layers, arithmetic(given[0].device)


def _run(
    target: Target,
    text: Text,
    packed: Tensor,
    more: Mapping[str, Tensor],
    projections: Mapping[int, nn.Module],
    *,
    may_stop: bool,
) -> dict[int, Tensor]:
    """The pass itself.

    Args:
        target: the model.
        text: where the text stands.
        packed: its embeddings `(batch, longest text, hidden)`.
        more: what else the language model is given.
        projections: by layer, what the heads enter.
        may_stop: whether nothing waits for the end of the modules that are left unfinished.
    """
    positions = (text.mask.long().cumsum(1) - 1).clamp(min=0)
    heads: dict[int, Tensor] = {}

    def reader(layer: int) -> Any:
        def read(module: nn.Module, args: tuple[Any, ...]) -> None:
            last = args[0][:, -1]
            last = last if last.dtype == torch.float64 else last.float()
            heads[layer] = last.view(last.shape[0], target.heads, -1).clone()
            if may_stop and len(heads) == len(projections):
                raise _Enough

        return read

    def run() -> None:
        with contextlib.suppress(_Enough):
            cast("Any", target.parts.language_model)(
                inputs_embeds=packed,
                attention_mask=_mask(target, packed, text, positions),
                position_ids=positions,
                use_cache=False,
                **more,
            )

    handles = []
    try:
        handles += [
            projection.register_forward_pre_hook(reader(layer), prepend=True)
            for layer, projection in projections.items()
        ]
        torch.no_grad()(without_interventions)(run)
    finally:
        for handle in handles:
            handle.remove()
    return heads


def _mask(target: Target, embeds: Tensor, text: Text, positions: Tensor) -> Any:
    """What the language model is given as its mask: padding, or all of it where a prompt attends to itself."""
    if target.family.mask_of(cast("Any", target.parts.base).config) != "bidirectional_prompt":
        return text.mask.long() if text.is_padded else None
    settings = {
        "config": target.config,
        "inputs_embeds": embeds,
        "attention_mask": text.mask.long(),
        "past_key_values": None,
        "position_ids": positions,
        "block_sequence_ids": torch.zeros_like(positions),
    }
    if getattr(target.config, "sliding_window", None) is None:
        return create_causal_mask(**settings)
    return {
        "full_attention": create_causal_mask(**settings),
        "sliding_attention": create_sliding_window_causal_mask(**settings),
    }
