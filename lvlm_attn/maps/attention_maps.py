"""`AttentionMaps`: recorded attention, indexed by sample, word, layer, head and image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, count_of
from lvlm_attn.layout.prompt import PromptLayout
from lvlm_attn.maps import picking
from lvlm_attn.maps.drawing import Drawing
from lvlm_attn.maps.layer_key import LayerKey
from lvlm_attn.maps.numbers import Numbers

if TYPE_CHECKING:
    from lvlm_attn.maps.live import Live
    from lvlm_attn.maps.occlusion import Occlusion
    from lvlm_attn.maps.onto_image import MapImage


Word = str | tuple[str, int]


@dataclass(frozen=True, eq=False)
class AttentionMaps(Numbers, Drawing):
    """What some queries attended to, as the model used it.

    A row is one query. Rows of a generated token belong to the query whose logits chose the token, which stands one
    position before it; rows of prompt tokens belong to the token itself. Choosing (`maps["dog"]`, `maps.layer(3)`,
    ...) gives smaller `AttentionMaps`, and `grid`, `pixels` and `text` are means over all that is left.

    Attributes:
        rows: `(batch, rows)`, positions of the queries in the padded sequence; -1 where a sample has fewer rows.
        weights: by layer `(batch, heads, rows, keys)` in fp32 on the CPU, keys by position in the padded sequence.
            Averaged layers are under `"mean"`.
        layout: what every position is.
        ids: `(batch, length)`, token ids; one position longer than the keys where the last token was not read.
        targets: `(batch, rows)`, position of the token that each row is about; -1 where missing.
        pieces: per sample the text of every position, or None where no tokenizer was known.
        images: per sample and image its size, where its patches lie, and the picture itself where known.
        heads: which heads the second dimension of the weights holds; empty where they were averaged.
        extra: by layer `(batch, heads, rows)`, the weight on keys outside the sequence (CrossLMM), where any were.
        sink_scores: by layer `(batch, keys)`, how much each position looks like a sink (see
            `measures.sinks.sink_score`), where they were recorded.
        meta: what else is known: model, interventions, prompts, answers, `view` and its `unit`.

    Example:
        >>> with la.wrap(model, la.record(), processor=processor) as lvlm:  # doctest: +SKIP
        ...     lvlm.generate(images=[image], prompts=["Is there a dog in the image?"], max_new_tokens=8)
        >>> lvlm.maps["Yes"].pixels().sum()  # the weight this answer put on the image  # doctest: +SKIP
        0.412
    """

    rows: Tensor
    weights: Mapping[LayerKey, Tensor]
    layout: PromptLayout
    ids: Tensor
    targets: Tensor
    pieces: tuple[tuple[str, ...], ...] | None = None
    images: tuple[tuple[MapImage, ...], ...] = ()
    heads: tuple[int, ...] = ()
    extra: Mapping[LayerKey, Tensor] = field(default_factory=dict)
    sink_scores: Mapping[LayerKey, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    parent: AttentionMaps | None = field(default=None, repr=False)
    live: Live | None = field(default=None, repr=False)

    # What is there.

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.rows.shape[0]

    @property
    def layers(self) -> tuple[LayerKey, ...]:
        """The layers, ascending; `("mean",)` where they were averaged."""
        return tuple(self.weights)

    @property
    def view_name(self) -> str:
        """What the weights show: `"raw"`, or the name of a view (see `lvlm_attn.maps.views`)."""
        return str(self.meta.get("view", "raw"))

    @property
    def unit(self) -> str:
        """What the numbers are."""
        return str(self.meta.get("unit", "attention weight"))

    @property
    def tokens(self) -> list[str]:
        """The text of the token each row is about, of a single sample."""
        self._lone("tokens")
        return [self.text_of(int(position)) for position in self.targets[0] if position >= 0]

    @property
    def words(self) -> list[str]:
        """The distinct words that have rows, of a single sample."""
        return picking.words(self)

    def text_of(self, position: int) -> str:
        """The text at a position of a single sample; its id as `#17` where no tokenizer was known."""
        self._lone("text_of")
        if self.pieces is None:
            return f"#{int(self.ids[0, position])}"
        return self.pieces[0][position]

    def __len__(self) -> int:
        return self.rows.shape[1]

    def __iter__(self) -> Iterator[AttentionMaps]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        size = sum(item.numel() * 4 for item in self.weights.values()) / 2**20
        layers = ", ".join(map(str, self.layers)) if len(self.layers) < 9 else f"{len(self.layers)} layers"
        heads = f"{len(self.heads)} heads" if self.heads else "heads averaged"
        return (
            f"AttentionMaps({count_of(self.batch, 'sample')}, {count_of(len(self), 'row')} on {self.layout.length} "
            f"keys, layers {layers}, {heads}, view {self.view_name!r}, {size:.1f} MiB)"
        )

    # Choosing.

    def __getitem__(self, key: int | slice | Word) -> AttentionMaps:
        """Rows of a single sample.

        Args:
            key: a word (`"dog"`; `("dog", 2)` for its second mention; several words with blanks between them), which
                may have several tokens; or the number of a row, or a slice of rows.

        Raises:
            LvlmAttnError: if the word was not generated, or there are not as many rows.
        """
        self._lone(f"maps[{key!r}]")
        return self.pick(picking.rows_of(self, key))

    def pick(self, rows: Sequence[int]) -> AttentionMaps:
        """The rows of these numbers, in this order."""
        index = torch.as_tensor(list(rows), dtype=torch.long)
        return replace(
            self,
            rows=self.rows[:, index],
            targets=self.targets[:, index],
            weights={key: value[:, :, index] for key, value in self.weights.items()},
            extra={key: value[:, :, index] for key, value in self.extra.items()},
            parent=self.parent or self,
        )

    def sample(self, index: int) -> AttentionMaps:
        """One sample of the batch, without the rows that it lacks.

        Raises:
            LvlmAttnError: if there are not as many samples.
        """
        if not -self.batch <= index < self.batch:
            raise LvlmAttnError(f"There is no sample {index}; these maps hold {self.batch}, numbered from 0.")
        at = index % self.batch
        kept = (self.rows[at] >= 0).nonzero().flatten()

        def cut(values: Mapping[LayerKey, Tensor]) -> dict[LayerKey, Tensor]:
            return {key: value[at : at + 1, :, kept] for key, value in values.items()}

        return replace(
            self,
            rows=self.rows[at : at + 1, kept],
            targets=self.targets[at : at + 1, kept],
            weights=cut(self.weights),
            extra=cut(self.extra),
            sink_scores={key: value[at : at + 1] for key, value in self.sink_scores.items()},
            layout=self.layout.select([at]),
            ids=self.ids[at : at + 1],
            pieces=None if self.pieces is None else self.pieces[at : at + 1],
            images=self.images[at : at + 1],
            meta={**self.meta, "samples": _chosen(self.meta.get("samples"), at, self.batch)},
            parent=None if self.parent is None else self.parent.sample(at),
            live=None if self.live is None else self.live.narrowed(at, self.batch),
        )

    def layer(self, *layers: LayerKey) -> AttentionMaps:
        """Some of the recorded layers.

        Raises:
            LvlmAttnError: if one was not recorded.
        """
        for layer in layers:
            if layer not in self.weights:
                known = ", ".join(map(str, self.layers))
                raise LvlmAttnError(f"Layer {layer!r} was not recorded; these maps hold layers {known}.")
        return self._narrow(lambda values: {key: values[key] for key in layers if key in values})

    def head(self, *heads: int) -> AttentionMaps:
        """Some of the recorded heads.

        Raises:
            LvlmAttnError: if one was not recorded, or heads were averaged.
        """
        if not self.heads:
            remedy = "record them with reduce=None to choose one"
            if "averaged_heads" in self.meta:
                remedy = f"choose before the view, as in maps.head(0).view({self.view_name!r}, ...)"
            raise LvlmAttnError(f"Heads were averaged in these maps; {remedy}.")
        for head in heads:
            if head not in self.heads:
                known = ", ".join(map(str, self.heads))
                raise LvlmAttnError(f"Head {head} was not recorded; these maps hold heads {known}.")
        index = torch.tensor([self.heads.index(head) for head in heads])
        found = self._narrow(
            lambda values: {
                key: value[:, index] if value.dim() > 2 else value for key, value in values.items()
            }
        )
        return _with_heads(found, tuple(heads))

    def _narrow(self, cut: Any) -> AttentionMaps:
        return replace(
            self,
            weights=cut(self.weights),
            extra=cut(self.extra),
            sink_scores=cut(self.sink_scores),
            parent=None if self.parent is None else self.parent._narrow(cut),
        )

    def view(self, name: str, **options: Any) -> AttentionMaps:
        """The same rows under a view: `"raw"`, `"no_sinks"`, `"relative"`, `"contrast"` or `"rollout"`.

        Args:
            name: see `lvlm_attn.maps.views`, where each has its formula and source.
            **options: of the view; `contrast` takes `neutral=`, maps recorded with a neutral prompt.

        Raises:
            LvlmAttnError: if what the view needs was not recorded.
        """
        from lvlm_attn.maps.views import apply_view

        return apply_view(self, name, **options)

    def occlude(self, word: int | Word, **options: Any) -> Occlusion:
        """How much a word depends on each region of the image; see `lvlm_attn.maps.occlusion`.

        Args:
            word: as in `maps[word]`.
            **options: `image`, `by` (`"keys"` or `"pixels"`), `cells`, `batch`.

        Raises:
            LvlmAttnError: if the model that made the maps is gone, or they were read from a file.
        """
        from lvlm_attn.maps.occlusion import occlude

        return occlude(self, word, **options)

    def save(self, path: str | Path) -> Path:
        """Writes the maps to one safetensors file, whose JSON header holds all that is no tensor.

        Raises:
            LvlmAttnError: if the file cannot be written.
        """
        from lvlm_attn.maps.storage import save

        return save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> AttentionMaps:
        """Reads maps that `save` wrote.

        Raises:
            LvlmAttnError: if the file is missing, damaged, or holds something else.
        """
        from lvlm_attn.maps.storage import load

        return load(Path(path), AttentionMaps)

    def _lone(self, doing: str) -> None:
        if self.batch != 1:
            raise LvlmAttnError(
                f"{doing} needs a single sample, and these maps hold {self.batch}; choose one, as in maps.sample(0)."
            )


def _with_heads(maps: AttentionMaps, heads: tuple[int, ...]) -> AttentionMaps:
    parent = None if maps.parent is None else _with_heads(maps.parent, heads)
    return replace(maps, heads=heads, parent=parent)


def _chosen(samples: Any, index: int, batch: int) -> Any:
    return [samples[index]] if isinstance(samples, (list, tuple)) and len(samples) == batch else samples
