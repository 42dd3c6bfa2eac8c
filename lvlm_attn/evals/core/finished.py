"""Finished runs, read back from their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.records import latest_by_id, read_object, read_records
from lvlm_attn.evals.core.run_shape import SCORING, SETTINGS, WHOLE, require_line, require_shape

SEED_FOLDERS = "seed-"


@dataclass(frozen=True)
class Run:
    """A run as it lies on disk.

    Attributes:
        name: what tables call it.
        path: its folder.
        settings: everything that decided the answers.
        scoring: how answers became metrics.
        metrics: what ``metrics.json`` says; empty in a run that was not finished. With several seeds, the means.
        environment: what ``env.json`` says.
        seeds: the answered lines, one list per seed; one list where decoding has no seed.
        failed: how many samples have no answer.
        limit: the `--limit` it was last run with; None for all samples.
    """

    name: str
    path: Path
    settings: Mapping[str, Any]
    scoring: Mapping[str, Any]
    metrics: Mapping[str, Any]
    environment: Mapping[str, Any]
    seeds: tuple[tuple[Mapping[str, Any], ...], ...]
    failed: int = 0
    inner: tuple[Run, ...] = field(default=())
    limit: int | None = None

    @property
    def lines(self) -> tuple[Mapping[str, Any], ...]:
        """The lines of the first seed."""
        return self.seeds[0]

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return str((self.settings.get("benchmark") or {}).get("name", "unknown benchmark"))

    @property
    def generation(self) -> Mapping[str, Any]:
        """Decoding, limits and prompt template."""
        found = self.settings.get("generation", {})
        return found if isinstance(found, Mapping) else {}

    @property
    def methods(self) -> str:
        """The interventions as they are written on the command line."""
        return "+".join(map(str, self.settings.get("interventions") or [])) or "bare model"


def read_run(path: str | Path, name: str | None = None) -> Run:
    """Reads a run folder, or a folder of runs that differ in their seed alone (``seed-0``, ``seed-1``, ...).

    Raises:
        LvlmAttnError: no run is there, or its files are damaged.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise LvlmAttnError(f"run folder {path} {what}; name the --out folder of an evaluation.")
    title = name or path.name or str(path)
    if (path / "config.json").is_file():
        return _read_one(path, title)
    parts = sorted(
        (part for part in path.glob(f"{SEED_FOLDERS}*") if (part / "config.json").is_file()), key=_seed_number
    )
    if not parts:
        raise LvlmAttnError(
            f"{path} is no run folder: there is no config.json in it; name the --out folder of an evaluation."
        )
    return _joined(path, title, [_read_one(part, part.name) for part in parts])


def _seed_number(path: Path) -> tuple[int, str]:
    number = path.name.removeprefix(SEED_FOLDERS)
    return (int(number) if number.isdigit() else 0, number)


def _read_one(path: Path, name: str) -> Run:
    config = read_object(path / "config.json", "run settings")
    samples = path / "samples.jsonl"
    if not samples.is_file() or not samples.stat().st_size:
        raise LvlmAttnError(f"run {path} has no answers; run its evaluation to the end first.")
    try:
        records = read_records(samples, "result file").records
    except LvlmAttnError:
        if (path / "metrics.json").is_file():
            raise
        raise LvlmAttnError(
            f"run {path} was stopped in the middle of an answer; run the same command again, to its end, first."
        ) from None
    lines = [item.value for item in latest_by_id(records)]
    for line in lines:
        require_line(line, samples)
    where = f"run settings {path / 'config.json'}"
    scoring = require_shape(config.get("scoring", {}), SCORING, where, "scoring")
    answered = tuple(line for line in lines if not line.get("error"))
    if not answered:
        raise LvlmAttnError(f"run {path} has no answers; run its evaluation to the end first.")
    return Run(
        name=name,
        path=path,
        settings=require_shape(config.get("settings", {}), SETTINGS, where, "settings"),
        scoring={key: value for key, value in scoring.items() if value is not None},
        metrics=_object(path / "metrics.json"),
        environment=_object(path / "env.json")
        or require_shape(config.get("environment", {}), {}, where, "environment"),
        seeds=(answered,),
        failed=len(lines) - len(answered),
        limit=require_shape(config.get("limit") or 0, WHOLE, where, "limit") or None,
    )


def _object(path: Path) -> dict[str, Any]:
    return read_object(path, path.name) if path.is_file() else {}


def _joined(path: Path, name: str, parts: Sequence[Run]) -> Run:
    first = parts[0]
    for part in parts[1:]:
        for key in {**first.settings, **part.settings}:
            if key != "seed" and first.settings.get(key) != part.settings.get(key):
                raise LvlmAttnError(
                    f"{part.path} differs from {first.path} in {key}, not in the seed alone; "
                    "name single run folders instead."
                )
    return Run(
        name=name,
        path=path,
        settings=first.settings,
        scoring=first.scoring,
        metrics=_object(path / "metrics.json"),
        environment=first.environment,
        seeds=tuple(part.lines for part in parts),
        failed=sum(part.failed for part in parts),
        inner=tuple(parts),
        limit=first.limit,
    )


def generation_of(answers: Path) -> Mapping[str, Any]:
    """Decoding and limits of a `samples.jsonl` of a run folder; empty for answers of other tools."""
    return _setting_of(answers, "generation")


def question_files_of(answers: Path) -> list[str]:
    """Names of the files that the questions of a `samples.jsonl` of a run folder came from, as far as it tells."""
    files = _setting_of(answers, "benchmark").get("files")
    listed = files if isinstance(files, list) else []
    return [str(item["name"]) for item in listed if isinstance(item, Mapping) and "name" in item]


def _setting_of(answers: Path, key: str) -> Mapping[str, Any]:
    config = answers.parent / "config.json"
    if answers.name != "samples.jsonl" or not config.is_file():
        return {}
    settings = read_object(config, "run settings").get("settings")
    found = settings.get(key) if isinstance(settings, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Reads several runs; those of one basename are told apart by their parent folders.

    Raises:
        LvlmAttnError: as :func:`read_run`.

    Example:
        >>> names_of([Path("a/vhr"), Path("b/vhr"), Path("b/var")])
        ['a/vhr', 'b/vhr', 'var']
    """
    places = [Path(path) for path in paths]
    return [read_run(place, name) for place, name in zip(places, names_of(places), strict=True)]


def names_of(places: Sequence[Path]) -> list[str]:
    """The shortest ends of paths, per basename as many folders as it takes to tell them apart."""
    whole = [place.resolve().parts for place in places]
    depth = dict.fromkeys(range(len(places)), 1)
    while True:
        names = ["/".join(parts[-depth[i] :]) for i, parts in enumerate(whole)]
        clashing = [
            i
            for i, name in enumerate(names)
            if depth[i] < len(whole[i])
            and any(names[j] == name and whole[j] != whole[i] for j in range(len(names)))
        ]
        if not clashing:
            break
        for i in clashing:
            depth[i] += 1
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[i] = f"{name} ({seen[name]})"
    return names
