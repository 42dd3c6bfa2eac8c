"""Asks a model the samples of any benchmark, in batches, and keeps every answer as soon as it exists."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.evals.core.plan import Group, batches, groups, left_to_ask
from lvlm_attn.evals.core.run_folder import RunFolder
from lvlm_attn.prompts.images import as_image

if TYPE_CHECKING:
    from PIL.Image import Image

AHEAD = 1
"""Batches made ready while the model answers."""


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
    """Anything that answers a batch of prompts about pictures.

    One that also has ``prepare(images, prompts)`` and ``answer_prepared(prepared, seeds)`` gets its next batch made
    ready while it answers.
    """

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


def run(
    samples: Sequence[Sample],
    answerer: Answerer,
    folder: RunFolder,
    batch_size: int = 8,
    share_identical: bool = True,
    seed: int = 0,
    show_progress: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Answers what the folder does not hold yet and returns the line of every sample.

    A picture that cannot be read makes one failed sample (its line holds ``error``) and the run goes on. A batch for
    which memory does not suffice is halved, and so are those after it. Several ranks take turns with the batches.

    Args:
        samples: the samples, in order.
        answerer: the model.
        folder: where lines go.
        batch_size: prompts per forward pass.
        share_identical: ask equal prompts about equal pictures once; right for deterministic decoding only.
        seed: the run's seed.
        show_progress: draw a progress bar on standard error.
        on_note: told what the user should know, such as a batch size that is too large.

    Returns:
        One line per sample, in the order of ``samples``.

    Raises:
        LvlmAttnError: ``batch_size`` below 1, two samples of one id, or a folder that cannot be written any more.
        RunInterrupted: Ctrl-C; all finished batches are kept.
    """
    if batch_size < 1:
        raise LvlmAttnError(f"batch size is {batch_size}; it must be at least 1.")
    wanted = [sample.sample_id for sample in samples]
    if len(set(wanted)) < len(wanted):
        raise LvlmAttnError("two samples share one sample_id; ids must be unique in a benchmark.")
    with folder:
        ranks = folder.ranks
        _copy_known(samples, folder, share_identical)
        planned = batches(samples, batch_size, share_identical)
        left = left_to_ask(planned, folder.answered(), set(folder.lines))[ranks.rank :: ranks.count]
        count = sum(len(group) for batch in left for group in batch)
        asking = _Asking(answerer, seed, on_note or (lambda text: None))
        try:
            with _progress(count if ranks.count > 1 else len(samples), count, show_progress) as bar:
                for lines in asking.answers(left):
                    folder.append([line for line in lines if not folder.has_answer(line["sample_id"])])
                    bar.update(len(lines))
        except KeyboardInterrupt:
            count = len(set(wanted) & folder.answered())
            raise RunInterrupted(
                f"stopped with {count} of {len(samples)} samples answered and kept in {folder.path}; "
                "run the same command again to go on."
            ) from None
        folder.gather(wanted)
    return [folder.lines[name] for name in wanted]


def _copy_known(samples: Sequence[Sample], folder: RunFolder, share_identical: bool) -> None:
    """On resuming, a twin of an answered sample takes its answer."""
    if not share_identical:
        return
    done = folder.answered()
    for group in groups(samples, share_identical):
        known = next((folder.lines[sample.sample_id] for sample in group if sample.sample_id in done), None)
        if known is not None:
            answer = {name: known.get(name) for name in Answer.__dataclass_fields__}
            lacking = [sample for sample in group if sample.sample_id not in done]
            # All ranks have to know them, to agree on what is left; one has to write them.
            folder.append(
                [_line(sample, answer, known.get("same_as") or known["sample_id"]) for sample in lacking],
                is_written=folder.ranks.is_first,
            )


@dataclass(frozen=True)
class _Ready:
    """A piece of a batch, as far as it can be made ready without the model."""

    groups: list[Group]
    images: list[Image]
    prepared: Any


class _Asking:
    """Answers batches, the next of them made ready meanwhile; remembers how many prompts memory takes."""

    def __init__(self, answerer: Answerer, seed: int, on_note: Callable[[str], None]) -> None:
        self._answerer, self._seed, self._note = answerer, seed, on_note
        self._limit: int | None = None
        self._prepare: Callable[..., Any] | None = getattr(answerer, "prepare", None)
        self._at_once: int | None = getattr(answerer, "rows_at_once", None)

    def answers(self, planned: Sequence[list[Group]]) -> Iterator[list[dict[str, Any]]]:
        waiting: deque[Future[tuple[list[dict[str, Any]], list[_Ready]]]] = deque()
        todo = iter(planned)
        with ThreadPoolExecutor(1, "prepare") as pool:
            try:
                for batch in todo:
                    waiting.append(pool.submit(self._make_ready, batch))
                    if len(waiting) > AHEAD:
                        yield self._answered(*waiting.popleft().result())
                while waiting:
                    yield self._answered(*waiting.popleft().result())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _make_ready(self, batch: Sequence[Group]) -> tuple[list[dict[str, Any]], list[_Ready]]:
        """Lines of pictures that cannot be read, and what is to be asked."""
        failed: list[dict[str, Any]] = []
        rows: list[tuple[Group, Image]] = []
        opened: dict[str, Image | LvlmAttnError] = {}
        for group in batch:
            first = group[0]
            if first.image_name not in opened:
                opened[first.image_name] = _opened(first)
            found = opened[first.image_name]
            if isinstance(found, LvlmAttnError):
                failed += [_line(sample, {"raw_text": None, "error": str(found)}) for sample in group]
            else:
                rows.append((group, found))
        size = min(filter(None, (self._limit, self._at_once, len(rows))), default=1)
        return failed, [self._piece(rows[i : i + size]) for i in range(0, len(rows), size)]

    def _piece(self, rows: Sequence[tuple[Group, Image]]) -> _Ready:
        listed, images = [group for group, _ in rows], [image for _, image in rows]
        prompts = [group[0].prompt for group in listed]
        prepared = None if self._prepare is None else self._prepare(images, prompts)
        return _Ready(listed, images, prepared)

    def _answered(self, failed: list[dict[str, Any]], pieces: Sequence[_Ready]) -> list[dict[str, Any]]:
        """All lines of a batch at once: a batch is on disk whole or not at all, but for a torn end."""
        return [*failed, *(line for piece in pieces for line in self._ask(piece))]

    def _ask(self, piece: _Ready) -> list[dict[str, Any]]:
        if self._limit is not None and len(piece.groups) > self._limit:
            return self._in_parts(piece)
        start = time.perf_counter()
        first = [group[0] for group in piece.groups]
        seeds = [sample_seed(self._seed, sample.sample_id) for sample in first]
        try:
            if self._prepare is None:
                answers = self._answerer.answer(piece.images, [item.prompt for item in first], seeds)
            else:
                answers = self._answerer.answer_prepared(piece.prepared, seeds)  # type: ignore[attr-defined]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "out of memory"
        else:
            seconds = round((time.perf_counter() - start) / len(first), 4)
            return [
                _line(
                    sample,
                    {**asdict(answer), "latency_s": seconds},
                    group[0].sample_id if sample is not group[0] else None,
                )
                for group, answer in zip(piece.groups, answers, strict=True)
                for sample in group
            ]
        # Outside the handler, whose traceback would keep the tensors that did not fit.
        _free_memory()
        return self._ask_halves(piece, reason)

    def _ask_halves(self, piece: _Ready, reason: str) -> list[dict[str, Any]]:
        count = len(piece.groups)
        if count == 1:
            text = (
                f"one prompt alone does not fit into memory ({reason}); use a smaller model, dtype or image."
            )
            return [
                _line(sample, {"raw_text": None, "error": text}) for group in piece.groups for sample in group
            ]
        self._limit = (count + 1) // 2
        self._note(f"memory does not suffice for {count} prompts at once; going on with {self._limit}.")
        return self._in_parts(piece)

    def _in_parts(self, piece: _Ready) -> list[dict[str, Any]]:
        rows = list(zip(piece.groups, piece.images, strict=True))
        size = self._limit or len(rows)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return [line for part in parts for line in self._ask(self._piece(part))]


def _opened(sample: Sample) -> Image | LvlmAttnError:
    """The picture of a sample, or why it cannot be read."""
    try:
        return as_image(sample.image)
    except LvlmAttnError as error:
        return error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory does not suffice, on a GPU or in the machine."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    words = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def _free_memory() -> None:
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


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


def _progress(total: int, left: int, show: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=total - left, unit="sample", disable=not show, dynamic_ncols=True)
