"""Whether two runs may be compared, and what makes a comparison doubtful."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.finished import Run
from lvlm_attn.evals.core.tally import Line, Tally

if TYPE_CHECKING:
    from lvlm_attn.evals.pairing import Difference

MOVED = 0.1
"""Length, recall or the share of empty answers that changes by more than this is warned about."""
_DECODING = ("decode", "temperature", "plausibility", "num_beams", "repetition_penalty", "suffix")
_FIXED = ("question", "label", "objects", "image")


def require_comparable(reference: Run, run: Run, force: bool = False) -> None:
    """Refuses a comparison in which something other than the method differs.

    Raises:
        LvlmAttnError: runs of different benchmarks; without `force` also runs with other decoding, another token
            limit or other questions.
    """
    if reference.benchmark != run.benchmark:
        raise LvlmAttnError(
            f"{reference.name} is a run of {reference.benchmark} and {run.name} one of {run.benchmark}; "
            "compare runs of one benchmark."
        )
    if force:
        return
    difference = _decoding(reference, run) or _questions(reference, run)
    if difference:
        raise LvlmAttnError(
            f"{reference.name} and {run.name} were not made alike: {difference}; "
            "make one of them again, or compare them all the same with --force (force=True)."
        )


def _decoding(reference: Run, run: Run) -> str | None:
    first, second = reference.generation, run.generation
    for key in _DECODING:
        before, after = (item.get(key, 1 if key == "num_beams" else None) for item in (first, second))
        if before != after:
            return f"decoding differs ({key} is {_short(before)} and {_short(after)})"
    if first.get("max_new_tokens") != second.get("max_new_tokens"):
        return (
            f"the token limit differs (max_new_tokens is {first.get('max_new_tokens')} and "
            f"{second.get('max_new_tokens')})"
        )
    if reference.settings.get("model") == run.settings.get("model") and first.get(
        "prompt_template"
    ) != second.get("prompt_template"):
        return "the prompt template differs"
    return None


def _questions(reference: Run, run: Run) -> str | None:
    named = [item.settings.get("benchmark", {}) for item in (reference, run)]
    first, second = map(_without_names, named)
    for key in {**first, **second}:
        if first.get(key) != second.get(key):
            return f"the questions differ ({_told_apart(key, named[0].get(key), named[1].get(key))})"
    others = {str(line.get("sample_id")): line for line in run.lines}
    for line in reference.lines:
        other = others.get(str(line.get("sample_id")))
        for key in _FIXED:
            if other is not None and line.get(key) != other.get(key):
                return (
                    f"the questions differ ({key} of sample {line.get('sample_id')} is {_short(line.get(key))} and "
                    f"{_short(other.get(key))})"
                )
    return None


def _without_names(value: Any) -> Any:
    """A file is told by its hash, not by what it is called."""
    if isinstance(value, Mapping):
        hashed = "sha256" in value
        return {key: _without_names(item) for key, item in value.items() if not (hashed and key == "name")}
    if isinstance(value, list):
        return [_without_names(item) for item in value]
    return value


def _told_apart(key: str, first: object, second: object) -> str:
    """Files by their names, since nobody knows a hash; anything else by its value."""
    names = [", ".join(_file_names(value)) for value in (first, second)]
    if not all(names):
        return f"{key} is {_short(first)} and {_short(second)}"
    return " and ".join(names) if names[0] != names[1] else f"two files that are both called {names[0]}"


def _file_names(value: object) -> list[str]:
    """The names of all files that a setting holds with their hashes."""
    if isinstance(value, Mapping):
        own = [str(value["name"])] if "sha256" in value and "name" in value else []
        return own + [name for item in value.values() for name in _file_names(item)]
    if isinstance(value, list):
        return [name for item in value for name in _file_names(item)]
    return []


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 50 else text[:47] + "..."


def remarks(
    reference: Run,
    run: Run,
    tally: Tally,
    dropped: int,
    metrics: Mapping[str, Difference],
    first: Mapping[str, Line],
    second: Mapping[str, Line],
    common: Sequence[str],
) -> list[str]:
    """What makes a comparison doubtful, one sentence each; what is left out comes first."""
    found = []
    if dropped:
        what = "sample is" if dropped == 1 else "samples are"
        found.append(
            f"{dropped} {what} left out, which not every run has answered ({len(common)} remain): "
            f"{_why_left_out(reference, run)}"
        )
    if reference.failed or run.failed:
        found.append(f"{reference.failed} and {run.failed} samples failed and have no answer.")
    found += _differing_settings(reference, run)
    before, after = _length(first, common), _length(second, common)
    if "len" in metrics:
        before, after = metrics["len"].before, metrics["len"].after
    if _moved(before, after):
        found.append(
            f"answers are {abs(after / before - 1) * 100:.0f} % {'longer' if after > before else 'shorter'} "
            f"({before:.1f} and {after:.1f} tokens): differences may come from length alone."
        )
    recall = metrics.get("recall")
    if recall is not None and _moved(recall.before, recall.after):
        found.append(
            f"recall {'rose' if recall.difference > 0 else 'fell'} by "
            f"{abs(recall.difference) / recall.before * 100:.0f} % (from {recall.before * 100:.1f} to "
            f"{recall.after * 100:.1f} %): {_recall_hint(tally)}"
        )
    empty = [
        sum(not str(lines[name].get("raw_text") or "").strip() for name in common) / len(common)
        for lines in (first, second)
    ]
    if abs(empty[1] - empty[0]) > MOVED:
        found.append(
            f"{empty[1] * 100:.0f} % of the answers are empty, {empty[0] * 100:.0f} % in the reference: "
            "look at the texts before believing a score."
        )
    for name in (tally.outcome,):
        change = metrics[name]
        if (change.p < 0.05) != (change.p_exchange < 0.05):
            found.append(
                f"changes of {name} gather in few pictures: exchanging whole pictures gives p {change.p_exchange:.3f} "
                f"where single answers give {change.p:.3f}; trust the former."
            )
    return found


def _why_left_out(reference: Run, run: Run) -> str:
    if reference.limit == run.limit:
        return "run an interrupted evaluation again with the same --out to finish it."
    first, second = (
        "no --limit" if item.limit is None else f"--limit {item.limit}" for item in (reference, run)
    )
    return (
        f"{reference.name} was run with {first} and {run.name} with {second}; run one again with the other's."
    )


def _recall_hint(tally: Tally) -> str:
    if "chair_s" in tally.compared:
        return "a caption that names less also errs less."
    return "look at the yes ratio, which moves recall and precision against each other."


def _moved(before: float, after: float) -> bool:
    return before > 0 and abs(after - before) > MOVED * before + 1e-12


def _length(lines: Mapping[str, Line], names: Sequence[str]) -> float:
    """Mean length of an answer in new tokens, in words where tokens were not counted."""
    counts = [lines[name].get("n_new_tokens") for name in names]
    if any(not isinstance(count, int) or count == 0 for count in counts):
        counts = [len(str(lines[name].get("raw_text") or "").split()) for name in names]
    return sum(int(count or 0) for count in counts) / len(counts)


def _differing_settings(reference: Run, run: Run) -> list[str]:
    found = []
    models = [item.settings.get("model", {}) for item in (reference, run)]
    for key, what in (
        ("id", "the model"),
        ("weights", "the model's weights"),
        ("dtype", "the dtype"),
        ("attention", "the attention backend"),
    ):
        before, after = (item.get(key) if isinstance(item, Mapping) else None for item in models)
        if before != after:
            found.append(f"{what} differs ({_short(before)} and {_short(after)}), not the method alone.")
            break
    for key in ("batch_size", "lvlm_attn"):
        before, after = reference.settings.get(key), run.settings.get(key)
        if before != after:
            found.append(
                f"{key} differs ({_short(before)} and {_short(after)}), which can change last digits."
            )
    if dict(reference.scoring) != dict(run.scoring):
        found.append(f"scoring differs; both are scored by the rules of {reference.name}.")
    return found
