"""The toy's tokenizer and processor: whole words and endings, single letters for anything unknown."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

from lvlm_attn.toy import captions, prompts
from lvlm_attn.toy.model import ModelSizes, TokenIds
from lvlm_attn.toy.sprites import vocabulary
from lvlm_attn.toy.world import contexts

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")

#: LLaVA-1.5's conversation format; pictures come first in a turn. Several are numbered, since the tokenizer drops line
#: breaks, so that nothing else would stand between them.
CHAT_TEMPLATE = (
    "{% set pictures = namespace(all=0, number=0) %}"
    "{% for message in messages if message['content'] is not string %}"
    "{% for part in message['content'] if part['type'] == 'image' %}"
    "{% set pictures.all = pictures.all + 1 %}{% endfor %}{% endfor %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{{ ' ' }}"
    "{% else %}"
    "{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}"
    "{% set pictures.number = pictures.number + 1 %}"
    "{% if pictures.all > 1 %}{{ 'Image ' ~ pictures.number ~ ': ' }}{% endif %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

# Words of prompts in the wild that the toy's own questions and captions lack.
_COMMON_FILE = Path(__file__).with_name("prompt_words.txt")
_IRREGULAR = ("people", "knives", "mice")  # plurals that are no category and an ending
_ENDINGS = ("s", "es", "ed", "ing", "er", "ly", "n", "t", "y")


def object_words() -> list[str]:
    """Returns the tokens that stand for the categories, in the order of ``vocabulary``."""
    return [name.replace(" ", "_") for name in vocabulary()]


def object_ids(tokenizer: Any) -> list[int]:
    """Returns the ids of these tokens."""
    found: list[int] = tokenizer.convert_tokens_to_ids(object_words())
    return found


def word_pieces() -> list[str]:
    """Returns the tokenizer's vocabulary in the order of its ids: special, objects, words, endings, letters."""
    own: list[str] = []
    for forms in prompts.QUESTIONS.values():
        own += [word for form in forms for word in _words(re.sub(r"\{\w+\}", " ", form))]
    for suffix in prompts.SUFFIXES:
        own += _words(suffix)
    own += [word for name in vocabulary() for word in _words(name)]
    own += [word for name in contexts() for word in _words(name)]
    own += _words(
        "The image shows features contains picture This scene with while and There is also are pair pairs Overall looks"
    )
    own += [*captions.MOODS, "USER", "ASSISTANT", "Yes", "No", "Left", "Right", "Top", "Bottom", *_IRREGULAR]
    objects = object_words()
    both = [
        word
        for base in (*own, *_COMMON_FILE.read_text().split())
        for word in (base, base[0].upper() + base[1:])
    ]
    letters = [*string.ascii_letters, *string.digits, *string.punctuation]
    pieces = [*_SPECIAL, *objects, *both, *letters]
    pieces += [f"##{ending}" for ending in (*_ENDINGS, *string.ascii_letters, *string.digits, "_")]
    return list(dict.fromkeys(pieces))


def build_tokenizer() -> Any:
    """Returns the fast tokenizer.

    A category of two words, such as "hot dog", is one token: a normalizer writes it with an underscore, the decoder
    takes the underscore away.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = word_pieces()
    ids = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocab=ids, unk_token="<unk>", max_input_chars_per_word=64))
    joined = [name for name in vocabulary() if " " in name]
    backend.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(rf"\b{name}"), name.replace(" ", "_")) for name in joined]
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.Sequence([decoders.WordPiece(cleanup=True), decoders.Replace("_", " ")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_processor(sizes: ModelSizes) -> Any:
    """Returns the processor: tokenizer, PIL image processor and chat template.

    Args:
        sizes: The model's sizes.
    """
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        size={"shortest_edge": sizes.image},
        crop_size={"height": sizes.image, "width": sizes.image},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=sizes.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def token_ids(tokenizer: Any) -> TokenIds:
    """Returns what the model's configuration needs to know of the tokenizer."""
    return TokenIds(
        vocab=len(tokenizer),
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        image=tokenizer.convert_tokens_to_ids("<image>"),
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]+", text)
