"""Attention maps for tests: from transformers' own eager weights on the toy, and small ones made by hand."""

from functools import cache

import torch
from PIL import Image

import lvlm_attn as la
from lvlm_attn import toy
from lvlm_attn.layout.prompt import Block, ImageGrid, PromptLayout
from lvlm_attn.maps.attention_maps import AttentionMaps
from lvlm_attn.maps.geometry import Frame, Level
from lvlm_attn.maps.onto_image import MapImage
from lvlm_attn.maps.words import token_texts


def hand_made(batch=1, layers=2, heads=2, seed=0, grid=None, size=(40, 30), words=None):
    """Maps of random weights: a prompt of a few words around an image, and the answer ' A hot dog . A dog .'."""
    grid = grid or ImageGrid((Block(3, 4, "base"),))
    answer = words or [" A", " hot", "dog", ".", " A", " dog", "."]
    before, after = ["<s>", "USER:"], [" Say", " it", ":"]
    prompt = [*before, *[""] * grid.tokens, *after]
    ids = torch.tensor([[5] * len(before) + [9] * grid.tokens + [6] * len(after)] * batch)
    layout = PromptLayout.build(ids, 9, [grid] * batch).append(len(answer) - 1)
    count, keys = len(answer), layout.length
    first = len(prompt)
    rows = torch.arange(first - 1, first - 1 + count).repeat(batch, 1)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(layers, batch, heads, count, keys, generator=generator) * 2
    allowed = torch.arange(keys) <= rows[:, None, :, None]
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    pieces = (*prompt, *answer)
    block = grid.blocks[0]
    level = Level(Frame(0, 0, *size), block.rows, block.cols, ((0, 0, 0),))
    picture = Image.new("RGB", size, (90, 120, 160))
    return AttentionMaps(
        rows=rows,
        weights={layer: weights[layer] for layer in range(layers)},
        layout=layout,
        ids=torch.cat((ids, torch.arange(20, 20 + count).repeat(batch, 1)), 1),
        targets=rows + 1,
        pieces=(pieces,) * batch,
        images=((MapImage(size, (level,), picture),),) * batch,
        heads=tuple(range(heads)),
        meta={"prompts": ["Say it:"] * batch, "answers": ["".join(answer).strip()] * batch, "model": "made"},
    )


@cache
def toy_model():
    return la.load("toy")


def toy_maps(question="Describe this image.", index=0, rows="generated", tokens=24):
    """Maps of the toy from a run of its own with eager attention; nothing of ours computes the weights."""
    model, processor = toy_model()
    picture = toy.scenes("test")[index].image
    from lvlm_attn.interventions.base import Target
    from lvlm_attn.prompts.request import Request
    from lvlm_attn.wrapping import target_of

    target: Target = target_of(model, processor)
    request = Request.of_prompts(target, [picture], [question])
    backend = model.config.text_config._attn_implementation
    with torch.no_grad():
        ids = model.generate(**request.inputs, max_new_tokens=tokens, do_sample=False)
        model.set_attn_implementation("eager")
        inputs = request.inputs | {"input_ids": ids[:, :-1], "attention_mask": torch.ones_like(ids[:, :-1])}
        full = model(**inputs, output_attentions=True).attentions
        model.set_attn_implementation(backend)
    prompt = request.inputs["input_ids"].shape[1]
    generated = torch.arange(prompt - 1, ids.shape[1] - 1)
    rows_at, targets = generated, generated + 1
    if rows == "all":
        rows_at = torch.cat((torch.arange(prompt), generated))
        targets = torch.cat((torch.arange(prompt), generated + 1))
    layout = request.layout.to("cpu").append(ids.shape[1] - 1 - prompt)
    is_text = torch.cat((layout.is_text[0], torch.tensor([True])))
    places = is_text.nonzero().flatten().tolist()
    texts = [""] * ids.shape[1]
    runs = [[places[0]]]
    for place in places[1:]:
        runs.append([place]) if place != runs[-1][-1] + 1 else runs[-1].append(place)
    for run in runs:
        for place, text in zip(run, token_texts(ids[0, run].tolist(), processor.tokenizer)):
            texts[place] = text
    image = MapImage.of(layout.grids[0][0], picture, model.config, processor)
    return AttentionMaps(
        rows=rows_at[None],
        weights={layer: full[layer][:, :, rows_at].float() for layer in range(len(full))},
        layout=layout,
        ids=ids,
        targets=targets[None],
        pieces=(tuple(texts),),
        images=((image,),),
        heads=tuple(range(full[0].shape[1])),
        meta={
            "model": "LLaVA, 6 layers of 4 heads",
            "prompts": [question],
            "answers": ["".join(texts[prompt:])],
            "interventions": [],
        },
    )
