"""The command line `lvlm-attn`; its commands live in :mod:`lvlm_attn.cli`, one file per matter.

Torch and transformers are imported when a command needs them, so that ``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from typing import Annotated

import typer

from lvlm_attn._version import __version__
from lvlm_attn.cli import (
    benchmarks,
    chair,
    compare,
    demo,
    doctor,
    evaluate,
    generate,
    info,
    pope,
    reproduce,
    score,
    sweep,
)
from lvlm_attn.cli import map as map_pictures
from lvlm_attn.cli.common import Plugin, Stopped
from lvlm_attn.errors import LvlmAttnError, printable
from lvlm_attn.evals.core.tables import terminal_width

app = typer.Typer(
    name="lvlm-attn",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Change how a vision-language model pays attention while it generates, and measure what that does.",
)
app.command("demo")(demo.demo)
app.command("generate")(generate.generate)
app.command("map")(map_pictures.map_command)
app.add_typer(evaluate.app, name="eval")
evaluate.app.add_typer(score.app, name="score")
evaluate.app.command("sweep")(sweep.sweep)
benchmarks.register()
evaluate.app.command("compare")(compare.compare)
evaluate.app.command("report")(compare.report)
app.add_typer(pope.app, name="pope")
app.add_typer(chair.app, name="chair")
app.command("reproduce")(reproduce.reproduce)
app.command("methods")(info.methods)
app.command("models")(info.models)
app.command("sinks")(info.sinks)
app.command("doctor")(doctor.doctor)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"lvlm-attn {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    plugin: Plugin = None,
) -> None:
    """Change how a vision-language model pays attention while it generates, and measure what that does."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; an error of the user's becomes one sentence and exit code 2.

    Args:
        arguments: what follows the program's name; None takes it from the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    # Both may stand anywhere, as options of every command.
    plugins, rest = _taken([item for item in given if item != "--debug"], "--plugin")
    try:
        app(args=[*plugins, *rest], prog_name="lvlm-attn")
    except Stopped as stopped:
        print(f"\n{printable(str(stopped))}", file=sys.stderr)
        raise SystemExit(130) from None
    except (LvlmAttnError, OSError) as error:
        if debug:
            raise
        _print_error(f"error: {printable(' '.join(_sentence(error).split()))}")
        raise SystemExit(2) from None


def _print_error(text: str) -> None:
    """One sentence, over several lines on a terminal and on one where something else reads it."""
    if sys.stderr.isatty():
        lines = textwrap.wrap(text, terminal_width(), break_long_words=False, break_on_hyphens=False)
        text = "\n".join(lines)
    print(text, file=sys.stderr)


def _taken(arguments: list[str], option: str) -> tuple[list[str], list[str]]:
    """The uses of an option with its values, and the arguments without them."""
    taken: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        item = waiting.pop(0)
        if item == "--":
            rest += [item, *waiting]
            break
        if item == option:
            taken += [item, *waiting[:1]]
            waiting = waiting[1:]
        elif item.startswith(f"{option}="):
            taken.append(item)
        else:
            rest.append(item)
    return taken, rest


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; check the path and its permissions."
    return str(error)


if __name__ == "__main__":
    main()
