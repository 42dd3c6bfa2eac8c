"""Which field of a record is what: the model's answer, the gold answer, the question, the picture, the id.

The one table of names in circulation. Answers are written by RUCAIBox (`answer`), LLaVA and VCD (`text`), OPERA and
PAI (`caption`), VLMEvalKit (`prediction` beside the gold `answer`), lmms-eval (`resps`, `filtered_resps`, the question
in `doc`), Maxlinn (`sentences`), HALC and LURE (`imgToEval`), and this project (`raw_text`). Names are compared in
lower case, with `-` and blanks as `_`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from lvlm_attn.errors import LvlmAttnError, closest, shown
from lvlm_attn.evals.core.json_text import one_line

PREDICTIONS = (
    "prediction", "response", "output", "raw_text", "pred", "predict", "predicted_answer", "pred_answer",
    "model_answer", "model_prediction", "model_response", "model_output", "generated_text", "generated_answer",
    "gen_answer", "generated", "generation", "completion", "outputs",
)  # fmt: skip
"""Names that only an answer of a model has, the likeliest first."""
FILTERED = ("filtered_resps", "resps")
"""lmms-eval's answers after and before its filters; both are there, and the filtered ones were scored."""
CAPTIONS = ("caption", "generated_caption", "description")
PLAIN = ("text", "answer", "answers")
"""Names that may also hold the question or the gold answer."""
GOLD = (
    "label", "labels", "gt", "gt_label", "gt_answer", "gt_ans", "ground_truth", "groundtruth", "gold", "target",
    "correct_answer", "reference", "references",
)  # fmt: skip
QUESTIONS = ("question", "prompt", "query", "instruction", "text")
IMAGES = (
    "image", "image_source", "image_path", "image_name", "image_file", "img", "img_path", "file_name", "filename",
    "image_id", "img_id",
)  # fmt: skip
IMAGE_IDS = ("image_id", "img_id", *(name for name in IMAGES if not name.endswith("_id")))
IDS = ("question_id", "questionid", "qid")
PLACES = ("index", "id", "doc_id")
"""Ids that may count from 0 or over all splits; they name a question only if they are exactly the ids asked."""

Row = dict[str, Any]
Label = Literal["yes", "no"]
_WHOLE = re.compile(r"([+-]?)0*(\d+)(?:\.0+)?")


@dataclass(frozen=True)
class Choice:
    """What was taken for the model's answers in one file.

    Attributes:
        field: the plain name of the field.
        gold: plain names of fields taken for gold answers.
    """

    field: str
    gold: tuple[str, ...] = ()

    def sentence(self, file: str) -> str:
        """What is printed about it."""
        gold = f"; gold, not scored: {', '.join(map(repr, self.gold))}" if self.gold else ""
        return f"answers of {file} are read from {self.field!r}{gold}."


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """A field's name for comparison.

    Example:
        >>> plain_name("GT-Label")
        'gt_label'
    """
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def flatten(value: Mapping[str, Any]) -> Row:
    """A record's fields by plain name; lmms-eval's `doc` gives those the record itself lacks."""
    row = {plain_name(name): item for name, item in value.items()}
    doc = row.pop("doc", None)
    if isinstance(doc, dict):
        for name, item in doc.items():
            row.setdefault(plain_name(name), item)
    return row


def choose(
    rows: Sequence[Row],
    where: str,
    asked_for: str | None = None,
    captions: bool = False,
    option: str = "--answer-field",
) -> Choice:
    """Decides which field holds the model's answers.

    Args:
        rows: flattened records of one file, without those that failed.
        where: the file, as messages call it.
        asked_for: the user's own choice.
        captions: whether descriptions are wanted, rather than yes and no.
        option: how the user makes that choice.

    Raises:
        LvlmAttnError: no field that could be an answer, two that could equally be, or a name no record has.
    """
    names = {name: None for row in rows for name in row}
    gold = [name for name in GOLD if name in names]
    if asked_for is not None:
        wanted = plain_name(asked_for)
        if wanted not in names:
            raise LvlmAttnError(
                f"{where} has no field {asked_for!r}.{closest(wanted, names)} It has {_listed(names)}."
            )
        others = [] if wanted == "answer" or "answer" not in names else ["answer"]
        return Choice(wanted, tuple(name for name in (*gold, *others) if name != wanted))
    usable = [
        name for name in names if name not in GOLD and any(text_of(row.get(name)) is not None for row in rows)
    ]
    sure = [name for name in PREDICTIONS if name in usable]
    likely = [name for name in FILTERED if name in usable][:1]
    weak = [name for name in (*(CAPTIONS if captions else ()), *PLAIN) if name in usable]
    if len(weak) > 1 and "text" in weak and _is_question(rows, "text", weak):
        weak.remove("text")
    _refuse_two(
        rows,
        sure or ([] if likely or not captions else [name for name in weak if name != "answer"]),
        where,
        option,
    )
    ordered = [*sure, *likely, *weak]
    if not ordered:
        raise LvlmAttnError(
            f"{where}: no {'caption' if captions else 'answer text'} in any record (it has {_listed(names)}); "
            f"name the field with {option}."
        )
    if ordered[0] not in ("answer", "answers") and "answer" in names and not captions:
        gold.append("answer")
    return Choice(ordered[0], tuple(gold))


def answer_text(row: Row, choice: Choice, captions: bool = False) -> str | None:
    """A record's answer; one that lacks the chosen field may have another that only answers have."""
    if choice.field in row:
        return text_of(row[choice.field])
    names = (*PREDICTIONS, *(CAPTIONS if captions else ()))
    return next((text_of(row[name]) for name in names if name in row), None)


def _refuse_two(rows: Sequence[Row], names: list[str], where: str, option: str) -> None:
    for other in names[1:]:
        if any(text_of(row.get(names[0])) != text_of(row.get(other)) for row in rows):
            raise LvlmAttnError(
                f"{where} has both {names[0]!r} and {other!r}, and they differ; "
                f"say which is the model's answer with {option} {names[0]} or {option} {other}."
            )


def _is_question(rows: Sequence[Row], name: str, candidates: Sequence[str]) -> bool:
    """Whether a field that may be either is the question: it repeats it, asks, or is the same for all pictures."""
    texts = [row.get(name) for row in rows]
    if any(isinstance(text, list) for text in texts):
        return any(isinstance(row.get(other), list) for row in rows for other in candidates if other != name)
    if all(text in (row.get("question"), row.get("prompt")) for text, row in zip(texts, rows)):
        return True
    asking = sum(isinstance(text, str) and "?" in text for text in texts)
    constant = len(texts) > 1 and len(set(map(str, texts))) == 1
    varied = any(len({str(row.get(other)) for row in rows}) > 1 for other in candidates if other != name)
    return 2 * asking > len(texts) or (constant and varied)


def expand_chat(row: Row, place: int) -> list[Row]:
    """One row per question of a record that holds lists of them (PAI's chat form); other records stay whole.

    Raises:
        LvlmAttnError: lists of unequal length, or a `chat_id` that is no whole number.
    """
    name = next((name for name in QUESTIONS if isinstance(row.get(name), list)), None)
    texts = row.get(name or "")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return [row]
    split = {key: value for key, value in row.items() if isinstance(value, list) and key != name}
    for key in (*GOLD, *PREDICTIONS, *PLAIN):
        value = row.get(key)
        if key != name and value is not None and not (isinstance(value, list) and len(value) == len(texts)):
            plural = key if key.endswith("s") else f"{key}s"
            raise LvlmAttnError(
                f"{len(texts)} questions need a list of {len(texts)} {plural}; correct the entry."
            )
    chat = row.get("chat_id", place - 1)
    if not isinstance(chat, int):
        raise LvlmAttnError(f"chat_id is {shown(chat)}, expected a whole number; correct the entry.")
    whole = {key: value for key, value in row.items() if key not in split}
    counted = "chat_id" in row or len(texts) > 1
    return [
        {
            **({"question_id": chat * len(texts) + turn + 1} if counted else {}),
            **whole,
            **{key: value[turn] for key, value in split.items() if len(value) == len(texts)},
            name or "": text,
        }
        for turn, text in enumerate(texts)
    ]


def text_of(value: object) -> str | None:
    """The text of an answer; lists of one (lmms-eval) are opened, booleans are yes and no, other values are no text."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else None


def first_text(row: Row, names: Sequence[str], but: str | None = None) -> str | None:
    """The first field that holds words."""
    for name in names:
        value = row.get(name)
        if name != but and isinstance(value, str) and value.strip():
            return value
    return None


def image_of(row: Row, names: Sequence[str] = IMAGES) -> str | None:
    """The picture's name, path or number; of a stored picture its path."""
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, dict):
            value = value.get("path")
        if isinstance(value, str):
            if value and not value.isspace():
                return value
        elif (number := id_key(value)) is not None:
            return number
    return None


def id_key(value: object) -> str | None:
    """One key for an id as whole number, float or text; None where the value is no id.

    Example:
        >>> id_key(2), id_key(2.0), id_key("2.0"), id_key("0002"), id_key("q-7"), id_key([1])
        ('2', '2', '2', '2', 'q-7', None)
    """
    if type(value) is int and -1 < value < 10**18:
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    try:
        text = str(value).strip()
    except ValueError:  # an integer of thousands of digits
        return None
    whole = _WHOLE.fullmatch(text)
    if whole:
        return whole.group(1).replace("+", "") + whole.group(2)
    return text or None


def first_id(row: Row, names: Sequence[str]) -> str | None:
    """The first field that holds an id, as its key."""
    for name in names:
        if name in row and (key := id_key(row[name])) is not None:
            return key
    return None


def label_of(value: object) -> Label | None:
    """A gold answer as bool, 0 or 1, or a word with whatever full stop; None where there is none.

    Raises:
        ValueError: the value is neither.
    """
    if value is None or value == "":
        return None
    if isinstance(value, float) and value != value:
        return None
    word = (
        str(value).strip().strip(".!,;:'\"").strip().lower() if isinstance(value, str | int | float) else None
    )
    if word in ("yes", "true", "1", "1.0", "y"):
        return "yes"
    if word in ("no", "false", "0", "0.0", "n"):
        return "no"
    raise ValueError(shown(value))


def _listed(names: Mapping[str, None]) -> str:
    shown = ", ".join(one_line(name, 30) for name in list(names)[:12])
    return (shown or "nothing") + (", ..." if len(names) > 12 else "")
