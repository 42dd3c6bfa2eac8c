"""One attention call of a benchmark: its inputs, what is asked of it, and the call as the registry makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.common import BEFORE, QUESTION
from benchmarks.gpu import Machine
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import Call, Layer, State
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.dispatch import Dispatch
from lvlm_attn.kernels.spec import (
    Amplification,
    Geometry,
    KeyClass,
    Redistribution,
    amplified,
    class_indicator,
    redistribution_gains,
)
from lvlm_attn.kernels.visibility import ALL, Visibility, allowed_keys
from lvlm_attn.runtime.collected import CollectedEdits, Edit
from lvlm_attn.runtime.registry import attend_edited


@dataclass(frozen=True)
class Shape:
    """The shape of a call.

    Attributes:
        queries: how many; 1 is a decoding step, all of `keys` a prefill.
        keys: length of the sequence.
        padding: positions of padding on the left of the last sample; other samples have none.
    """

    queries: int
    keys: int
    batch: int = 1
    heads: int = 32
    kv_heads: int = 32
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    padding: int = 0

    @property
    def flops(self) -> float:
        """Of causal attention."""
        pairs = self.keys if self.queries == 1 else self.queries * (self.keys + 1) / 2
        return 4.0 * self.batch * self.heads * pairs * self.dim

    @property
    def moved(self) -> float:
        """Bytes that have to be read and written once."""
        cache = 2 * self.batch * self.kv_heads * self.keys * self.dim
        return float(cache + 2 * self.batch * self.heads * self.queries * self.dim) * self.dtype.itemsize

    def __str__(self) -> str:
        what = f"{self.keys} tokens" if self.queries > 1 else f"one query, {self.keys} keys"
        padded = f", {self.padding} padded" if self.padding else ""
        name = str(self.dtype).removeprefix("torch.")
        return (
            f"{what}, batch {self.batch}, {self.heads} heads of {self.dim} on {self.kv_heads}, {name}{padded}"
        )


@dataclass(frozen=True)
class Asked:
    """What a call is to do beyond plain attention."""

    visible: Visibility | None = None
    amplified: Amplification | None = None
    moved: Redistribution | None = None


@dataclass(eq=False)
class Case:
    """Inputs of one shape, and what is asked.

    Attributes:
        machine: where it runs.
        shape: the shape.
        inputs: how many sets of random inputs there are.
        asked: what it is to do.
        paths: which path computed it, for each that was asked for.
    """

    machine: Machine
    shape: Shape
    inputs: int = 1
    asked: Asked = field(default_factory=Asked)
    paths: dict[str, str] = field(default_factory=dict)

    @cached_property
    def sets(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Query, key and value of each set."""
        return [self._tensors(seed) for seed in range(self.inputs)]

    @cached_property
    def kinds(self) -> Tensor:
        """`(batch, keys)`: 0 padding, 1 text before the image, 2 image, 3 text after it."""
        shape, places = self.shape, torch.arange(self.shape.keys)
        end = shape.keys - QUESTION
        kinds = torch.where(places >= end, 3, 2).expand(shape.batch, -1).clone()
        for row in range(shape.batch):
            first = shape.padding if row == shape.batch - 1 else 0
            kinds[row, : first + BEFORE] = 1
            kinds[row, :first] = 0
        return kinds.to(self.machine.device)

    @cached_property
    def geometry(self) -> Geometry:
        """Where queries and keys stand."""
        valid = self.kinds > 0 if self.shape.padding else None
        return Geometry(self.shape.keys - self.shape.queries, self.shape.queries, self.shape.keys, valid)

    @cached_property
    def mask(self) -> Tensor | None:
        """The dense mask that transformers gives its backends where there is padding; None elsewhere."""
        if self.geometry.is_valid is None:
            return None
        last = torch.arange(self.geometry.start, self.geometry.length, device=self.machine.device)
        keys = torch.arange(self.shape.keys, device=self.machine.device)
        return (keys <= last[:, None]) & self.geometry.is_valid[:, None, None] | (keys == last[:, None])

    def is_touched(self, kind: int = 3) -> Tensor:
        """`(batch, queries)`, True at queries of a kind."""
        return self.kinds[:, -self.shape.queries :] == kind

    def redistribution(self) -> Redistribution:
        """VAR's: sinks are the first token and 1 % of the patches, or a few; floors of 0: all rows change."""
        generator = torch.Generator().manual_seed(0)
        share = max(0.01, 8 / max(self.shape.keys - BEFORE - QUESTION, 1))
        is_sink = torch.rand(self.kinds.shape, generator=generator) < share
        is_sink = (is_sink.to(self.kinds.device) & (self.kinds == 2)) | (self.kinds.cumsum(1) == 1)
        classes = (self.kinds == 2) * int(KeyClass.PATCH) + is_sink * int(KeyClass.TEXT_SINK)
        return Redistribution(classes.to(torch.int8), self.is_touched(), 0.4, 0.0, 0.0)

    def amplification(self) -> Amplification:
        """PAI's: the last query attends more to the image."""
        last = torch.zeros(self.shape.batch, self.shape.queries, dtype=torch.bool)
        last[:, -1] = True
        return Amplification(last.to(self.machine.device), gain=(self.kinds == 2) * 0.2)

    def reading_ahead(self) -> Visibility:
        """MMA's: image tokens also attend to the question."""
        every, none = (ALL,) * 4, (0,) * 4
        return Visibility(self.kinds, (every,) * 4, (none, none, (0, 0, 0, ALL), none))

    def visual_self(self) -> Visibility:
        """VisualSelf's: image tokens attend to themselves and to the text before them."""
        every = (ALL,) * 4
        return Visibility(self.kinds, (every, every, (ALL, ALL, 0, ALL), every))

    def call(self, kernels: str) -> Callable[[int], Tensor]:
        """The call as the registry makes it at a layer after the first one of a forward.

        Args:
            kernels: which path computes what is asked.

        Returns:
            A function of the number of a set, which gives `(batch, queries, heads, head_dim)`.
        """
        asked = self.asked
        call = Call(
            target=cast("Any", None),
            prompt=cast("Any", None),
            start=self.geometry.start,
            queries=self.shape.queries,
            is_prompt=self.shape.queries > 1,
            is_valid=self.geometry.is_valid,
            text_heads=cast("Any", None),
            edit_limit=2**40,
            kernels=Dispatch.of(kernels),
        )
        specs = [spec for spec in (asked.amplified, asked.moved) if spec is not None]
        edit = Edit(Layer(0, call, State()), Intervention())
        edits = CollectedEdits(
            edits=[edit],
            visible=[] if asked.visible is None else [asked.visible],
            extras=[],
            gated=[],
            specs=specs or [None],
            readouts=[],
            is_free=False,
        )

        def run(index: int) -> Tensor:
            query, key, value = self.sets[index]
            attention = AttentionCall(
                query, key, value, self.geometry, self.shape.dim**-0.5, self.mask, memo=call.memo
            )
            output, _ = attend_edited(lambda: (self.plain(index), None), call, edits, attention, "sdpa")
            return output

        run(0)
        self.paths[kernels] = call.kernels.describe()
        return run

    def plain(self, index: int) -> Tensor:
        """What torch's fused attention makes, as transformers calls it."""
        query, key, value = self.sets[index]
        output = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=self.mask,
            is_causal=self.mask is None and self.shape.queries > 1,
            enable_gqa=self.shape.heads != self.shape.kv_heads,
        )
        return output.transpose(1, 2).contiguous()

    def truth(self, rows: Tensor, heads: int = 2, *, asked: bool = True) -> Tensor:
        """The definition in float64 at some rows of the last sample, of the first set.

        Args:
            rows: `(rows,)`, which queries.
            heads: how many heads, or all that share a key head.
            asked: whether what is asked is done, or plain attention.

        Returns:
            `(rows, heads, head_dim)`.
        """
        group = self.shape.heads // self.shape.kv_heads
        heads = max(heads, group)
        query, key, value = self.sets[0]
        query = query[-1:, :heads, rows].double()
        key, value = (
            tensor[-1:, : heads // group].double().repeat_interleave(group, 1) for tensor in (key, value)
        )
        valid = self.geometry.is_valid
        geometry = replace(self.geometry, is_valid=None if valid is None else valid[-1:])
        index = (rows + geometry.start)[None]
        allowed = geometry.may_attend(index)
        if asked and self.asked.visible is not None:
            seen = replace(self.asked.visible, group=self.asked.visible.group[-1:])
            allowed, _ = allowed_keys([seen], geometry, index, allowed, torch.float64)
        scores = query @ key.transpose(-1, -2) * self.shape.dim**-0.5
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, None], -torch.inf)
        if asked and self.asked.amplified is not None:
            changed = self.asked.amplified
            assert changed.gain is not None
            on_row = changed.is_touched[-1:, rows]
            part = replace(changed, is_touched=on_row, gain=changed.gain[-1:])
            scores = amplified(scores, part, geometry, on_row)
        weights = scores.softmax(-1)
        if asked and self.asked.moved is not None:
            moved = self.asked.moved
            indicator = class_indicator(moved.key_class[-1:], weights.dtype)
            gains, is_changed = redistribution_gains(weights @ indicator.transpose(-1, -2), moved)
            is_changed &= moved.is_touched[-1:, rows][:, None]
            weights = torch.where(is_changed[..., None], weights * (gains @ indicator), weights)
        return (weights @ value)[0].transpose(0, 1)

    def _tensors(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        shape, generator = self.shape, torch.Generator(self.machine.device).manual_seed(seed)
        sizes = ((shape.heads, shape.queries), (shape.kv_heads, shape.keys), (shape.kv_heads, shape.keys))
        query, key, value = (
            torch.randn(
                shape.batch,
                *size,
                shape.dim,
                generator=generator,
                device=self.machine.device,
                dtype=shape.dtype,
            )
            for size in sizes
        )
        return query, key, value
