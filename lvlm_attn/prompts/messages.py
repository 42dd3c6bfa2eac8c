"""What a user may give as a prompt: a question, chat messages with text and images, or a text that is ready."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.prompts.images import as_image
from lvlm_attn.prompts.template import Marks, Turn, asked, count_images, render, texts_of

if TYPE_CHECKING:
    from PIL.Image import Image

_SOURCES = ("image", "path", "url", "base64", "image_url")


@dataclass(frozen=True, eq=False)
class Chat:
    """One prompt.

    Attributes:
        turns: the conversation; empty where the prompt is a text that is ready.
        images: its images, in the order of their places.
        ready: the whole prompt, where it was given so.
    """

    turns: tuple[Turn, ...]
    images: tuple[Image, ...] = ()
    ready: str | None = None

    def text(self, processor: Any) -> str:
        """The whole prompt: the template is put around the turns here and nowhere else."""
        return self.ready if self.ready is not None else render(processor, self.turns)

    @property
    def question(self) -> str:
        """What is asked last, without its images."""
        return self.ready if self.ready is not None else "".join(texts_of(self._last))

    @property
    def images_come_first(self) -> bool:
        """Whether the last question is words with all their images before them, which can be worded anew."""
        if self.ready is not None:
            return False
        kinds = [part["type"] for part in self._last["content"]]
        return "image" not in kinds[kinds.index("text") :] if "text" in kinds else True

    @property
    def _last(self) -> Turn:
        return next(turn for turn in reversed(self.turns) if turn["role"] == "user")

    def asking(self, question: str, images: Sequence[Image] | None = None) -> Chat:
        """The same conversation with another last question.

        Args:
            question: the words.
            images: all images, those that are new last; None for the same ones.
        """
        kept = self.images if images is None else tuple(images)
        if self.ready is not None:
            return of_question(question, kept)
        last = self._last
        new = {**last, **asked(question, count_images([last]) + len(kept) - len(self.images))}
        return Chat(tuple(new if turn is last else turn for turn in self.turns), kept)

    def under(self, text: str) -> Chat | None:
        """The same conversation under a system message, before what it has of one; None where it is no conversation."""
        if self.ready is not None:
            return None
        first, rest = self.turns[0], self.turns[1:]
        if first["role"] != "system":
            first, rest, said = {"role": "system"}, self.turns, []
        else:
            said = texts_of(first)
        system = {"role": "system", "content": [{"type": "text", "text": " ".join([text, *said])}]}
        return dataclasses.replace(self, turns=(system, *rest))


def of_question(text: str, images: Sequence[Image] = ()) -> Chat:
    """A question in plain words with its images before it."""
    return Chat((asked(text, len(images)),), tuple(images))


def read_prompts(processor: Any, images: Any, prompts: Any) -> list[Chat]:
    """Reads prompts with their images.

    Args:
        processor: the model's processor.
        images: per prompt an image, a list of images, or None; None for no images beside those in messages. What an
            image may be: see `lvlm_attn.prompts.images.as_image`.
        prompts: one prompt or a list of them. A prompt is a question, or a conversation: a list of messages
            `{"role": ..., "content": ...}` whose content is text or a list of parts `{"type": "text", "text": ...}` and
            `{"type": "image"}`, the latter with its picture under `image`, `path`, `url` or `base64`, or without one,
            which takes the next of `images`. In a question, `<image>` or the model's own token says where an image
            stands. A text with the template's own marks around a question is a prompt already and taken as it is.

    Raises:
        LvlmAttnError: something else was given, or images and places for them are not as many.
    """
    listed = _listed(prompts)
    groups = image_groups(images, len(listed))
    marks = Marks.of(processor)
    return [
        _of_text(prompt, group, marks, place)
        if isinstance(prompt, str)
        else _of_messages(prompt, group, marks, place)
        for place, (prompt, group) in enumerate(zip(listed, groups))
    ]


def _listed(prompts: Any) -> list[Any]:
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, (Mapping, bytes)) or not isinstance(prompts, (Iterable, type(None))):
        raise _no_prompt("prompts", prompts)
    found = list(prompts or ())
    if not found:
        raise LvlmAttnError("generate got images but no prompts; pass prompts=[...].")
    if all(isinstance(one, Mapping) for one in found):
        return [found]  # one conversation
    for place, one in enumerate(found):
        is_chat = isinstance(one, (list, tuple)) and one and all(isinstance(turn, Mapping) for turn in one)
        if not isinstance(one, str) and not is_chat:
            raise _no_prompt(f"prompt {place}", one)
    return found


def _no_prompt(name: str, value: Any) -> LvlmAttnError:
    return LvlmAttnError(
        f"{name} is {shown(value)} of type {type(value).__name__}; a prompt is a question as text, or a list of chat "
        f"messages such as {{'role': 'user', 'content': 'What is this?'}}."
    )


def image_groups(images: Any, count: int) -> list[list[Image]]:
    """Brings images into one list per prompt.

    Raises:
        LvlmAttnError: if there are not as many entries of images as prompts, or one cannot be read.
    """
    if images is None:
        return [[] for _ in range(count)]
    entries = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(entries) != count:
        raise LvlmAttnError(
            f"generate got {len(entries)} images and {count} prompts; pass one entry of images per prompt "
            f"(a list of images, or None, for a prompt with several or none)."
        )
    return [
        [
            as_image(one, f"image {number} of prompt {place}")
            for number, one in enumerate(entry if isinstance(entry, (list, tuple)) else [entry])
        ]
        if entry is not None
        else []
        for place, entry in enumerate(entries)
    ]


def _of_text(text: str, images: Sequence[Image], marks: Marks, place: int) -> Chat:
    if marks.is_ready(text):
        found = text.count(marks.token)
        if found != len(images):
            raise LvlmAttnError(
                f"Prompt {place} is ready, with {marks.answers!r} in it, and has {found} of {marks.token!r} for "
                f"{len(images)} images; give a question alone, or one {marks.token!r} for each image."
            )
        return Chat((), tuple(images), text)
    pieces = marks.pieces(text)
    if len(pieces) == 1:
        return of_question(text, images)
    if len(pieces) - 1 != len(images):
        raise LvlmAttnError(
            f"Prompt {place} has places for {len(pieces) - 1} images ({marks.token!r}) and {len(images)} images; give "
            f"as many, or leave the places out."
        )
    content: list[Mapping[str, Any]] = []
    for number, piece in enumerate(pieces):
        content += [{"type": "image"}] * bool(number) + [{"type": "text", "text": piece}] * bool(piece)
    return Chat(({"role": "user", "content": content},), tuple(images))


def _of_messages(
    messages: Sequence[Mapping[str, Any]], given: Sequence[Image], marks: Marks, place: int
) -> Chat:
    waiting = list(given)
    images: list[Image] = []
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        where = f"message {number} of prompt {place}"
        if not isinstance(message.get("role"), str) or "content" not in message:
            raise LvlmAttnError(
                f"{where} needs a 'role', as text, and a 'content'; it has {shown(dict(message))}."
            )
        parts = []
        for part in _parts(message["content"], where):
            parts.append(_part(part, where, marks, waiting, images))
        turns.append({**message, "content": parts})
    users = [turn for turn in turns if turn["role"] == "user"]
    if not users or turns[-1]["role"] in ("assistant", "system"):
        raise LvlmAttnError(
            f"Prompt {place} does not end with a question; let its last message be of the user."
        )
    if waiting and len(users) == 1 and not count_images(turns):
        at = turns.index(users[0])
        turns[at] = {**users[0], "content": [{"type": "image"}] * len(waiting) + users[0]["content"]}
        images, waiting = waiting, []
    if waiting:
        raise LvlmAttnError(
            f"Prompt {place} was given {len(given)} image{'s' * (len(given) != 1)}, and its messages have places for "
            f"{len(given) - len(waiting)}; put {{'type': 'image'}} into the message where each image stands."
        )
    return Chat(tuple(turns), tuple(images))


def _parts(content: Any, where: str) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, (list, tuple)):
        return [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    raise LvlmAttnError(
        f"The content of {where} is {shown(content)} of type {type(content).__name__}; give text or a list of parts."
    )


def _part(
    part: Any, where: str, marks: Marks, waiting: list[Image], images: list[Image]
) -> Mapping[str, Any]:
    """A part as templates take it; its image goes from where it was to `images`."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        if marks.token in part["text"]:
            raise LvlmAttnError(
                f"The text of {where} holds {marks.token!r}, which stands for an image; give the image a part of its "
                f"own, {{'type': 'image'}}."
            )
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "image_url"):
        raise LvlmAttnError(
            f"{where} has the part {shown(part)}; parts are {{'type': 'text', 'text': ...}} and "
            f"{{'type': 'image', 'image': ...}}."
        )
    sources = [part[name] for name in _SOURCES if part.get(name) is not None]
    if not sources and not waiting:
        raise LvlmAttnError(
            f"{where} has a place for an image and no image is left for it; give it under 'image', or with images=."
        )
    if sources:
        source = sources[0]["url"] if isinstance(sources[0], Mapping) and "url" in sources[0] else sources[0]
        if "base64" in part and isinstance(source, str) and not source.startswith("data:"):
            source = f"data:;base64,{source}"
        images.append(as_image(source, f"the image of {where}"))
    else:
        images.append(waiting.pop(0))
    return {"type": "image"}
