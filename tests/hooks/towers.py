"""Tiny models whose image encoder has four layers, and an oracle of what its image tokens receive."""

import copy
from functools import cache

import torch
from transformers.vision_utils import get_vision_window_index

from tests.tiny import QWEN, tiny_model


@cache
def deep_model(name, dtype=torch.float32, seed=0):
    """A tiny model with an encoder of four layers, of which Qwen2.5's second and fourth read all patches."""
    shallow = tiny_model(name, layers=5)
    config = copy.deepcopy(shallow.config)
    vision = config.vision_config
    if name in QWEN:
        vision.depth = 4
        if name == "qwen2_5_vl":
            vision.fullatt_block_indexes = [1, 3]
    else:
        vision.num_hidden_layers = 4
    torch.manual_seed(seed)
    model = type(shallow)(config)
    known = dict(shallow.named_parameters())
    generator = torch.Generator().manual_seed(seed + 5)
    with torch.no_grad():
        for path, parameter in sorted(model.named_parameters()):
            if path in known:
                parameter.copy_(known[path])
            elif parameter.dim() > 1:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * 1.6 / parameter.shape[1] ** 0.5
                )
    model.generation_config = shallow.generation_config
    return model.to(dtype).eval()


def token_weights(name, model, row, layer, rows="class"):
    """`(image tokens,)` of a single row in prompt order, float64; nan at newlines.

    Attention is taken from eager CLIP and SigLIP, by hand from Qwen; tiles are packed by the model's own code.
    """
    double = copy.deepcopy(model).double()
    base = double.model
    with torch.no_grad():
        if name in QWEN:
            return _qwen(name, base, row, layer)
        tower = base.vision_tower
        tower.config._attn_implementation_internal = "eager"
        pixels = row["pixel_values"].double()
        if pixels.dim() == 5:
            counts = [_tiles(model, name, size) for size in row["image_sizes"].tolist()]
            pixels = torch.cat([image[:count] for image, count in zip(pixels, counts, strict=True)])
        attention = tower(pixels, output_attentions=True).attentions[layer].mean(1)
        has_class = name != "llava_onevision"
        received = attention[:, 0] if rows == "class" and has_class else attention.mean(1)
        received = received[:, int(has_class) :]
        if "image_sizes" not in row:
            return received.flatten()
        options = {"vision_feature_select_strategy": "default"}
        if name == "llava_onevision":
            options = {"vision_aspect_ratio": model.config.vision_aspect_ratio}
        packed, _ = base.pack_image_features(
            list(torch.split(received[..., None], counts)),
            row["image_sizes"],
            image_newline=torch.tensor([torch.nan]).double(),
            **options,
        )
        return torch.cat(list(packed))[:, 0]


def _tiles(model, name, size):
    from transformers.image_processing_utils import select_best_resolution

    edge = model.config.vision_config.image_size
    best = select_best_resolution(size, model.config.image_grid_pinpoints)
    return 1 + (best[0] // edge) * (best[1] // edge)


def _qwen(name, base, row, layer):
    visual, found = base.visual, []
    block = visual.blocks[layer].attn

    def look(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        cos, sin = kwargs["position_embeddings"]
        query, key, _ = module.qkv(hidden).view(len(hidden), 3, module.num_heads, -1).unbind(1)

        def turned(x):
            half = x.shape[-1] // 2
            return x * cos[:, None] + torch.cat((-x[..., half:], x[..., :half]), -1) * sin[:, None]

        sizes = row["image_grid_thw"].prod(1).tolist()
        for q, k in zip(turned(query).split(sizes), turned(key).split(sizes), strict=True):
            scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
            found.append(scores.softmax(-1).mean((0, 1)))

    handle = block.register_forward_pre_hook(look, with_kwargs=True)
    visual(row["pixel_values"].double(), grid_thw=row["image_grid_thw"])
    handle.remove()
    merged = torch.cat(found).view(-1, visual.spatial_merge_size**2).mean(1)
    if name != "qwen2_5_vl":
        return merged
    index, _ = get_vision_window_index(
        row["image_grid_thw"],
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    return merged[index.argsort()]
