"""Loading models and processors from folders, without torchvision and without a network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import lvlm_attn as la
from tests.tiny import tiny_model
from tests.versions import needs_own_image_processors

WORDS = ["<pad>", "<s>", "</s>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
WORDS += ["<|im_start|>", "user", "assistant", "what", "is", "there", "<unk>"]


def qwen_folder(folder: Path) -> Path:
    """A Qwen2-VL checkpoint as the hub holds it, tiny and random."""
    model = tiny_model("qwen2_vl")
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", additional_special_tokens=WORDS[3:7]
    ).save_pretrained(folder)
    vision = model.config.vision_config
    Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        size={"shortest_edge": 16, "longest_edge": 4096},
    ).save_pretrained(folder)
    template = (
        "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "<|vision_start|> <|image_pad|> <|vision_end|> {% else %}{{ part['text'] }} {% endif %}{% endfor %}"
        "{% endfor %}assistant"
    )
    (folder / "chat_template.jinja").write_text(template)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen2VLProcessor"}))
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_folder(tmp_path_factory.mktemp("qwen"))


@needs_own_image_processors
def test_a_family_whose_processor_reads_videos_loads_and_answers_without_torchvision(qwen: Path) -> None:
    model, processor = la.load(qwen, device="cpu")
    assert model.dtype == torch.float32
    assert processor.tokenizer.padding_side == "left"
    image = Image.new("RGB", (40, 24), "red")
    with la.wrap(model, la.VHR(), processor=processor) as lvlm:
        answers = lvlm.generate(images=[image, image], prompts=["what is there", "what"], max_new_tokens=2)
    assert len(answers) == 2
    assert all(isinstance(answer, str) for answer in answers)


def test_a_missing_model_is_one_sentence_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(la.LvlmAttnError, match="nowhere") as caught:
        la.load(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_an_unsupported_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    transformers.LlamaConfig(hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(la.UnsupportedError, match=r"llama.*Supported are"):
        la.load(tmp_path)


@pytest.mark.parametrize("dtype", ["float33", "int8"])
def test_an_unknown_dtype_lists_the_known_ones(qwen: Path, dtype: Any) -> None:
    with pytest.raises(la.LvlmAttnError, match="bfloat16"):
        la.load(qwen, dtype=dtype)
