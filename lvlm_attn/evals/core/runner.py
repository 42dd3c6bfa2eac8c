"""Asks a model the samples of any benchmark, in batches, and keeps every answer as soon as it exists."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.evals.core.run_folder import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Answer:
    """What a model gave for one prompt.

    Attributes:
        raw_text: the decoded answer without special tokens, otherwise untouched.
        prompt: the whole text sent, with chat template and suffix.
        n_prompt_tokens: prompt length without padding, image tokens included.
        n_new_tokens: answer length, the end token included.
        finish_reason: ``"eos"`` or ``"length"``.
        first_token: probability of yes and of no as the first answer token, where asked for.
    """

    raw_text: str
    prompt: str = ""
    n_prompt_tokens: int = 0
    n_new_tokens: int = 0
    finish_reason: str = "eos"
    first_token: Mapping[str, float] | None = None


class Answerer(Protocol):
    """Anything that answers a batch of prompts about pictures."""

    def answer(
        self, images: Sequence[Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> Sequence[Answer]:
        """One answer per prompt; ``seeds`` drive sampling, one per prompt, and nothing else does."""
        ...


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message tells what is kept and how to go on."""


def sample_seed(seed: int, sample_id: str) -> int:
    """Seed of one sample, from the run's seed and its id alone: neither batching nor resuming changes it."""
    return int.from_bytes(sha256(f"{seed}/{sample_id}".encode()).digest()[:7], "big")


def load_image(source: Image | Path) -> Image:
    """Returns the picture in RGB.

    Raises:
        LvlmAttnError: the file is missing, truncated or no picture.
    """
    from PIL import Image, UnidentifiedImageError

    if not isinstance(source, Path):
        return source.convert("RGB")
    try:
        with Image.open(source) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise LvlmAttnError(f"image {source} does not exist; check the image folder.") from None
    except UnidentifiedImageError as error:
        raise LvlmAttnError(f"image {source} cannot be read: it is no picture in a known format.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise LvlmAttnError(
            f"image {source} cannot be read ({error}); it seems damaged or cut off, fetch it again."
        ) from error


def run(
    samples: Sequence[Sample],
    answerer: Answerer,
    folder: RunFolder,
    batch_size: int = 8,
    share_identical: bool = True,
    seed: int = 0,
    show_progress: bool = False,
) -> list[dict[str, Any]]:
    """Answers what the folder does not hold yet and returns the line of every sample.

    A picture that cannot be read makes one failed sample (its line holds ``error``) and the run goes on.

    Args:
        samples: the samples, in order.
        answerer: the model.
        folder: where lines go.
        batch_size: prompts per forward pass.
        share_identical: ask equal prompts about equal pictures once; right for deterministic decoding only.
        seed: the run's seed.
        show_progress: draw a progress bar on standard error.

    Returns:
        One line per sample, in the order of ``samples``.

    Raises:
        LvlmAttnError: ``batch_size`` below 1, or two samples of one id.
        RunInterrupted: Ctrl-C; all finished batches are kept.
    """
    if batch_size < 1:
        raise LvlmAttnError(f"batch size is {batch_size}; it must be at least 1.")
    wanted = [sample.sample_id for sample in samples]
    if len(set(wanted)) < len(wanted):
        raise LvlmAttnError("two samples share one sample_id; ids must be unique in a benchmark.")
    with folder:
        done = folder.answered()
        _copy_known(samples, folder, share_identical)
        done = folder.answered()
        left = [sample for sample in samples if sample.sample_id not in done]
        groups = _groups(left, share_identical)
        try:
            for lines in _with_progress(
                _answer_groups(groups, answerer, batch_size, seed),
                len(samples),
                len(samples) - len(left),
                show_progress,
            ):
                folder.append(lines)
        except KeyboardInterrupt:
            count = len(set(wanted) & folder.answered())
            raise RunInterrupted(
                f"stopped with {count} of {len(samples)} samples answered and kept in {folder.path}; "
                f"run the same command with --out {folder.path} to go on."
            ) from None
    return [folder.lines[name] for name in wanted]


def _groups(samples: Sequence[Sample], share_identical: bool) -> list[list[Sample]]:
    if not share_identical:
        return [[sample] for sample in samples]
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.image_name, sample.prompt), []).append(sample)
    return list(groups.values())


def _copy_known(samples: Sequence[Sample], folder: RunFolder, share_identical: bool) -> None:
    """On resuming, a twin of an answered sample takes its answer."""
    if not share_identical:
        return
    done = folder.answered()
    for group in _groups(samples, share_identical):
        known = next((folder.lines[sample.sample_id] for sample in group if sample.sample_id in done), None)
        if known is not None:
            answer = {name: known.get(name) for name in Answer.__dataclass_fields__}
            lacking = [sample for sample in group if sample.sample_id not in done]
            folder.append(
                _line(sample, answer, known.get("same_as") or known["sample_id"]) for sample in lacking
            )


def _answer_groups(
    groups: Sequence[list[Sample]], answerer: Answerer, batch_size: int, seed: int
) -> Iterator[list[dict[str, Any]]]:
    batch: list[tuple[list[Sample], Image]] = []
    for group in groups:
        try:
            batch.append((group, load_image(group[0].image)))
        except LvlmAttnError as error:
            yield [_line(sample, {"raw_text": None, "error": str(error)}) for sample in group]
        if len(batch) == batch_size:
            yield _answer_batch(batch, answerer, seed)
            batch = []
    if batch:
        yield _answer_batch(batch, answerer, seed)


def _answer_batch(
    batch: Sequence[tuple[list[Sample], Image]], answerer: Answerer, seed: int
) -> list[dict[str, Any]]:
    start = time.perf_counter()
    first = [group[0] for group, _ in batch]
    seeds = [sample_seed(seed, sample.sample_id) for sample in first]
    answers = answerer.answer([image for _, image in batch], [sample.prompt for sample in first], seeds)
    seconds = round((time.perf_counter() - start) / len(batch), 4)
    lines = []
    for (group, _), answer in zip(batch, answers, strict=True):
        for sample in group:
            same_as = group[0].sample_id if sample is not group[0] else None
            lines.append(_line(sample, {**asdict(answer), "latency_s": seconds}, same_as))
    return lines


def _line(sample: Sample, answer: Mapping[str, Any], same_as: str | None = None) -> dict[str, Any]:
    line = {
        "sample_id": sample.sample_id,
        "image": sample.image_name,
        **sample.fields,
        "question": sample.prompt,
    }
    line.update({key: value for key, value in answer.items() if value is not None or key == "raw_text"})
    if same_as is not None:
        line["same_as"] = same_as
    return line


def _with_progress(
    batches: Iterator[list[dict[str, Any]]], total: int, done: int, show: bool
) -> Iterator[list[dict[str, Any]]]:
    from tqdm import tqdm

    with tqdm(total=total, initial=done, unit="sample", disable=not show, dynamic_ncols=True) as bar:
        for lines in batches:
            yield lines
            bar.update(len(lines))
