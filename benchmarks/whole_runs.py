"""The command line of benchmarks that time whole `generate` calls on the CPU, every run between two plain ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common import generate_ratios, llava_inputs, peak_beyond, peak_memory, random_llava, save

Runner = Callable[[Any, dict[str, Any], str, int], Callable[[], Any]]
"""Takes a model, its inputs, a variant and a number of new tokens; gives a function that generates once."""


def measure(
    name: str,
    about: str,
    runner: Runner,
    variants: Sequence[str],
    new_tokens: int,
    *,
    beyond_plain: bool = False,
    after: Callable[[Any, dict[str, dict[str, Any]]], dict[str, Any]] | None = None,
) -> None:
    """Times the variants, measures their memory in processes of their own, and prints a table.

    Args:
        name: of the benchmark: module `benchmarks.{name}`, results in `{name}_cpu.json`.
        about: its docstring, whose first line `--help` shows.
        runner: makes the runs.
        variants: the first is plain.
        new_tokens: of a whole run; the prefill is timed with a single one.
        beyond_plain: whether memory is told beyond that of the plain run.
        after: takes the model and the rows of the table, and gives what else is saved.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/{name}_cpu.json")
    parser.add_argument("--memory-of", choices=variants, help=argparse.SUPPRESS)
    options = parser.parse_args()

    model = random_llava()
    inputs = llava_inputs(model)
    if options.memory_of:
        print(peak_beyond(runner(model, inputs, options.memory_of, new_tokens)))
        return

    runs = {count: {one: runner(model, inputs, one, count) for one in variants} for count in (new_tokens, 1)}
    memory = {one: peak_memory(f"benchmarks.{name}", ["--memory-of", one]) for one in variants}
    if beyond_plain:
        memory = {one: value - memory["plain"] for one, value in memory.items()}
    rows = generate_ratios(runs, options.repeats, memory, sign="+" if beyond_plain else "")
    for one, row in rows.items():
        row["memory_beyond_plain_mib" if beyond_plain else "peak_memory_mib"] = memory[one]
    more = {} if after is None else after(model, rows)
    if options.save:
        print(save(f"{name}_cpu", {"repeats": options.repeats, "variants": rows, **more}), file=sys.stderr)
