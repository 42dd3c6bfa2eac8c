"""Any family in float64, one unpadded sample at a time and without a cache, with weights a test may change: an oracle.

The family's own modules do everything but the weights: transformers calls the attention below for the text layers,
with its own eager mask. Nothing here uses the package. What the modules bring to float32 on purpose (norms, softmax,
rotary positions) stays in float64, see `wide`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.oracle_setup import sink_model
from tests.tiny import IMAGE, KITS, VIDEO, Sample, tiny_rows, tiny_samples

NAME = "family_oracle"
OF_PIXELS = ("pixel", "image", "video", "second")
"""How inputs begin that are of no token."""
Edit = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Makes weights `(heads, rows, keys)` of a layer from its index, scores, mask `(rows, keys)` and residual stream."""


@cache
def twin(name: str) -> Any:
    """The family's tiny model with sinks in float64."""
    return copy.deepcopy(sink_model(name)).double()


def decoder_of(model: Any) -> Any:
    """The text decoder of a model: the module that holds its layers."""
    base = getattr(model, "model", model)
    found = next(
        part for path in ("language_model", "text_model") if (part := getattr(base, path, None)) is not None
    )
    return getattr(found, "model", found)


@dataclass
class Case:
    """One row as the model gets it, and what stands where.

    Attributes:
        name: the family.
        row: inputs of batch 1, unpadded, generated tokens included.
        image: for each token the image it belongs to, or None.
        prompt: how many tokens are prompt.
        blocks: for each image the rows and columns of each of its blocks.
        newlines: places of image tokens that are newlines.
    """

    name: str
    row: dict[str, Tensor]
    image: list[int | None]
    prompt: int
    blocks: list[list[tuple[int, int]]] = field(default_factory=list)
    newlines: frozenset[int] = frozenset()

    @property
    def ids(self) -> list[int]:
        return [int(token) for token in self.row["input_ids"][0]]

    def __len__(self) -> int:
        return len(self.image)

    def is_image(self, place: int) -> bool:
        return self.image[place] is not None

    def is_patch(self, place: int) -> bool:
        is_own = self.ids[place] in (IMAGE, VIDEO)
        return is_own and place < self.prompt and place not in self.newlines

    def with_tokens(self, tokens: Sequence[int]) -> Case:
        """The row with generated tokens behind it."""
        ids = [*self.ids, *map(int, tokens)]
        image = [*self.image, *[None] * len(tokens)]
        rest = {key: value for key, value in self.row.items() if not key.endswith(("ids", "mask"))}
        masks = {key: value for key, value in self.row.items() if key.startswith(OF_PIXELS)}
        row = rest | masks | per_token(self.name, ids, self.prompt)
        if (kinds := self.row.get("mm_token_type_ids")) is not None:
            row["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, len(tokens)))
        return replace(self, row=row, image=image)

    def without_images(self) -> Case:
        """The row's words alone."""
        ids = [token for token, image in zip(self.ids, self.image) if image is None]
        prompt = sum(image is None for image in self.image[: self.prompt])
        return Case(self.name, per_token(self.name, ids, prompt), [None] * len(ids), prompt)


def per_token(name: str, ids: list[int], prompt: int) -> dict[str, Tensor]:
    """The inputs that have one entry for each token."""
    tokens = torch.tensor([ids])
    mask = torch.ones_like(tokens)
    found = {"input_ids": tokens, "attention_mask": mask}
    if KITS[name].per_token is not None:
        found |= KITS[name].per_token(tokens, mask)
    if name == "paligemma":
        found["token_type_ids"][:, prompt:] = 1  # the answer is no part of the prefix
    return found


def cases(name: str, batch: Sequence[Any], seed: int = 0) -> list[Case]:
    """The rows of a batch."""
    model = sink_model(name)
    rows, samples = tiny_rows(name, model, batch, seed), tiny_samples(name, model, batch, seed)
    return [case_of(name, row, sample) for row, sample in zip(rows, samples)]


def case_of(name: str, row: dict[str, Tensor], sample: Sample) -> Case:
    blocks = [picture.blocks or [] for picture in sample.pictures]
    newlines = _newlines(sink_model(name), row) if sample.pictures else frozenset()
    return Case(name, row, list(sample.image), len(sample.ids), blocks, newlines)


@torch.no_grad()
def _newlines(model: Any, row: dict[str, Tensor]) -> frozenset[int]:
    """Places of image tokens that hold the newline embedding, in families that have one."""
    base = getattr(model, "model", model)
    if not hasattr(base, "image_newline"):
        return frozenset()
    output = base.get_image_features(row["pixel_values"], image_sizes=row["image_sizes"], return_dict=True)
    found = output.pooler_output
    if found is None:  # Granite 4 Vision has features for each of several layers
        found = output.deepstack_features[0][1]
    where = (row["input_ids"][0] == IMAGE).nonzero().flatten()
    return frozenset(where[(torch.cat(list(found)) == base.image_newline).all(-1)].tolist())


_EDITS: list[tuple[Edit, dict[int, Tensor]]] = []


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **options: Any
) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    assert query.dtype == torch.float64
    assert query.shape[2] == key.shape[2]
    scores = (query @ key.transpose(-1, -2) * scaling)[0]
    cap = options.get("softcap")
    scores = scores if cap is None else (scores / cap).tanh() * cap
    may_read = mask[0, 0] > torch.finfo(mask.dtype).min / 2
    edit, streams = _EDITS[-1]
    weights = edit(module.layer_idx, scores, may_read, streams[module.layer_idx])
    return (weights[None] @ value).transpose(1, 2).contiguous(), weights[None]


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def plain(layer: int, scores: Tensor, may_read: Tensor, stream: Tensor) -> Tensor:
    """Softmax over what the model's own mask allows."""
    return scores.masked_fill(~may_read, -torch.inf).softmax(-1)


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """What modules bring to float32 stays in float64."""
    narrow, to_float = torch.float32, torch.Tensor.float
    torch.float32 = torch.float = torch.float64  # type: ignore[misc]
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.float32 = torch.float = narrow  # type: ignore[misc]
        torch.Tensor.float = to_float  # type: ignore[method-assign]


@dataclass
class Walk:
    """What one forward gave.

    Attributes:
        logits: `(length, vocabulary)`.
        streams: the residual stream `(length, hidden)` that entered each layer.
        heads: `(length, heads, head_dim)` in front of the output projection of each softmax layer.
    """

    logits: Tensor
    streams: dict[int, Tensor]
    heads: dict[int, Tensor]


# Long because an oracle is compared with the paper from top to bottom.
@torch.no_grad()
def walk(
    case: Case,
    edit: Edit = plain,
    *,
    scale: dict[int, Tensor] | None = None,
    frozen: Sequence[int] = (),
    last: Callable[[Walk], Tensor] | None = None,
    embeds: Tensor | None = None,
) -> Walk:
    """Runs a row.

    Args:
        case: the row.
        edit: makes weights from scores.
        scale: factors `(heads,)` on the head outputs of a layer, by its index.
        frozen: layers that image tokens leave as they entered.
        last: makes the stream that enters the final norm from what was seen.
        embeds: `(length, hidden)`, what enters the first layer in place of the row's own.
    """
    model = twin(case.name)
    decoder = decoder_of(model)
    found = Walk(torch.empty(0), {}, {})
    is_image = torch.tensor([image is not None for image in case.image])

    def enter(index: int) -> Any:
        def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = hidden if embeds is None or index else embeds[None].to(hidden)
            found.streams[index] = hidden[0].clone()
            return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

        return keep

    def leave(index: int) -> Any:
        def freeze(module: Any, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = torch.where(is_image[:, None], found.streams[index], hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return freeze

    def project(index: int, heads: int) -> Any:
        def change(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            joined = args[0].view(*args[0].shape[:-1], heads, -1)
            found.heads[index] = joined[0].clone()
            if scale is not None and index in scale:
                joined = joined * scale[index][:, None]
            return (joined.reshape(args[0].shape), *args[1:])

        return change

    inputs = {key: value.double() if value.is_floating_point() else value for key, value in case.row.items()}
    config = decoder.config
    before = config._attn_implementation
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, config, "_attn_implementation_internal", before)
        config._attn_implementation_internal = NAME
        _EDITS.append((edit, found.streams))
        stack.callback(_EDITS.pop)
        for index, layer in enumerate(decoder.layers):
            stack.callback(layer.register_forward_pre_hook(enter(index), with_kwargs=True).remove)
            if index in frozen:
                stack.callback(layer.register_forward_hook(leave(index)).remove)
            attention = getattr(layer, "self_attn", None)
            if attention is not None:
                hook = project(index, config.num_attention_heads)
                projection = getattr(attention, "o_proj", None) or attention.out_proj
                stack.callback(projection.register_forward_pre_hook(hook).remove)
        if last is not None:
            norm = getattr(decoder, "norm", None) or decoder.embedding_norm
            stack.callback(norm.register_forward_pre_hook(lambda module, args: (last(found)[None],)).remove)
        stack.enter_context(wide())
        output = model(**inputs, use_cache=False)
    return replace(found, logits=output.logits[0])
