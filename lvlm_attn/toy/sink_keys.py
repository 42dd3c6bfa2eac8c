"""How much attention the planted sinks draw: measuring it, holding it in training, and setting the keys for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lvlm_attn.toy.data import Batch, TextConfig, draw_batch, pick_rows
from lvlm_attn.toy.language_stage import embed_batch
from lvlm_attn.toy.loops import step_rng
from lvlm_attn.toy.planting import AMPLIFIER_LAYER, Planted, choose, plant, set_amplifier, set_keys
from lvlm_attn.toy.pool import Pool
from lvlm_attn.toy.team import ALONE, Team

Array: TypeAlias = NDArray[Any]

_FIRST_ROW = (
    8  # the first rows of a text without a picture have little else to attend to than the first token
)
_MOST = 8.0  # largest length of what the mark adds to a key


@dataclass(frozen=True)
class SinkTargets:
    """What the sinks are to draw.

    Attributes:
        mass: Mean attention of text rows on sinks, in heads that look at the picture.
        text_mass: The same in heads that look at words.
        patch_mass: Largest mean attention on other patches in heads that look at words.
        weight: Of the squared distance to these masses, in the loss of stage 9.
        patch_weight: Of what exceeds the largest mass on patches, in that loss.
        scenes: Conversations that the keys are set on, as many again without pictures.
        rounds: Bisections per layer.
    """

    mass: float = 0.2
    text_mass: float = 0.6
    patch_mass: float = 0.06
    weight: float = 4.0
    patch_weight: float = 0.5
    scenes: int = 24
    rounds: int = 9


@dataclass(frozen=True)
class Masses:
    """Mean attention of text rows in one layer, by head.

    Attributes:
        sinks: (heads,) on sinks.
        patches: (heads,) on other patches.
        rows: (rows, heads) on sinks, of every row.
    """

    sinks: Tensor
    patches: Tensor
    rows: Tensor


def layer_masses(attention: Tensor, batch: Batch, is_sink: Tensor, pad: int) -> Masses:
    """Attention of text rows on sinks and on other patches.

    Args:
        attention: (batch, heads, length, length) of one layer.
        batch: The conversations.
        is_sink: (batch, length).
        pad: Id of padding.
    """
    first = _first_row(batch)
    rows = attention[:, :, first:]
    on_sinks = (rows * is_sink[:, None, None]).sum(-1).transpose(1, 2)
    valid = batch.input_ids[:, first:] != pad
    on_patches = torch.zeros_like(on_sinks)
    if batch.image_starts:
        masses = [(rows[..., span] * ~is_sink[:, None, None, span]).sum(-1) for span in batch.pictures]
        on_patches = torch.stack(masses).sum(0).transpose(1, 2)
    kept = on_sinks[valid]
    return Masses(kept.mean(0), on_patches[valid].mean(0), kept.detach())


def sink_targets(planted: Planted, layer: int, heads: int, targets: SinkTargets) -> Tensor:
    """Returns (heads,) the mass that each head of a layer is to have on sinks."""
    wanted = torch.full((heads,), targets.mass)
    wanted[list(planted.text_heads.get(layer, ()))] = targets.text_mass
    return wanted


def sink_loss(
    attentions: Sequence[Tensor],
    batch: Batch,
    is_sink: Tensor,
    planted: Planted,
    targets: SinkTargets,
    pad: int,
    team: Team = ALONE,
) -> tuple[Tensor, dict[str, float]]:
    """Two-sided loss that holds the sinks' mass, and keeps text heads off the picture.

    Args:
        attentions: (batch, heads, length, length) of every layer.
        batch: The conversations, of a team those of its member.
        is_sink: (batch, length).
        planted: What was planted.
        targets: The masses.
        pad: Id of padding.
        team: Whose member computes its part of the loss and of the figures.
    """
    own = (batch.input_ids[:, _first_row(batch) :] != pad).sum()
    share = own / team.total(own)
    loss = attentions[0].new_zeros(())
    seen: list[Tensor] = []
    for layer in planted.layers:
        heads = attentions[layer].shape[1]
        masses = layer_masses(attentions[layer], batch, is_sink, pad)
        wanted = sink_targets(planted, layer, heads, targets)
        on_sinks = team.total(masses.sinks * share)
        loss = loss + targets.weight * (on_sinks - wanted).square().mean()
        text = list(planted.text_heads.get(layer, ()))
        if text and batch.image_starts:
            on_patches = team.total(masses.patches[text] * share)
            loss = loss + targets.patch_weight * (on_patches - targets.patch_mass).relu().mean()
        seen.append(on_sinks.detach())
    mass = float(torch.stack(seen).mean())
    return team.as_part(loss / len(planted.layers)), {"sink_mass": mass / team.size}


def _first_row(batch: Batch) -> int:
    """The first row of text whose attention counts."""
    return batch.first_word if batch.image_starts else _FIRST_ROW


@dataclass
class _Probe:
    """Conversations with and without pictures, and what the model does on them."""

    batches: list[tuple[Batch, Tensor | None]]
    model: Any
    planted: Planted

    @torch.no_grad()
    def run(self) -> list[tuple[Batch, Tensor, Any]]:
        found = []
        for batch, features in self.batches:
            embedded = embed_batch(self.model, batch, features)
            is_sink = embedded[..., self.planted.dimension] > 0.5
            output = self.model.model.language_model(
                inputs_embeds=embedded, use_cache=False, output_attentions=True, output_hidden_states=True
            )
            found.append((batch, is_sink, output))
        return found

    def masses(self, layer: int) -> tuple[Tensor, Tensor]:
        """(heads,) mass on sinks and on patches; the former over both kinds of rows, the latter with pictures."""
        pad = self.model.config.text_config.pad_token_id
        found = [
            layer_masses(output.attentions[layer], batch, is_sink, pad)
            for batch, is_sink, output in self.run()
        ]
        return torch.stack([item.sinks for item in found]).mean(0), found[0].patches


def _probe(
    model: Any, tokenizer: Any, pool: Pool, cached: Array, planted: Planted, targets: SinkTargets, seed: int
) -> _Probe:
    patches = pool.labels.shape[1]
    batches: list[tuple[Batch, Tensor | None]] = []
    for text_only in (0.0, 1.0):
        rng = step_rng(seed, "probe", int(text_only))
        rows = pick_rows(rng, len(pool.facts), targets.scenes)
        config = TextConfig(yes_no=1.0, places=0.0, text_only=text_only, coin_flips=False)
        _, batch = draw_batch(rng, tokenizer, [pool.facts[int(row)] for row in rows], config, patches)
        batches.append((batch, None if text_only else torch.from_numpy(cached[rows]).float()))
    return _Probe(batches, model, planted)


def plant_sinks(
    model: Any,
    tokenizer: Any,
    pool: Pool,
    cached: Array,
    corner: nn.Linear,
    targets: SinkTargets,
    seed: int,
) -> Planted:
    """Stage 8: chooses where, writes the circuit, and sets the amplifier and the keys.

    Args:
        model: The toy.
        tokenizer: Its tokenizer.
        pool: Training pictures.
        cached: Their features.
        corner: Reads the log-odds of an empty corner from features.
        targets: What the sinks are to draw.
        seed: Seed of the conversations that the keys are set on.
    """
    model.set_attn_implementation("eager")
    bare = choose(model, {})
    probe = _probe(model, tokenizer, pool, cached, bare, targets, seed)
    heads = model.config.text_config.num_attention_heads
    text_heads = {}
    for layer in bare.layers:
        on_patches = probe.masses(layer)[1]
        text_heads[layer] = tuple(sorted(int(head) for head in on_patches.argsort()[: heads // 2]))
    planted = choose(model, text_heads)
    plant(model, planted, corner, tokenizer.bos_token_id)
    probe.planted = planted
    _raise(probe)
    _set_all_keys(probe, targets)
    return planted


def calibrate_keys(
    model: Any,
    tokenizer: Any,
    pool: Pool,
    cached: Array,
    planted: Planted,
    targets: SinkTargets,
    seed: int,
) -> None:
    """Sets amplifier and keys of a planted toy again, after training; arguments as for ``plant_sinks``."""
    model.set_attn_implementation("eager")
    probe = _probe(model, tokenizer, pool, cached, planted, targets, seed)
    _raise(probe)
    _set_all_keys(probe, targets)
    model.set_attn_implementation("sdpa")


def _raise(probe: _Probe) -> None:
    """Sets the amplifier by what its neuron meets at the sinks."""
    read: list[Tensor] = []
    layer = probe.model.model.language_model.layers[AMPLIFIER_LAYER]
    handle = layer.post_attention_layernorm.register_forward_hook(lambda _, args, out: read.append(out))
    try:
        found = probe.run()
    finally:
        handle.remove()
    dim = probe.planted.dimension
    normed, rest = [], []
    for (_, is_sink, output), out in zip(found, read):
        normed.append(out[..., dim][is_sink])
        left = output.hidden_states[AMPLIFIER_LAYER + 1][is_sink]
        others = torch.arange(left.shape[-1]) != dim
        rest.append(left[:, others].square().mean(-1).sqrt())
    set_amplifier(
        probe.model,
        probe.planted,
        float(torch.cat(normed).quantile(0.1)),
        float(torch.cat(rest).quantile(0.9)),
    )


def _set_all_keys(probe: _Probe, targets: SinkTargets) -> None:
    """Layer by layer from below, so that every layer is set on what it will meet."""
    text = probe.model.config.text_config
    groups, heads = text.num_key_value_heads, text.num_attention_heads
    size = text.hidden_size // heads
    for layer in probe.planted.layers:
        for group in range(groups):
            set_keys(probe.model, layer, group, torch.zeros(size), probe.planted.dimension)
        directions = _directions(probe, layer, size)
        wanted = sink_targets(probe.planted, layer, heads, targets).view(groups, -1).mean(1)
        low, high = torch.zeros(groups), torch.full((groups,), _MOST)
        for _ in range(targets.rounds):
            middle = (low + high) / 2
            for group in range(groups):
                set_keys(
                    probe.model, layer, group, middle[group] * directions[group], probe.planted.dimension
                )
            enough = probe.masses(layer)[0].view(groups, -1).mean(1) >= wanted
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)


def _directions(probe: _Probe, layer: int, size: int) -> Tensor:
    """(groups, head size) unit vectors along the mean query of text rows, in slowly rotating columns only."""
    read: list[Tensor] = []
    attention = probe.model.model.language_model.layers[layer].self_attn
    handle = attention.q_proj.register_forward_hook(lambda _, args, out: read.append(out))
    try:
        probe.run()
    finally:
        handle.remove()
    text = probe.model.config.text_config
    means = []
    for (batch, _), queries in zip(probe.batches, read):
        first = _first_row(batch)
        valid = batch.input_ids[:, first:] != text.pad_token_id
        means.append(queries[:, first:][valid].mean(0))
    mean = torch.stack(means).mean(0).view(text.num_key_value_heads, -1, size).mean(1)
    slow = text.rope_parameters["rope_theta"] ** (-torch.arange(size // 2) / (size // 2)) * 300 < 0.5
    mean = mean * slow.repeat(2)
    directions: Tensor = mean / mean.norm(dim=1, keepdim=True).clamp(min=1e-9)
    return directions
