"""`la.record()`: keeps what chosen queries attended to, on any attention backend, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, closest, count_of, shown
from lvlm_attn.families.target import Target
from lvlm_attn.hooks.recorded import maps_of
from lvlm_attn.hooks.replay import needs_replay, replay
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.checks import MOST_COUNT, is_whole
from lvlm_attn.interventions.context import Layer, State
from lvlm_attn.interventions.ended import Ended
from lvlm_attn.interventions.layers import Layers, canonical_layers
from lvlm_attn.interventions.sites import in_prompts
from lvlm_attn.kernels.readouts import Reading, Readout
from lvlm_attn.maps.attention_maps import AttentionMaps
from lvlm_attn.maps.recording import PAUSED, Log, Step, predicted_bytes, recorded_keys, wanted_rows
from lvlm_attn.maps.spool import Spool
from lvlm_attn.measures.sinks import find_sink_dims, known_sink_dims, sink_score
from lvlm_attn.runtime.active import acting
from lvlm_attn.runtime.generate_frame import running_generate

ROWS = ("generated", "last", "prompt", "all")
REDUCE = ("heads", "layers", "all")
LIMIT = 4 * 2**30
MOST_BYTES = 2**63 - 1


def record(
    layers: Layers = None,
    heads: int | Sequence[int] | None = None,
    rows: str | Sequence[int] = "generated",
    *,
    reduce: str | None = None,
    sinks: bool = False,
    limit: int = LIMIT,
    to: str | Path | None = None,
) -> Record:
    """An intervention that records attention and changes nothing; `lvlm.maps` gives what it kept.

    Weights are recorded as the model used them, after everything that other interventions in the wrap do, in
    memory of rows times keys; no matrix of queries times keys is made. Of a batch with further views (VCD, ...) the
    rows asked for are recorded. After a beam search the returned answers are decoded once more to record them.

    Args:
        layers: which layers (see `lvlm_attn.interventions.layers`); None for all.
        heads: which heads; None for all.
        rows: which queries. `"generated"`: for every answer token the query whose logits chose it, which for the
            first one is the last token of the prompt. `"last"`: that one alone. `"prompt"`: every prompt token.
            `"all"`: every prompt token, and the answer's. Or positions in the padded sequence, negative ones counted
            from the end of the prompt.
        reduce: `"heads"`, `"layers"` or `"all"` (both) averages while recording; None keeps everything.
        sinks: also keep VAR's sink score of every prompt position (arXiv 2503.03321), for the view `no_sinks`.
        limit: most bytes that a recording may take; predicted from the prompt and `max_new_tokens` before it begins.
        to: a folder; weights are then streamed into files in it, and `maps.weights` reads them from there.

    Returns:
        An intervention for `wrap`.

    Raises:
        LvlmAttnError: if a parameter is out of range; when a prompt begins, if it would take more than `limit`.

    Example:
        >>> with la.wrap(model, la.VAR(), la.record(layers="10..20"), processor=processor) as lvlm:  # doctest: +SKIP
        ...     lvlm.generate(images=[image], prompts=["What is on the table?"], max_new_tokens=32)
        >>> lvlm.maps["cup"].overlay()  # doctest: +SKIP
    """
    return Record(layers, heads, rows, reduce=reduce, sinks=sinks, limit=limit, to=to)


@dataclass(frozen=True)
class Record(Intervention):
    """See `record`.

    Attributes:
        layers: which layers.
        heads: which heads.
        rows: which queries.
        reduce: what is averaged.
        sinks: whether sink scores are kept.
        limit: most bytes.
        to: folder for the weights.
        sink_dims: the dimensions that mark sinks, found by `fit`.
    """

    name: ClassVar[str] = "record"

    layers: Layers = None
    heads: int | Sequence[int] | None = None
    rows: str | Sequence[int] = "generated"
    reduce: str | None = None
    sinks: bool = False
    limit: int = LIMIT
    to: str | Path | None = None
    sink_dims: tuple[int, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", canonical_layers(self.layers, "record"))
        if isinstance(self.rows, str):
            if self.rows not in ROWS:
                raise LvlmAttnError(
                    f"record: rows={self.rows!r} is no choice.{closest(self.rows, ROWS)} Choose {', '.join(ROWS)}, or "
                    f"a list of positions."
                )
        else:
            object.__setattr__(self, "rows", _whole_numbers("rows", self.rows))
        if self.heads is not None:
            object.__setattr__(self, "heads", tuple(sorted(set(_whole_numbers("heads", self.heads)))))
        if self.reduce is not None and self.reduce not in REDUCE:
            raise LvlmAttnError(
                f"record: reduce={self.reduce!r} is no choice.{closest(str(self.reduce), REDUCE)} Choose "
                f"{', '.join(REDUCE)}, or leave it out."
            )
        if self.to is not None and not isinstance(self.to, (str, Path)):
            raise LvlmAttnError(f"record: to={shown(self.to)} must be the path of a folder.")
        if not is_whole(self.limit, 1, MOST_BYTES):
            raise LvlmAttnError(f"record: limit={self.limit!r} must be a whole number of bytes above 0.")

    def fit(self, target: Target) -> Record:
        """Checks layers and heads, and finds the sink dimensions if scores are wanted."""
        fitted = super().fit(target)
        need_heads(cast("tuple[int, ...]", self.heads or ()), target.heads, "record")
        dims: tuple[int, ...] = ()
        if self.sinks:
            dims = known_sink_dims(target.config) or find_sink_dims(target).dims
        return replace(fitted, sink_dims=dims)

    @property
    def title(self) -> str:
        """As people write it."""
        return self.name

    # While a prompt is decoded.

    def begin(self, context: Layer) -> None:
        """Predicts what will be held, and refuses what is above the limit."""
        call = context.call
        generation = running_generate(call.target.parts.base)
        if PAUSED.get() or (generation is not None and generation.beams > 1):
            return
        context.memory["log"] = Log(spool=self._spool(context.stats))
        length = call.length if generation is None else generation.prompt_length
        longest = length if generation is None else max(generation.max_length or length, length)
        self._need_rows(length, longest, is_known=generation is not None)
        early = recorded_keys(self.rows, length, longest)
        count = len(early)
        batch = call.prompt.batch // (1 + call.views)
        layers = 1 if self.reduce in ("layers", "all") else len(_layers(self, call.target))
        heads = 1 if self.reduce in ("heads", "all") else len(_heads(self, call.target))
        size = predicted_bytes(batch, layers, heads, count, max(longest - 1, length), sum(early))
        context.stats["predicted"] = size
        if size > self.limit and self.to is None:
            raise LvlmAttnError(
                f"Recording {count_of(count, 'row')} on up to {longest} keys in {count_of(layers, 'layer')} of "
                f"{count_of(heads, 'head')} for {count_of(batch, 'sample')} would take {size / 2**20:,.1f} MiB, above "
                f"limit={self.limit / 2**20:,.1f} MiB; choose layers=, pass reduce='heads', a lower max_new_tokens, "
                f"to=folder, or a higher limit=."
            )

    def _need_rows(self, prompt: int, longest: int, *, is_known: bool) -> None:
        """Refuses positions of which none can be read; calls without `generate` may go on to any length."""
        if isinstance(self.rows, str):
            return
        last = longest - 2 if is_known and longest > prompt else prompt - 1  # the last token is not read
        is_in = [-prompt <= row <= last or (row > last and not is_known) for row in self.rows]
        if not any(is_in):
            raise LvlmAttnError(
                f"record: rows={shown(list(self.rows))} are out of range; this prompt and its answer are read up to "
                f"position {last}, counted from 0, or from -1 back to -{prompt} from the end of the prompt."
            )

    def _spool(self, stats: dict[Any, Any]) -> Spool | None:
        """Where this prompt's weights go; without a cache every step begins the prompt anew, in the same place."""
        if self.to is None:
            return None
        known = stats.get("spool")
        if known is None or known.is_whole:
            known = stats["spool"] = Spool(Path(self.to))
        known.clear()
        return cast("Spool", known)

    @in_prompts
    def observe(self, layer: Layer, hidden: Tensor) -> None:
        """Keeps the sink scores of prompt positions, if they are wanted."""
        log = layer.memory.get("log")
        if not self.sinks or log is None or not layer.is_prompt:
            return
        scores = sink_score(hidden, self.sink_dims)[: _main_rows(layer)]
        before = log.sinks.get(layer.index)
        start = layer.queries.start
        if before is not None and start:
            kept = before[:, :start]
            scores = torch.cat((torch.nn.functional.pad(kept, (0, start - kept.shape[1])), scores), 1)
        log.sinks[layer.index] = scores

    def layers_at(self, site: str, target: Target) -> Sequence[int]:
        """The chosen layers; sink scores only where they are wanted."""
        return () if site == "observe" and not self.sinks else super().layers_at(site, target)

    def readout(self, layer: Layer) -> Readout | None:
        """Asks for the rows of this call, once for all layers."""
        if "log" not in layer.memory:
            return None
        wanted, _ = layer.shared("rows", partial(self._begin_call, layer))
        return wanted

    def read(self, layer: Layer, reading: Reading) -> None:
        """Keeps the weights of one layer."""
        _, step = layer.shared("rows", partial(self._begin_call, layer))
        assert step is not None
        log: Log = layer.memory["log"]
        weights = cast("Tensor", reading.rows).detach()[: _main_rows(layer)].float()
        if self.heads is not None and weights.shape[1] > 1:
            weights = weights.index_select(1, self._heads_on(layer, weights.device))
            weights = weights.mean(1, keepdim=True) if self.reduce in ("heads", "all") else weights
        # A static cache has more columns than there are positions, and a sliding one fewer.
        length = layer.call.length
        weights = weights[..., :length] if weights.shape[-1] > length else weights
        if weights.shape[-1] < length:
            weights = torch.nn.functional.pad(weights, (length - weights.shape[-1], 0))
        weights = step.ordered(weights)
        if weights.untyped_storage().nbytes() > weights.numel() * weights.element_size():
            weights = weights.clone()  # or rows of views and columns past the sequence would be held along
        if self.reduce not in ("layers", "all"):
            log.add(step, layer.index, weights)
            return
        layers = _layers(self, layer.call.target)
        total = None if layer.index == layers[0] else layer.memory.get("sum")
        layer.memory["sum"] = weights if total is None else total.add_(weights)
        if layer.index == layers[-1]:
            log.add(step, "mean", layer.memory.pop("sum").div_(len(layers)))

    def _begin_call(self, layer: Layer) -> tuple[Readout | None, Step | None]:
        """Which rows of this call are kept, and where they go."""
        call, main = layer.call, _main_rows(layer)
        generation = running_generate(call.target.parts.base) if call.is_prompt else None
        length = call.length if generation is None else generation.prompt_length
        prompt_length = length if call.is_prompt else call.start
        log: Log = layer.memory["log"]
        log.advance(call.start, cast("Tensor", call.ids)[:main], call.prompt)
        layer.stats.pop("maps", None)
        if call.is_prompt:
            log.prompt_length = prompt_length
            layer.memory["call"] = call.target, call.request, _beside(self)
        prompt = call.layout if call.is_prompt else call.prompt
        own, following = wanted_rows(self.rows, prompt, layer.queries, prompt_length, call.is_prompt)
        is_main = (torch.arange(call.prompt.batch) < main)[:, None]
        own, following = own & is_main, following & is_main
        is_read = own | following
        if not bool(is_read.any()):
            return None, None
        step = Step.of(own[:main], following[:main], call.start, prompt_length)
        log.begin(step)
        is_mean = self.heads is None and self.reduce in ("heads", "all")
        return Readout(_on_device(layer, is_read), rows="mean" if is_mean else "heads"), step

    def _heads_on(self, layer: Layer, device: torch.device) -> Tensor:
        """The chosen heads, brought to a device once for each prompt."""
        key = ("heads", device)
        if key not in layer.memory:
            layer.memory[key] = torch.tensor(self.heads, device=device)
        return cast("Tensor", layer.memory[key])

    # Once it is decoded.

    def generated(self, ended: Ended, state: State) -> None:
        """Makes the maps of a whole answer; one that a search found is decoded once more for that."""
        if needs_replay(ended.options, ended.target.model):
            with ended.undisturbed(state):
                state.memory = {}
                replay(ended)
                memory = state.memory
            state.memory = memory
        log: Log | None = state.memory.get("log")
        if log is not None and log.steps:  # of listed positions, an answer may end before the first
            state.stats["maps"] = maps_of(self, state, ended)

    def result(self, state: State) -> AttentionMaps | None:
        """The maps of the last prompt."""
        log: Log | None = state.memory.get("log")
        if "maps" not in state.stats and log is not None and log.steps:
            state.stats["maps"] = maps_of(self, state, None)
        return cast("AttentionMaps | None", state.stats.get("maps"))

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """How many bytes were predicted for the last prompt."""
        return [{"predicted_mib": stats["predicted"] / 2**20}] if "predicted" in stats else []


def _beside(item: Record) -> tuple[Intervention, ...]:
    """All other interventions that act now, those of outer wraps first."""
    found = [other for running in acting() for other in running.call.interventions]
    return tuple(other for other in found if other is not item)


def _on_device(layer: Layer, is_read: Tensor) -> Tensor:
    """The rows that are read, on the device, where those of single tokens are brought once for a prompt."""
    device = layer.call.prompt.device
    if is_read.shape[1] > 1:
        return is_read.to(device)
    key = ("is_read", device, tuple(is_read[:, 0].tolist()))
    if key not in layer.memory:
        layer.memory[key] = is_read.to(device)
    return cast("Tensor", layer.memory[key])


def _main_rows(layer: Layer) -> int:
    """How many rows of the batch were asked for; views come after them."""
    return layer.call.prompt.batch // (1 + layer.call.views)


def _heads(item: Record, target: Target) -> tuple[int, ...]:
    return tuple(range(target.heads)) if item.heads is None else cast("tuple[int, ...]", item.heads)


def _layers(item: Record, target: Target) -> list[int]:
    """The chosen layers that have weights to record."""
    return [layer for layer in cast("Sequence[int]", item.layers) if layer not in target.skipped_layers]


def need_heads(heads: Sequence[int], count: int, name: str) -> None:
    """Refuses a head that a model of `count` heads per layer does not have.

    Raises:
        LvlmAttnError: if there is one.
    """
    outside = [head for head in heads if not 0 <= head < count]
    if outside:
        raise LvlmAttnError(
            f"{name}: head {outside[0]} is out of range; this model has {count_of(count, 'head')} per layer, numbered "
            f"0 to {count - 1}."
        )


def _whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    listed = tuple(values) if isinstance(values, Iterable) else (values,)
    if not listed or not all(is_whole(value, -MOST_COUNT, MOST_COUNT) for value in listed):
        raise LvlmAttnError(f"record: {name}={shown(values)} must be whole numbers, at least one.")
    return tuple(int(value) for value in listed)
