"""Attention with a dense mask, one unpadded sample at a time, in float64 and without a cache: an oracle.

Nothing here uses the package, except where `places` asks a layout for the rows and columns of patches. A mask is
a `(length, length)` table of factors on exponentiated scores, made pair by pair from the token ids: 0 hides a key,
1 shows it.
"""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

import lvlm_attn as la
from tests.doubled import Doubled
from tests.oracle import _rotate, norm, read
from tests.oracle_setup import generate, relative_error
from tests.tiny import IMAGE, tiny_inputs, tiny_model, tiny_rows

FEW = ["llava", "llava_next", "qwen2_5_vl"]
BATCH = [(1,), (0,), (2,)]
LAYERS = 4
TOKENS = 6


@cache
def model_of(name: str, attn: str = "sdpa", **changes):
    """A tiny model, shared between tests: they have to leave it as it was."""
    return tiny_model(name, attn=attn, layers=LAYERS, **changes)


@cache
def twin_of(name: str):
    return copy.deepcopy(model_of(name)).double()


@dataclass
class Sample:
    """What stands where in one unpadded row: words, images, answer.

    Attributes:
        image: number of the image at each position, None at text.
        prompt: positions of the prompt; the rest is generated.
        ids: the token ids.
    """

    image: list[int | None]
    prompt: int
    ids: list[int]

    def __len__(self):
        return len(self.ids)

    def is_image(self, position):
        return self.image[position] is not None


def sample_of(row: dict[str, Tensor], generated=()) -> Sample:
    ids = row["input_ids"][0].tolist() + [int(token) for token in generated]
    image: list[int | None] = []
    count = -1
    for position, token in enumerate(ids):
        if token == IMAGE and (position == 0 or ids[position - 1] != IMAGE):
            count += 1
        image.append(count if token == IMAGE else None)
    return Sample(image, row["input_ids"].shape[1], ids)


Rule = Callable[[Sample, int, int], float]


def causal(sample: Sample, i: int, j: int) -> float:
    return float(j <= i)


def table(rule: Rule, sample: Sample) -> Tensor:
    size = range(len(sample))
    return torch.tensor([[float(rule(sample, i, j)) for j in size] for i in size], dtype=torch.float64)


@torch.no_grad()
def masked(model, row, generated=(), rules=None, frozen=(), edit=None) -> tuple[Tensor, list[Tensor]]:
    """Logits `(length, vocabulary)`, and the residual stream before each layer and behind the last.

    `rules` gives the rule of a layer, by its number; layers that are not in it are causal. In the layers
    `frozen`, image tokens leave as they entered. `edit(layer, hidden, weights, stream)` changes the weights
    `(length, length)` of a head.
    """
    assert model.dtype == torch.float64
    sample, stream = sample_of(row, generated), read(model, row, generated)
    decoder = model.model.language_model
    x, states = stream.embeds, []
    cos, sin = (part[0].double() for part in decoder.rotary_emb(x[None], stream.positions))
    tables = {rule: table(rule, sample) for rule in {causal, *(rules or {}).values()}}
    for index, layer in enumerate(decoder.layers):
        states.append(x)
        factors = tables[(rules or {}).get(index, causal)]
        attention, h = layer.self_attn, norm(layer.input_layernorm, x)
        q, k, v = (
            projection(h).view(len(h), -1, attention.head_dim)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        heads = torch.empty_like(q)
        for head in range(q.shape[1]):
            shared = head // (q.shape[1] // k.shape[1])
            power = (q[:, head] @ k[:, shared].T / attention.head_dim**0.5).exp() * factors
            weights = power / power.sum(1, keepdim=True)
            if edit is not None:
                weights = edit(index, x, weights, stream)
            heads[:, head] = weights @ v[:, shared]
        new = x + attention.o_proj(heads.reshape(len(x), -1))
        new = new + layer.mlp(norm(layer.post_attention_layernorm, new))
        x = torch.where(stream.is_image[:, None], x, new) if index in frozen else new
    states.append(x)
    return model.lm_head(norm(decoder.norm, x)), states


def at_all(rule: Rule) -> dict[int, Rule]:
    """A rule at every layer."""
    return dict.fromkeys(range(LAYERS), rule)


def check(name, items, rules=None, frozen=(), batch=BATCH, tolerance=1e-5, keeps_text=True):
    """A batch with unequal images, padded left and right, plain and generated, against the oracle row by row.

    Generation runs in float64: how much a tiny model amplifies float32's rounding depends on the tokens it chooses.
    `items` is a method or a list of some.
    Rows without an image keep their bits if `keeps_text`. The method must change the other rows.
    """
    model, double = model_of(name), twin_of(name)
    rows = tiny_rows(name, model, batch)
    with torch.no_grad():
        left, right = (tiny_inputs(name, model, batch, side) for side in ("left", "right"))
        bare = {"left": model(**left).logits, "right": model(**right).logits}
        with la.wrap(model, *(items if isinstance(items, list) else [items])):
            got = {"left": model(**left).logits, "right": model(**right).logits}
        exact = {key: value.double() if value.is_floating_point() else value for key, value in left.items()}
        with Doubled(), la.wrap(double, *(items if isinstance(items, list) else [items])):
            tokens, steps = generate(double, exact, TOKENS)
        assert torch.equal(model(**left).logits, bare["left"])
    for index, row in enumerate(rows):
        length = row["input_ids"].shape[1]
        with Doubled():
            want, _ = masked(double, row, tokens[index], rules, frozen)
        spans = {"left": slice(-length, None), "right": slice(length)}
        for side, span in spans.items():
            assert relative_error(got[side][index, span], want[:length]) < tolerance, (index, side)
            is_same = torch.equal(got[side][index, span], bare[side][index, span])
            assert is_same == (keeps_text and not batch[index][0])
        assert relative_error(steps[index], want[length - 1 : length - 1 + TOKENS]) < 1e-9, index


def check_order(name, item):
    """A sample after another one gives what it gives alone, and an exception leaves the model as it was."""
    model = model_of(name)
    first, second = tiny_rows(name, model, [(2,), (1, 3, 5)])
    with torch.no_grad():
        bare = model(**second).logits
        with la.wrap(model, item):
            alone = generate(model, second, TOKENS)
        with la.wrap(model, item):
            generate(model, first, TOKENS)
            later = generate(model, second, TOKENS)
        assert torch.equal(alone[0], later[0])
        assert torch.equal(alone[1], later[1])

        def run():
            with la.wrap(model, item):
                model(**first)
                raise KeyError("a mistake of the caller")

        with contextlib.suppress(KeyError):
            run()
        assert not model._forward_pre_hooks
        assert torch.equal(model(**second).logits, bare)


def layout_of(name, inputs):
    """The layout of a prompt as interventions see it."""
    seen = []

    class Spy(la.Intervention):
        def observe(self, layer, hidden):
            seen.append(layer.layout)

    with torch.no_grad(), la.wrap(model_of(name), Spy(), no_image="pass"):
        model_of(name)(**inputs)
    return seen[0]


def states_of(model, inputs, *items):
    """The residual stream before each layer and behind the last (before the final norm), in a wrap."""
    found: list[Tensor] = []
    decoder = model.model.language_model

    def keep(module, args):
        found.append(args[0].clone())

    with torch.no_grad(), la.wrap(model, *items), contextlib.ExitStack() as stack:
        for module in (*decoder.layers, decoder.norm):
            stack.callback(module.register_forward_pre_hook(keep).remove)
        model(**inputs)
    return found
