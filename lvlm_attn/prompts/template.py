"""Chat templates: turns to the text a model is asked with, and the marks by which a text is known to be one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_attn.errors import LvlmAttnError

Part = Mapping[str, Any]
"""`{"type": "text", "text": ...}` or `{"type": "image"}`."""
Turn = Mapping[str, Any]
"""`{"role": ..., "content": [parts]}`."""

IMAGE = "<image>"
"""How questions of any model name the place of an image; the token of some."""
_PROBE = "(the question)"


def image_token(processor: Any) -> str:
    """The token that stands for an image in the text of a prompt."""
    return str(getattr(processor, "image_token", None) or IMAGE)


def texts_of(turn: Turn) -> list[str]:
    """The text parts of a turn."""
    return [part["text"] for part in turn["content"] if part["type"] == "text"]


def count_images(turns: Sequence[Turn]) -> int:
    """The image parts of all turns."""
    return sum(part["type"] == "image" for turn in turns for part in turn["content"])


def asked(question: str, images: int = 0) -> Turn:
    """A question of the user with its images before it."""
    return {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": question}]}


def render(processor: Any, turns: Sequence[Turn], *, wants_answer: bool = True) -> str:
    """Puts the processor's chat template around turns; without one, LLaVA-1.5's wording.

    Args:
        processor: a processor or tokenizer.
        turns: the conversation.
        wants_answer: whether what begins an answer comes last.

    Raises:
        LvlmAttnError: the template fails on these turns, or leaves some of their words or images out.
    """
    if not getattr(processor, "chat_template", None):
        return _plainly(processor, turns, wants_answer)
    reasons = []
    # Templates for text alone want plain strings.
    plain = [
        {
            "role": turn["role"],
            "content": (image_token(processor) + "\n") * count_images([turn]) + "".join(texts_of(turn)),
        }
        for turn in turns
    ]
    for form in ([dict(turn) for turn in turns], plain):
        try:
            text = processor.apply_chat_template(form, add_generation_prompt=wants_answer, tokenize=False)
        except Exception as error:  # templates are programs of their own and fail in ways of their own
            reasons.append(" ".join(str(error).split())[:200].rstrip(".") or type(error).__name__)
            continue
        if _shows_all(str(text), processor, turns):
            return str(text)
        reasons.append("it leaves out some of their words or images")
    raise LvlmAttnError(
        f"The chat template of {type(processor).__name__} does not take these messages ({reasons[0]}); give others, or "
        f"the whole prompt as one text."
    )


def _plainly(processor: Any, turns: Sequence[Turn], wants_answer: bool) -> str:
    end = getattr(getattr(processor, "tokenizer", processor), "eos_token", None) or ""
    written = []
    for turn in turns:
        text = (image_token(processor) + "\n") * count_images([turn]) + "".join(texts_of(turn))
        forms = {"user": f"USER: {text}", "assistant": f" ASSISTANT: {text}{end}", "system": f"{text} "}
        written.append(forms.get(turn["role"], f"{turn['role'].upper()}: {text}"))
    return "".join(written) + " ASSISTANT:" * wants_answer


def _shows_all(text: str, processor: Any, turns: Sequence[Turn]) -> bool:
    """Whether a rendered text holds its images and the words of all turns but answers, which some templates shorten."""
    words = [part for turn in turns if turn["role"] != "assistant" for part in texts_of(turn)]
    if not all(part.strip() in text for part in words):
        return False
    lists = re.compile(r"""\[?\{['"](?:type|text|image)['"]:""")
    if lists.search(text) and not any(lists.search(part) for turn in turns for part in texts_of(turn)):
        return False  # a list written out as Python writes it
    return not hasattr(processor, "image_token") or text.count(image_token(processor)) >= count_images(turns)


@dataclass(frozen=True)
class Marks:
    """What a chat template writes around a question.

    Attributes:
        opens: the last thing before it, such as `USER:` or `<|im_start|>user`.
        answers: all that comes after it, such as `ASSISTANT:`.
        image: what it writes for an image, such as `<|vision_start|><|image_pad|><|vision_end|>`.
        token: the token that stands for an image.
    """

    opens: str
    answers: str
    image: str
    token: str

    @staticmethod
    def of(processor: Any) -> Marks:
        """The marks of a processor's template; empty where it cannot be asked."""
        token = image_token(processor)
        try:
            bare, shown = (render(processor, [asked(_PROBE, images)]) for images in (0, 1))
        except LvlmAttnError:
            return Marks("", "", token, token)
        before, _, after = bare.partition(_PROBE)
        image = shown.partition(_PROBE)[0].removeprefix(before).strip()
        opens = re.search(r"[\[<]?[^\s\[<]*$", before.strip())
        return Marks(opens.group() if opens else "", after.strip(), image if token in image else token, token)

    def is_ready(self, text: str) -> bool:
        """Whether a text is a prompt already: it has both marks, the one that begins an answer after the other."""
        start = text.find(self.opens)
        return bool(self.answers) and start >= 0 and text.find(self.answers, start + len(self.opens)) >= 0

    def pieces(self, text: str) -> list[str]:
        """The text between its images, one piece more than there are images; blanks beside outer images are cut."""
        names = sorted({self.image, self.token, IMAGE}, key=len, reverse=True)
        found = re.split("|".join(map(re.escape, names)), text)
        if len(found) > 1:
            inner = [place for place, piece in enumerate(found) if piece.strip()]
            for place, piece in enumerate(found):
                if not inner or place < inner[0] or place > inner[-1]:
                    found[place] = ""
                else:
                    piece = piece.lstrip() if place == inner[0] else piece
                    found[place] = piece.rstrip() if place == inner[-1] else piece
        return found


def without_image_tokens(text: str, marks: Marks) -> tuple[str, int]:
    """A question without the images it names, and how many it named.

    Example:
        >>> without_image_tokens("<image> Is there a dog?", Marks("", "", "<image>", "<image>"))
        ('Is there a dog?', 1)
    """
    pieces = marks.pieces(text)
    if len(pieces) == 1:
        return text, 0
    return " ".join(piece.strip() for piece in pieces if piece.strip()), len(pieces) - 1
