"""What image encoders attend to, read beside the definition in float64, in families after the first eight."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lvlm_attn as la
from lvlm_attn.families import models
from lvlm_attn.families.encoder_patches import VisionRows, received
from tests.tiny import ALL_NAMES, IMAGE, NAMES, tiny_inputs, tiny_model, tiny_samples

NAME = "encoder_oracle"
ROWS = (VisionRows(0, "all"), VisionRows(-1, "class"))
BATCH = [(1,), (0,), (2,)]
SEEN: dict[int, list[Tensor]] = {}
# LLaVA-NeXT-Video's encoder is read as LLaVA-NeXT's, in tests/runtime.
READ = [name for name in ALL_NAMES if models()[name].encoder and name not in (*NAMES, "llava_next_video")]


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **options: Any) -> Any:
    assert query.dtype == torch.float64
    lengths = options.get("cu_seq_lens_q")
    sizes = [query.shape[2]] if lengths is None else lengths.diff().tolist()
    outputs, got = [], []
    for q, k, v in zip(*(part.split(sizes, 2) for part in (query, key, value))):
        weights = (q @ k.transpose(-1, -2) * options.get("scaling", q.shape[-1] ** -0.5)).softmax(-1)
        outputs.append(weights @ v)
        got.append(weights.mean((1, 2)))
    SEEN.setdefault(id(module), []).append(torch.cat(got, -1))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def per_token(name: str, received_by: Tensor, blocks: list[list[tuple[int, int]]]) -> Tensor:
    """Weights per image token, from `(units, patches)`: the mean over the patches put together in one."""
    if name == "qwen3_5":
        return received_by.flatten().view(-1, 4).mean(1)
    rows, cols = blocks[0][0]
    edge = round(received_by.shape[1] ** 0.5)
    cells = received_by.view(-1, rows, edge // rows, cols, edge // cols)
    return cells.mean((2, 4)).flatten()


@pytest.mark.parametrize("name", READ)
def test_patches_receive_what_the_encoder_pays_them(name: str) -> None:
    model = tiny_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    found: list[Any] = []

    class Look(la.Intervention):
        def vision(self, target: Any) -> Any:
            return ROWS

        def observe(self, layer: Any, hidden: Tensor) -> None:
            if layer.index == 0 and layer.is_prompt:
                found.append([received(layer.call.vision, rows, layer.layout) for rows in ROWS])

    with torch.no_grad(), la.wrap(model, Look()):
        model(**inputs)
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    double = copy.deepcopy(model).double()
    double.set_attn_implementation({"vision_config": NAME})
    SEEN.clear()
    pictures = {key: inputs[key] for key in ("pixel_values", "image_grid_thw") if key in inputs}
    with torch.no_grad():
        double.model.get_image_features(**pictures | {"pixel_values": pictures["pixel_values"].double()})
    blocks = [picture.blocks or [] for one in tiny_samples(name, model, BATCH) for picture in one.pictures]
    for place, layer in enumerate((0, -1)):
        want = per_token(name, torch.cat(list(SEEN.values())[layer], -1 if name == "qwen3_5" else 0), blocks)
        assert want.std() > 1e-5
        for seen in found:
            assert torch.allclose(seen[place][inputs["input_ids"] == IMAGE].double(), want, atol=1e-6)
            assert not seen[place][inputs["input_ids"] != IMAGE].any()


@pytest.mark.parametrize("method", [la.PAINT(), la.VMTC()], ids=str)
def test_a_mask_that_hides_image_tokens_is_named_as_a_cause(method: Any) -> None:
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][:, int((inputs["input_ids"][0] == IMAGE).nonzero()[0])] = 0
    with (
        la.wrap(model, method),
        pytest.raises(la.LvlmAttnError, match="attention_mask that hides no image token"),
    ):
        model(**inputs)
