"""`lvlm-attn map`: what a model looks at while it answers, as a picture or a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_attn.cli.common import (
    Device,
    DeviceMap,
    Dtype,
    Intervene,
    Model,
    Plugin,
    load_model,
    read_interventions,
    say,
    tell,
)
from lvlm_attn.errors import LvlmAttnError, closest

if TYPE_CHECKING:
    from lvlm_attn.interventions.base import Intervention
    from lvlm_attn.maps.attention_maps import AttentionMaps

KINDS = (".png", ".svg", ".pdf", ".html", ".maps")
VIEWS = ("raw", "no_sinks", "relative", "contrast", "rollout")
NEUTRAL = "Write a general description of the image."


# Long because every option of the command is a parameter.
def map_command(
    model: Model,
    image: Annotated[
        list[Path], typer.Option("--image", help="The picture; repeat it for several in one prompt.")
    ],
    prompt: Annotated[str, typer.Option("--prompt", help="What to ask about it.")],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="Where to: .png, .svg, .pdf (a picture), .html (a page), .maps (numbers)."
        ),
    ],
    word: Annotated[
        str | None,
        typer.Option(
            "--word",
            help="A word of the answer; without it every token has a map. A page opens at it.",
            show_default=False,
        ),
    ] = None,
    mention: Annotated[int, typer.Option("--mention", min=1, help="Which mention of the word.")] = 1,
    intervene: Intervene = None,
    answer: Annotated[
        str | None,
        typer.Option("--answer", help="Map this answer instead of the model's own.", show_default=False),
    ] = None,
    view: Annotated[
        str,
        typer.Option(
            "--view",
            help=f"Of a picture: {', '.join(VIEWS)}. A page holds them all, rollout if it is asked for.",
        ),
    ] = "raw",
    layers: Annotated[
        str | None,
        typer.Option("--layers", help="Such as `20`, `10..20`, `-4:`; all if not given.", show_default=False),
    ] = None,
    head: Annotated[
        list[int] | None,
        typer.Option("--head", help="A head; repeat it for several; all if not given.", show_default=False),
    ] = None,
    number: Annotated[
        int, typer.Option("--number", min=1, help="Of several pictures, which one to show.")
    ] = 1,
    smooth: Annotated[bool, typer.Option("--smooth", help="Blend between patches.")] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Length limit of the answer.")
    ] = 64,
    plugin: Plugin = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
) -> None:
    """Show what a model attends to, word by word, and how interventions change that.

    A page (.html) opens offline and lets you choose tokens, layers, heads and views.

    A picture shows one word (--word), or every token of the answer.

    Example: lvlm-attn map --model toy --image photo.png --prompt "Describe this image." -o map.html
    """
    _check(out, view, word, prompt)
    from lvlm_attn.maps.naming import short_name
    from lvlm_attn.prompts.images import open_image

    interventions = read_interventions(intervene)
    if number > len(image):
        raise LvlmAttnError(f"--number {number} chooses among pictures, of which there are {len(image)}.")
    pictures = [open_image(path) for path in image]
    loaded = load_model(model, device, dtype, device_map)
    asked = _Asked(loaded, pictures, prompt, answer, max_new_tokens, layers, head, view)
    runs = [asked.record(())]
    if interventions:
        other = asked.record(interventions)
        runs.append(replace(other, meta={**other.meta, "asked": "+".join(intervene or ())}))
    for maps in runs:
        say(f"{short_name(maps)}: {maps.meta['answers'][0]}")
    neutral = asked.neutral() if view == "contrast" or out.suffix.lower() == ".html" else None
    _write(out, runs, neutral, word, mention, view, number - 1, smooth)
    tell(f"Written to {out}")


class _Asked:
    """A prompt, and how it is recorded."""

    def __init__(
        self,
        loaded: tuple[Any, Any],
        pictures: Sequence[Any],
        prompt: str,
        answer: str | None,
        tokens: int,
        layers: str | None,
        heads: list[int] | None,
        view: str,
    ):
        from lvlm_attn.hooks.record import need_heads
        from lvlm_attn.interventions.layers import select_layers
        from lvlm_attn.wrapping import target_of

        target = target_of(*loaded)
        select_layers(layers, target.layers, "--layers")
        need_heads(heads or (), target.heads, "--head")
        self.loaded, self.pictures, self.prompt, self.answer = loaded, list(pictures), prompt, answer
        self.tokens, self.layers, self.heads = tokens, layers, heads
        self.rows = "all" if view == "rollout" else "generated"

    def record(self, interventions: Sequence[Intervention]) -> AttentionMaps:
        """The maps of one run."""
        from lvlm_attn.hooks.record import record
        from lvlm_attn.wrapping import wrap

        reduce = "heads" if self.rows == "all" else None
        keeper = record(self.layers, self.heads, self.rows, reduce=reduce, sinks=True)
        model, processor = self.loaded
        with wrap(model, *interventions, keeper, processor=processor, no_image="pass") as lvlm:
            lvlm.generate(
                images=[self.pictures],
                prompts=[self.prompt],
                answers=None if self.answer is None else [self.answer],
                max_new_tokens=self.tokens,
                do_sample=False,
                num_beams=max((item.beams for item in interventions), default=1),
            )
            maps: AttentionMaps = lvlm.maps
        return maps

    def neutral(self) -> AttentionMaps:
        """The maps of a prompt that asks for nothing in particular."""
        general = _Asked(self.loaded, self.pictures, NEUTRAL, None, 1, self.layers, self.heads, "raw")
        general.rows = "last"
        return general.record(())


def _check(out: Path, view: str, word: str | None, prompt: str) -> None:
    """Finds out before a model is loaded what cannot go well."""
    if out.suffix.lower() not in KINDS:
        raise LvlmAttnError(
            f"-o {out} has the ending {out.suffix!r}, which is no kind of map; use one of {', '.join(KINDS)}."
        )
    if view not in VIEWS:
        raise LvlmAttnError(f"no view {view!r}.{closest(view, VIEWS)} Choose one of {', '.join(VIEWS)}.")
    if not out.parent.is_dir():
        raise LvlmAttnError(f"the folder {out.parent} does not exist; make it first.")
    if word is not None and not word.strip():
        raise LvlmAttnError("--word is empty; give a word of the answer, or leave it out.")
    if not prompt.strip():
        raise LvlmAttnError("--prompt is empty; say what to ask about the picture.")
    if out.suffix.lower() in (".png", ".svg", ".pdf"):
        from lvlm_attn.maps.draw.style import new_figure

        new_figure(1, 1)


def _write(
    out: Path,
    runs: Sequence[AttentionMaps],
    neutral: AttentionMaps | None,
    word: str | None,
    mention: int,
    view: str,
    image: int,
    smooth: bool,
) -> None:
    kind = out.suffix.lower()
    if kind == ".html":
        other = runs[1] if len(runs) > 1 else None
        start = None if word is None else (word, mention)
        runs[0].to_html(out, intervened=other, neutral=neutral, word=start)
        return
    if kind == ".maps":
        runs[-1].save(out)
        return
    options = {"neutral": neutral} if view == "contrast" else {}
    shown = [maps.view(view, **options) for maps in runs]
    if word is not None:
        shown = [maps[word, mention] for maps in shown]
    several = len(runs[0].layout.grids[0]) > 1
    chosen = {"image": image if several else None, "smooth": smooth}
    if len(shown) > 1:
        figure = shown[0].compare(shown[1], **chosen)
    elif word is not None:
        figure = shown[0].overlay(**chosen)
    else:
        figure = shown[0][:60].strip(**chosen)
    figure.savefig(out)
