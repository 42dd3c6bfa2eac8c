"""Draws docs/images/toy.png: test scenes of the toy with what the bundled model says of them.

python docs/make_toy_picture.py
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import lvlm_attn as la
from lvlm_attn import toy
from lvlm_attn.evals.chair.vocab import read_caption

SIDE, GAP, SCENES, LINES = 288, 16, 4, 6
DESCRIBE = "Please describe this image in detail."


def main() -> None:
    """Describes the first test scenes, and marks what is not in them."""
    model, processor = la.load("toy")
    chosen = toy.scenes("test", SCENES)
    with la.wrap(model, processor=processor) as lvlm:
        captions = lvlm.generate(
            images=[scene.image for scene in chosen],
            prompts=[DESCRIBE] * SCENES,
            max_new_tokens=64,
            do_sample=False,
        )
    font = ImageFont.load_default(size=15)
    height = SIDE + 3 * GAP + 20 * LINES
    sheet = Image.new("RGB", (SCENES * (SIDE + GAP) + GAP, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (scene, caption) in enumerate(zip(chosen, captions)):
        left = GAP + column * (SIDE + GAP)
        sheet.paste(scene.image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, GAP))
        named = {mention.node for mention in read_caption(caption).mentions}
        absent = sorted(named - set(scene.names))
        for line, text in enumerate(textwrap.wrap(caption, 40)[: LINES - 1]):
            draw.text((left, SIDE + 2 * GAP + 20 * line), text, fill="#222222", font=font)
        verdict = f"not there: {', '.join(absent)}" if absent else "all of it is there"
        draw.text((left, height - 20 - GAP // 2), verdict, fill="#b03020" if absent else "#207040", font=font)
    path = Path(__file__).parent / "images" / "toy.png"
    sheet.save(path)
    print(path)


if __name__ == "__main__":
    main()
