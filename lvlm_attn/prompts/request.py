"""What one `lvlm.generate` asks of the model, so that methods can look at the image and ask again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families.devices import execution_device
from lvlm_attn.families.videos import refuse_videos
from lvlm_attn.prompts.chat import encode_texts
from lvlm_attn.prompts.messages import Chat, read_prompts
from lvlm_attn.prompts.pixels import IMAGE_KEYS, Picture, join_pictures, split_pictures
from lvlm_attn.prompts.rows import insert_tokens, keep_tokens, tokens_of
from lvlm_attn.prompts.videos import VIDEO_KEYS, Video, join_videos, split_videos

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_attn.families.target import Target
    from lvlm_attn.layout.prompt import PromptLayout


@dataclass(frozen=True, eq=False)
class Request:
    """Some prompts with their images, as words and pictures where they were given so, and as tensors.

    Attributes:
        target: the model.
        inputs: what `model.generate` takes, padded on the left: `input_ids`, `attention_mask`, pixels, sizes.
        images: the images of each row, or None if only tensors were given.
        texts: the full prompt of each row, chat template and image tokens included, or None.
        chats: what the user asked in each row, as turns, or None.
        details: what methods found out on the way (maps, masks, boxes), by the name of the method; shown as
            `lvlm.details`.
        encodes_once: whether images that are equal may be encoded once for all rows, which can change the last digits
            of their features.

    Example:
        >>> request = Request.of_prompts(target, [image], ["Is there a dog?"])  # doctest: +SKIP
        >>> request.with_images([[darker]]).inputs["pixel_values"].shape == request.inputs["pixel_values"].shape
        True
    """

    target: Target
    inputs: dict[str, Tensor]
    images: list[list[Image]] | None = None
    texts: list[str] | None = None
    chats: list[Chat] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    encodes_once: bool = False

    @staticmethod
    def of_prompts(
        target: Target, images: Sequence[Any] | None, prompts: Sequence[Any] | str | None
    ) -> Request:
        """A request made of images and prompts; see `lvlm_attn.prompts.messages.read_prompts`.

        Raises:
            LvlmAttnError: without a processor, or if images and prompts do not go together.
        """
        if target.processor is None:
            raise LvlmAttnError(
                "lvlm.generate(images=..., prompts=...) needs the processor; pass wrap(..., processor=processor)."
            )
        chats = read_prompts(target.processor, images, prompts)
        groups = [list(chat.images) for chat in chats]
        texts = [chat.text(target.processor) for chat in chats]
        return Request(target, encoded(target, groups, texts), groups, texts, chats)

    @staticmethod
    def of_tensors(target: Target, inputs: Mapping[str, Any]) -> Request:
        """A request made of what `model.generate` takes; the images themselves are not known."""
        if "input_ids" not in inputs:
            raise LvlmAttnError("lvlm.generate needs input_ids, or images= and prompts=.")
        return Request(target, dict(inputs))

    @property
    def questions(self) -> list[str] | None:
        """What the user asked last in each row, without template and images, or None if only tensors were given."""
        return None if self.chats is None else [chat.question for chat in self.chats]

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.inputs["input_ids"].shape[0]

    @cached_property
    def layout(self) -> PromptLayout:
        """What every position of the prompts is."""
        from lvlm_attn.families import ImageInputs, prompt_layout

        parts = self.target.parts
        image_inputs = ImageInputs(
            config=cast("Any", parts.base).config,
            input_ids=self.inputs["input_ids"],
            call=self.inputs,
            newline=parts.newline,
        )
        return prompt_layout(self.target.family, image_inputs, self.inputs.get("attention_mask"))

    @property
    def pad_id(self) -> int:
        """The id that stands at padding; never that of an image."""
        from lvlm_attn.families.family import image_token_id

        config = getattr(self.target.model, "generation_config", None)
        found = getattr(config, "pad_token_id", None)
        image = image_token_id(cast("Any", self.target.parts.base).config)
        return found if isinstance(found, int) and found != image else int(image == 0)

    @cached_property
    def mask(self) -> Tensor:
        """`(batch, length)`, 1 at tokens and 0 at padding, told from the padding id where no mask is given."""
        ids, given = self.inputs["input_ids"], self.inputs.get("attention_mask")
        if given is not None:
            return given
        config = cast("Any", self.target.model).generation_config
        pad, ends = config.pad_token_id, config.eos_token_id
        if pad is None or pad in (ends if isinstance(ends, list) else [ends]):
            return torch.ones_like(ids)
        return (ids != int(pad)).to(ids.dtype)

    @cached_property
    def pictures(self) -> list[list[Picture]]:
        """The pixels of each image of each row."""
        return split_pictures(self.inputs, self.layout)

    @cached_property
    def videos(self) -> list[list[Video]]:
        """The pixels of each video of each row."""
        return split_videos(self.inputs, self.layout)

    def need_images(self, title: str) -> list[list[Image]]:
        """The images of each row.

        Raises:
            LvlmAttnError: naming the method `title`, if only tensors are known.
            UnsupportedError: naming the method, if the prompts hold videos.
        """
        if self.images is None:
            refuse_videos(
                title, self.layout, "it has to see pictures, and the frames are known as tensors alone"
            )
            raise LvlmAttnError(
                f"{title} has to see the image itself, which tensors do not hold; call "
                f"lvlm.generate(images=[...], prompts=[...])."
            )
        return self.images

    def with_images(
        self, images: Sequence[Sequence[Image]], *, texts: Sequence[str] | None = None
    ) -> Request:
        """The same prompts about other images; `texts` replaces the full prompts where their number changes."""
        if self.texts is None and texts is None:
            raise LvlmAttnError("This request holds tensors only; its images cannot be exchanged.")
        groups = [list(row) for row in images]
        full = list(texts if texts is not None else cast("list[str]", self.texts))
        return dataclasses.replace(self, inputs=encoded(self.target, groups, full), images=groups, texts=full)

    def with_texts(self, texts: Sequence[str]) -> Request:
        """Other full prompts (template and image tokens included) about the same images."""
        return self.with_images(self.need_images("A method"), texts=texts)

    def asking(self, questions: Sequence[str], images: Sequence[Sequence[Image]] | None = None) -> Request:
        """The same conversations with other last questions.

        Args:
            questions: the words, one per row.
            images: all images of each row, those that are new last; None for the same ones.

        Raises:
            LvlmAttnError: if only tensors were given.
        """
        if self.chats is None:
            raise LvlmAttnError("This request holds tensors only; other questions cannot be asked.")
        groups: Sequence[Sequence[Image] | None] = [None] * self.batch if images is None else images
        chats = [chat.asking(*row) for chat, row in zip(self.chats, zip(questions, groups))]
        texts = [chat.text(self.target.processor) for chat in chats]
        made = self.with_images([chat.images for chat in chats], texts=texts)
        return dataclasses.replace(made, chats=chats)

    def with_pixels(self, edit: Callable[[Tensor, int], Tensor]) -> Request:
        """The same prompts with other pixels.

        Args:
            edit: maps the pixels of one image, `(tiles, channels, height, width)` or in Qwen-VL `(patches, values)`,
                and its index within its prompt to new pixels of the same shape. Of a video it gets all frames,
                `(frames, channels, height, width)` or the patches of all of them.

        Raises:
            LvlmAttnError: if a shape changes.

        Example:
            >>> request.with_pixels(lambda pixels, index: -pixels)  # doctest: +SKIP
        """
        images: list[list[Picture]] = []
        videos: list[list[Video]] = []
        for row, grids in enumerate(self.layout.grids):
            left: tuple[Iterator[Any], ...] = (iter(self.pictures[row]), iter(self.videos[row]))
            made: tuple[list[Any], ...] = ([], [])
            for index, grid in enumerate(grids):
                old = next(left[grid.is_video], None)
                if old is None:  # tokens without pixels
                    continue
                new = edit(old.pixels, index)
                if new.shape != old.pixels.shape:
                    raise LvlmAttnError(
                        f"An edit of pixels returned shape {tuple(new.shape)}; it must keep {tuple(old.pixels.shape)}."
                    )
                made[grid.is_video].append(dataclasses.replace(old, pixels=new))
            images.append(made[0])
            videos.append(made[1])
        changed = join_pictures(images) | join_videos(videos)
        return dataclasses.replace(self, inputs=self.inputs | changed, images=None)

    def without_images(self) -> Request:
        """The same prompts without tokens of images and videos, as `runtime.text_pass` has it; markers stay."""
        tokens = tokens_of(self.inputs) | {"attention_mask": self.mask}
        if "mm_token_type_ids" in tokens:
            tokens["mm_token_type_ids"] = torch.zeros_like(tokens["mm_token_type_ids"])
        kept = keep_tokens(tokens, self.layout.is_text, self.pad_id)
        taken = (*tokens, *IMAGE_KEYS, *VIDEO_KEYS)
        rest = {key: value for key, value in self.inputs.items() if key not in taken}
        return dataclasses.replace(self, inputs=kept | rest, images=None, texts=None)

    def with_instruction(self, text: str, title: str) -> Request:
        """The same prompts with an instruction at their beginning.

        Prompts made from questions get it as their system message, where the chat template shows one; all others
        get its tokens after the first token if that is the tokenizer's beginning of sequence, else in front of
        their first image.

        Raises:
            LvlmAttnError: naming the method `title`, if there is no processor to tokenize the text.
            UnsupportedError: naming the method, if the words would stand between a frame and its time.
        """
        if self.target.processor is None:
            raise LvlmAttnError(
                f"{title} has to put words into the prompt; pass wrap(..., processor=processor)."
            )
        texts = self._with_system(text)
        if texts is not None:
            return self.with_texts(texts)
        tokenizer = getattr(self.target.processor, "tokenizer", self.target.processor)
        ids = tokenizer.encode(text, add_special_tokens=False)
        tokens = tokens_of(self.inputs) | {"attention_mask": self.mask}
        places = [self._beginning(row, tokenizer.bos_token_id, title) for row in range(self.batch)]
        return dataclasses.replace(self, inputs=self.inputs | insert_tokens(tokens, ids, places), texts=None)

    def _with_system(self, text: str) -> list[str] | None:
        """Full prompts with a system message, or None if not all were made from turns by a template."""
        if self.chats is None or self.texts is None or self.images is None:
            return None
        found = [chat.under(text) for chat in self.chats]
        chats = [chat for chat in found if chat is not None]
        processor = self.target.processor
        if len(chats) < len(found) or [chat.text(processor) for chat in self.chats] != self.texts:
            return None
        try:
            made = [chat.text(processor) for chat in chats]
        except LvlmAttnError:  # a template that takes no system message
            return None
        return made if all(text in full for full in made) else None

    def _beginning(self, row: int, bos: int | None, title: str) -> int:
        """Where the text of a row may be put in; `title` names the method that has words to put there."""
        start = int(self.mask[row].argmax())
        if bos is not None and int(self.inputs["input_ids"][row, start]) == bos:
            return start + 1
        is_image = self.layout.is_patch[row] | self.layout.is_filler[row]
        if not bool(is_image.any()):
            return start
        first = int(is_image.int().argmax())
        videos = self.target.family.videos
        if videos is not None and videos.has_timestamps and self.layout.grids[row][0].is_video:
            raise UnsupportedError(
                f"{title}: videos: words in front of the video of row {row} would stand between its first frame and "
                f"the time of it; write the instruction into the prompt."
            )
        marker = getattr(cast("Any", self.target.parts.base).config, "vision_start_token_id", None)
        return first - int(first > start and int(self.inputs["input_ids"][row, first - 1]) == marker)


def encoded(target: Target, groups: Sequence[Sequence[Image]], texts: Sequence[str]) -> dict[str, Tensor]:
    """Processor outputs on the model's device, pixels in its dtype."""
    model = cast("Any", target.model)
    inputs = dict(encode_texts(target.processor, groups, texts).to(execution_device(model)))
    for key, value in inputs.items():
        if torch.is_tensor(value) and value.is_floating_point():
            inputs[key] = value.to(model.dtype)
    return inputs
