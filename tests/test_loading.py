"""Loading models and processors from folders, without torchvision and without a network."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
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


class Evil:
    """A pickle that would run something."""

    def __reduce__(self) -> Any:
        return (print, ("a pickle ran code",))


def weights(change: Callable[[dict[str, Any], str], None]) -> Callable[[Path], None]:
    """Changes the weights of a folder; the change gets them and the name of one."""

    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        held = load_file(file)
        change(held, sorted(held)[3])
        save_file(held, file, {"format": "pt"})

    return spoil


def cut(share: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: int(len(whole) * share)])

    return spoil


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def configured(**values: Any) -> Callable[[Path], None]:
    """Changes the configuration of a folder, and those within it."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for part in (config, config["text_config"], config["vision_config"]):
            part.update(values)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text("print('a checkpoint ran code')")

    return change


@needs_own_image_processors
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            weights(lambda held, name: held.pop(name)),
            r"lacks 1 of its weights, the first is '[\w.]+'; what.*random",
        ),
        (
            weights(lambda held, name: held.update({"old." + name: held.pop(name)})),
            r"lacks 1 of its weights.*, and holds 1 that the model does not know, the first is 'old\.",
        ),
        (weights(lambda held, name: held.update({name: held[name][:1].clone()})), r"another shape.*\(1,"),
        (cut(0.5), "Fetch it again"),
        (cut(0.99), "Fetch it again"),
        (cut(0), "Fetch it again"),
        (pickled, "run code"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named"),
        (written("config.json", "{"), "could not be loaded"),
        (written("config.json", "[1]"), "could not be loaded"),
        (written("config.json", "{" * 100_000), "could not be loaded"),
        (written("tokenizer.json", "\x00"), "could not be loaded"),
        (configured(model_type=5), "could not be loaded"),
        (configured(model_type="unheard_of", auto_map={"AutoConfig": "evil.E"}), "code of its own"),
    ],
    ids=[
        "missing",
        "renamed",
        "shape",
        "half",
        "end",
        "empty",
        "pickle",
        "none",
        "json",
        "list",
        "deep",
        "words",
        "type",
        "code",
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(
    qwen: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], spoil: Callable[[Path], None], words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(qwen, folder)
    spoil(folder)
    with pytest.raises(la.LvlmAttnError, match=words) as caught:
        la.load(folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert "ran code" not in capfd.readouterr().out


@needs_own_image_processors
def test_a_configuration_names_neither_code_nor_a_kernel(
    qwen: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(qwen, folder)
    auto = {"AutoConfig": "evil.E", "AutoModelForImageTextToText": "evil.M", "AutoProcessor": "evil.P"}
    kernel = "kernels-community/flash-attn3"
    configured(auto_map=auto, _attn_implementation=kernel, attn_implementation=kernel)(folder)
    for wanted in ("sdpa", "eager"):
        options = {} if wanted == "sdpa" else {"attn_implementation": wanted}
        model, _ = la.load(folder, device="cpu", **options)
        parts = (model.config, model.config.text_config, model.config.vision_config)
        assert {part._attn_implementation for part in parts} == {wanted}
    assert "ran code" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "name", ["./nope", "../nope/x", "/nope", "~/nope", Path("nope"), "a/b/c", "", " ", None, 5]
)
def test_a_folder_that_does_not_exist_is_said_so(name: Any) -> None:
    with pytest.raises(la.LvlmAttnError, match=r"does not exist|names no model"):
        la.load(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(la.LvlmAttnError, match="is a file"):
        la.load(tmp_path / "config.json")


@pytest.mark.parametrize("device", ["cuda:99", "cuba", "cpu:x", 3.5, "meta:0:1"])
@pytest.mark.parametrize("name", ["toy", "folder"])
def test_a_device_that_is_not_there_is_one_sentence(qwen: Path, name: str, device: Any) -> None:
    with pytest.raises(la.LvlmAttnError, match="cannot be used") as caught:
        la.load(qwen if name == "folder" else name, device=device)
    assert "\n" not in str(caught.value)


def test_the_toy_takes_a_backend_and_refuses_what_it_cannot_obey() -> None:
    assert la.load("toy", device="cpu", attn_implementation="eager")[0].config._attn_implementation == "eager"
    with pytest.raises(la.LvlmAttnError, match="device_map"):
        la.load("toy", device_map="auto")


@pytest.mark.parametrize("inputs", ["text", None, 5, [], {}, {"a": 1}, {"input_ids": "text"}])
def test_divergence_of_something_else_is_refused(inputs: Any) -> None:
    with pytest.raises(la.LvlmAttnError, match="vhd: inputs"):
        la.vhd(tiny_model("llava"), inputs)
