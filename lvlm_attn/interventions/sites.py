"""The sites where an intervention can act, in three groups: attention, the residual stream, requests and logits.

`Intervention` joins them. A site does nothing unless a subclass overrides it, and `wrap` calls only those that are
overridden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import Tensor

from lvlm_attn.families.encoder_patches import VisionRows
from lvlm_attn.families.target import Target
from lvlm_attn.kernels.extra import ExtraKeys
from lvlm_attn.kernels.readouts import Reading, Readout
from lvlm_attn.kernels.spec import Reweighing
from lvlm_attn.kernels.visibility import Visibility

if TYPE_CHECKING:
    from lvlm_attn.interventions.context import Layer, State
    from lvlm_attn.interventions.ended import Ended
    from lvlm_attn.prompts.request import Request


Site = TypeVar("Site", bound=Callable[..., Any])


def in_prompts(site: Site) -> Site:
    """Marks an `observe` that has nothing to do while an answer is decoded, so that it is not called there.

    A subclass that overrides the site marks its own, or has it called at every token.

    Example:
        >>> class Widest(Intervention):
        ...     @in_prompts
        ...     def observe(self, layer, hidden):
        ...         layer.memory[layer.index] = hidden.abs().amax((0, 1))  # of the prompt
    """
    cast("Any", site).is_in_prompts = True
    return site


def is_in_prompts(site: object) -> bool:
    """Whether a site is marked by `in_prompts`."""
    return bool(getattr(site, "is_in_prompts", False))


class AttentionSites:
    """What happens inside the attention of a layer, in this order."""

    def visibility(self, layer: Layer) -> Visibility | None:
        """Returns what the queries of this call may attend to at `layer`, or None for plain causality."""
        return None

    def extra_keys(self, layer: Layer) -> ExtraKeys | None:
        """Returns further keys and values that queries of this call attend to at `layer`, or None for none."""
        return None

    def reweigh(self, layer: Layer) -> Reweighing | None:
        """Returns how `layer` changes softmax weights, or None to leave them as they are.

        An `Amplification` changes scores before the softmax, a `Redistribution` moves weight after it. Both are fast on
        every backend.
        """
        return None

    def edit_weights(self, layer: Layer, weights: Tensor) -> Tensor:
        """Returns new softmax weights for `(batch, heads, queries, keys)`; slow, refused above a byte limit."""
        return weights

    def readout(self, layer: Layer) -> Readout | None:
        """Returns which rows of the weights `read` gets, and what of them, or None for nothing.

        The weights are those that all interventions left. Class masses, entropy, column sums and the mean over heads
        take memory of rows plus keys; `rows="heads"` holds the weights of every head, so ask for few rows.
        """
        return None

    def read(self, layer: Layer, reading: Reading) -> None:
        """Gets what `readout` asked for.

        Example:
            >>> class Focus(Intervention):
            ...     def readout(self, layer):
            ...         rows = torch.ones(layer.layout.batch, layer.call.queries, dtype=torch.bool)
            ...         return Readout(rows, entropy=True)
            ...
            ...     def read(self, layer, reading):
            ...         print(layer.index, reading.entropy.mean())  # over samples, heads and rows, in nats
        """


class StreamSites:
    """What happens to the residual stream between the embeddings and the last layer."""

    def begin(self, context: Layer) -> None:
        """Called once per prompt, before its first layer; `context.call.text_heads` runs the prompt without images.

        `context` is a layer context whose `index` is None.
        """

    def edit_embeds(self, context: Layer, embeds: Tensor) -> Tensor | None:
        """Returns new embeddings for `(batch, queries, hidden)`, images in place, or None to leave them.

        It may also exchange what else the language model is given (`context.call.inputs`).
        """
        return None

    def observe(self, layer: Layer, hidden: Tensor) -> None:
        """Gets the hidden states `(batch, queries, hidden)` that enter `layer`, to look at."""

    def scale_heads(self, layer: Layer, heads: Tensor) -> Tensor | None:
        """Returns new head outputs for `(batch, queries, heads, head_dim)`, or None to leave them.

        They stand just before the output projection.
        """
        return None

    def modules(self, layer: Layer) -> Callable[[Tensor], Tensor | None] | None:
        """Returns what is added after the attention of `layer`, or None for nothing.

        The result maps the hidden states after the attention, `(batch, queries, hidden)`, before the norm of the
        feed-forward block, to what is added to them (same shape), or None.
        """
        return None

    def frozen(self, layer: Layer) -> Tensor | None:
        """Returns `(batch, queries)`, True at positions that bypass `layer`, or None for none."""
        return None

    def vision(self, target: Target) -> Sequence[VisionRows]:
        """Returns which rows of the image encoder's attention are kept in `call.vision`; none by default."""
        return ()


class RequestSites:
    """What is asked, in how many views, how it is decoded, and what becomes of the logits."""

    def rewrite(self, request: Request) -> Request:
        """Returns what is asked instead of `request`: other images, or more of them. For `lvlm.generate`."""
        return request

    def views(self, request: Request) -> Sequence[Request]:
        """Returns further views of `request`, of as many rows, that are decoded beside it in the same batch.

        `fuse` gets their logits. For `lvlm.generate`.
        """
        return ()

    def fuse(self, main: Tensor, views: Sequence[Tensor], step: int) -> Tensor:
        """Joins the logits of the views with those of the request itself. For `lvlm.generate`.

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

    def edit_logits(self, context: Layer, logits: Tensor) -> Tensor | None:
        """Returns new logits for `(batch, kept, vocabulary)`, the last positions of a call, or None."""
        return None

    def generated(self, ended: Ended, state: State) -> None:
        """Called when a `generate` of the model has returned; `state` is what the intervention holds."""


ATTENTION_SITES = ("visibility", "extra_keys", "reweigh", "edit_weights", "readout")
"""Sites that the attention registry serves; `read` follows `readout`."""

LAYER_SITES = ("observe", "scale_heads", "modules", "frozen")
"""Sites with hooks of their own at single layers."""

REQUEST_SITES = ("rewrite", "views", "fuse", "loop")
"""Sites that need `lvlm.generate`."""

SITES = tuple(
    name
    for group in (AttentionSites, StreamSites, RequestSites)
    for name in vars(group)
    if not name.startswith("_")
)
"""The names of all sites."""
