"""The base class of every intervention, and what it is told when it is called.

An intervention is an immutable set of parameters. It acts by overriding one or more sites; `wrap` calls only
those that a subclass overrides. Whatever it has to remember lives in the prompt's memory, never in the object,
so that one object can serve many models and prompts at once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.interventions.layers import Layers, format_layers, select_layers
from lvlm_attn.kernels.extra import ExtraKeys
from lvlm_attn.kernels.spec import Reweighing
from lvlm_attn.kernels.visibility import Visibility

if TYPE_CHECKING:
    from torch import nn

    from lvlm_attn.families import Family, Parts
    from lvlm_attn.families.encoder_patches import VisionRows
    from lvlm_attn.interventions.call import Call
    from lvlm_attn.kernels.readouts import Reading, Readout
    from lvlm_attn.layout.prompt import PromptLayout
    from lvlm_attn.prompts.request import Request

ATTENTION_SITES = ("visibility", "extra_keys", "reweigh", "edit_weights", "readout")
_NEEDS_QUOTES = re.compile(r"[,+\[\]]|^['\"\s]|\s$|^[+-]?\.?\d")
"""Text that would be read as something else: with separators or brackets, or like a number."""
REQUEST_SITES = ("rewrite", "views", "fuse", "loop")
LAYER_SITES = ("observe", "scale_heads", "modules", "frozen")


@dataclass(frozen=True)
class Target:
    """The model an intervention is fitted to.

    Attributes:
        model: the model that is wrapped.
        family: its entry in the family table.
        parts: its layers and projections.
        processor: the processor given to `wrap`, or None.
        layers: number of decoder layers.
        heads: number of query heads.
        head_dim: width of a head.
        hidden_size: width of the residual stream.
    """

    model: nn.Module
    family: Family
    parts: Parts
    processor: Any | None

    @property
    def config(self) -> Any:
        """The configuration of the language model."""
        return self.parts.text_config

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.parts.layers)

    @property
    def skipped_layers(self) -> tuple[int, ...]:
        """Layers without softmax attention, where sites of attention and heads do not act."""
        known = self.parts.softmax_layers
        return tuple(layer for layer in range(self.layers) if layer not in known)

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return cast(int, self.config.num_attention_heads)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return cast(int, self.config.hidden_size)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return getattr(self.config, "head_dim", None) or self.hidden_size // self.heads


class Layer(int):
    """The index of a decoder layer that also knows the call it is part of.

    Attributes:
        call: the forward call: the layout of everything read so far, and where this call's queries stand.
        memory: what the intervention remembers of this prompt; empty at its start.
        stats: what the intervention did in this wrap, for `report`.
    """

    call: Call
    memory: dict[Any, Any]
    stats: dict[Any, Any]

    @staticmethod
    def at(index: int, call: Call, place: int) -> Layer:
        """The layer `index` as the intervention at `place` in the wrap sees it."""
        layer = Layer(index)
        layer.call = call
        layer.memory = call.memory.setdefault(place, {})
        layer.stats = call.stats.setdefault(place, {})
        return layer

    @property
    def layout(self) -> PromptLayout:
        """What every position read so far is, those of this call included."""
        return self.call.layout

    @property
    def is_prompt(self) -> bool:
        """Whether this call reads prompt tokens rather than generated ones."""
        return self.call.is_prompt

    @property
    def queries(self) -> slice:
        """The positions of this call's queries in the layout."""
        return slice(self.call.start, self.call.start + self.call.queries)


class Intervention:
    """Base class of all interventions; subclass it, override one site, and pass an instance to `wrap`.

    A subclass is usually a frozen dataclass, so that its parameters can be written as a string
    (`lvlm_attn.parse`). Sites:

    - `observe(layer, hidden)`: read the residual stream that enters a layer.
    - `visibility(layer)`: say which keys a query may read, as a table over groups of positions.
    - `extra_keys(layer)`: let queries read keys and values from elsewhere, beside those of the sequence.
    - `reweigh(layer)`: say in structured form how softmax weights change; fast on every backend.
    - `edit_weights(layer, weights)`: change the whole weight matrix; slow, refused above a byte limit.
    - `readout(layer)` and `read(layer, weights, index, is_read)`: look at the softmax weights of some rows; or
      `readout(layer)` and `measure(layer, reading)`: at what can be read off them without holding them all.
    - `scale_heads(layer, heads)`: change the outputs of the heads just before the output projection.
    - `modules(layer)`: add something to the residual stream behind the attention of a layer.
    - `frozen(layer)`: let a layer leave some positions as they came in.
    - `edit_logits(call, logits)`: change the logits of a forward call.
    - `edit_embeds(call, embeds)`: change the embeddings that enter the first layer, and what else the language
      model is given (`call.inputs`).
    - `vision(target)`: ask for rows of the image encoder's attention, found in `call.vision`.
    - `rewrite(request)`, `views(request)` and `fuse(main, views, step)`: ask something else, or something beside
      it, and join the logits; `loop(request)`: decode in another way. In `lvlm.generate` only.

    `conflicts` says of other methods, by name, why they cannot be in the same wrap; one of the two has to say it.
    `beams` is the number of beams that evaluations and the command line search with.

    `layer` is an int that also carries the layout of the prompt and the memory of the intervention; see
    `Layer`. An attribute `layers` chooses the layers (see `lvlm_attn.interventions.layers`); without it all are
    acted on.

    Example:
        >>> class Ablate(Intervention):
        ...     def scale_heads(self, layer, heads):
        ...         heads = heads.clone()
        ...         heads[:, :, 3] = 0  # (batch, queries, heads, head_dim)
        ...         return heads
    """

    name: ClassVar[str] = ""
    needs_image: ClassVar[bool] = False
    beams: ClassVar[int] = 1
    conflicts: ClassVar[Mapping[str, str]] = {}
    layers: Layers = None

    def observe(self, layer: Layer, hidden: Tensor) -> None:
        """Reads the residual stream `(batch, queries, hidden)` that enters `layer`."""

    def visibility(self, layer: Layer) -> Visibility | None:
        """Returns what the queries of this call may read at `layer`, or None for plain causality."""
        return None

    def extra_keys(self, layer: Layer) -> ExtraKeys | None:
        """Returns further keys and values that queries of this call read at `layer`, or None for none."""
        return None

    def reweigh(self, layer: Layer) -> Reweighing | None:
        """Returns how `layer` changes softmax weights, or None to leave them as they are."""
        return None

    def edit_weights(self, layer: Layer, weights: Tensor) -> Tensor:
        """Returns new softmax weights for `(batch, heads, queries, keys)`."""
        return weights

    def readout(self, layer: Layer) -> Tensor | Readout | None:
        """Returns what to look at in this call, or None for nothing; both see what all interventions left.

        A tensor `(batch, queries)` is True at the queries whose weights `read` is to see: few of them, since their
        weights are all held at once. A `Readout` asks for class masses, entropy, column sums or the mean over heads,
        which `measure` gets; on a GPU kernels read them in memory of rows plus keys.
        """
        return None

    def read(self, layer: Layer, weights: Tensor, index: Tensor, is_read: Tensor) -> None:
        """Looks at softmax weights.

        Args:
            layer: the layer.
            weights: `(batch, heads, rows, keys)`, in fp32.
            index: `(batch, rows)`, which query of this call each row is.
            is_read: `(batch, rows)`, False at rows that only fill up and were not asked for.
        """

    def measure(self, layer: Layer, reading: Reading) -> None:
        """Looks at what the `Readout` asked for.

        Example:
            >>> class Focus(Intervention):
            ...     def readout(self, layer):
            ...         rows = torch.ones(layer.layout.batch, layer.call.queries, dtype=torch.bool)
            ...         return Readout(rows, entropy=True)
            ...
            ...     def measure(self, layer, reading):
            ...         print(int(layer), reading.entropy.mean())  # over samples, heads and rows, in nats
        """

    def scale_heads(self, layer: Layer, heads: Tensor) -> Tensor | None:
        """Returns new head outputs for `(batch, queries, heads, head_dim)`, or None to leave them."""
        return None

    def modules(self, layer: Layer) -> Callable[[Tensor], Tensor | None] | None:
        """Returns what is added behind the attention of `layer`, or None for nothing.

        The result maps the residual stream behind the attention, `(batch, queries, hidden)`, before the norm of
        the feed-forward block, to what is added to it (same shape), or None.
        """
        return None

    def frozen(self, layer: Layer) -> Tensor | None:
        """Returns `(batch, queries)`, True at positions that leave `layer` as they entered, or None for none."""
        return None

    def edit_logits(self, call: Call, logits: Tensor) -> Tensor | None:
        """Returns new logits for `(batch, kept, vocabulary)`, the last positions of a call, or None."""
        return None

    def edit_embeds(self, call: Call, embeds: Tensor) -> Tensor | None:
        """Returns new embeddings for `(batch, queries, hidden)`, images in place, or None to leave them."""
        return None

    def vision(self, target: Target) -> Sequence[VisionRows]:
        """Returns which rows of the image encoder's attention are read into `call.vision`; none by default."""
        return ()

    def rewrite(self, request: Request) -> Request:
        """Returns what is asked instead of `request`: other images, or more of them. For `lvlm.generate`."""
        return request

    def views(self, request: Request) -> Sequence[Request]:
        """Returns further views of `request`, of as many rows, that are read beside it in the same batch.

        `fuse` gets their logits. For `lvlm.generate`.
        """
        return ()

    def fuse(self, main: Tensor, views: Sequence[Tensor], step: int) -> Tensor:
        """Joins the logits of the views with those of the request itself.

        Args:
            main: `(batch, vocabulary)` next-token logits in fp32, as earlier interventions left them.
            views: one such tensor per view of this intervention.
            step: 0 for the first generated token.

        Returns:
            `(batch, vocabulary)`; minus infinity where a token must not come.
        """
        return main

    def loop(self, request: Request) -> Callable[..., Any] | None:
        """Returns a decoding loop for `model.generate(custom_generate=...)`, or None for the usual one."""
        return None

    def needs_request(self) -> bool:
        """Whether it acts on requests, and so in `lvlm.generate` only; plain `model.generate` is refused then."""
        return any(self.overrides(site) for site in REQUEST_SITES)

    def rows_at_once(self) -> int | None:
        """How many prompts one `lvlm.generate` may hold; None for any number. Evaluations split their batches."""
        return None

    def begin(self, call: Call, place: int) -> None:
        """Called once per prompt, before its first layer; `call.text_heads` reads the prompt without images.

        `place` is where the intervention stands in the wrap, the key of its memory.
        """

    def is_neutral(self) -> bool:
        """Whether these parameters change nothing, so that nothing is installed."""
        return False

    def fit(self, target: Target) -> Intervention:
        """Checks the parameters against a model and fills in what depends on it.

        Raises:
            LvlmAttnError: if the parameters do not suit the model. Nothing has been changed by then.
        """
        select_layers(self.layers, target.layers, self.title)
        return self

    def layers_at(self, site: str, target: Target) -> Sequence[int]:
        """The layers where a site is called."""
        return select_layers(self.layers, target.layers, self.title)

    def refuse(self, situation: str) -> str | None:
        """Says why a situation cannot be handled, or None if it can.

        Situations: `"chunked_prefill"` (the prompt is read in several passes), `"beams"` (rows change places between
        calls).
        """
        return None

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Turns what was counted into rows for `report`."""
        return []

    @property
    def title(self) -> str:
        """How messages name the intervention."""
        return type(self).__name__

    def overrides(self, site: str) -> bool:
        """Whether the subclass implements a site."""
        return getattr(type(self), site) is not getattr(Intervention, site)

    def __str__(self) -> str:
        """The canonical string, which `lvlm_attn.parse` turns back into an equal object."""
        name = self.name or type(self).__name__.lower()
        parts = []
        for item in parameters(type(self)):
            value = getattr(self, item.name)
            if item.compare and value != item.default:
                parts.append(f"{item.name}={format_value(item.name, value)}")
        return f"{name}:{','.join(parts)}" if parts else name


def parameters(kind: type[Intervention]) -> tuple[dataclasses.Field[Any], ...]:
    """The parameters of a kind of intervention: its dataclass fields, none if it is no dataclass."""
    return dataclasses.fields(cast("Any", kind)) if hasattr(kind, "__dataclass_fields__") else ()


def format_value(name: str, value: Any) -> str:
    """Writes a parameter value the way `lvlm_attn.parse` reads it."""
    if name == "layers" and value is not None:
        return format_layers(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(format_value("", item) for item in value) + "]"
    if isinstance(value, str):
        is_plain = not _NEEDS_QUOTES.search(value) and value.lower() not in (
            "",
            "none",
            "null",
            "true",
            "false",
        )
        return value if is_plain else '"' + value.replace('"', '""') + '"'
    if isinstance(value, (int, float)):
        return str(value)
    raise LvlmAttnError(
        f"Parameter {name!r} holds a {type(value).__name__}, which has no written form; give it in code only."
    )
