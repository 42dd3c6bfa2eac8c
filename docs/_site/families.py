"""The page of a model family, from its source."""

from __future__ import annotations

import sys
from string import Template
from typing import Any

_MASKS = {
    "causal": "every token attends to what comes before it",
    "bidirectional_images": "tokens of an image attend to each other both ways, all others to what comes before",
    "bidirectional_vision": "tokens of images and their markers attend to one another both ways, all others to what "
    "comes before",
    "bidirectional_prompt": "the whole prompt attends to itself both ways; the answer is causal",
    "chunked": "every token attends to what comes before it in its own chunk of the sequence, in most layers",
}
_REFUSED = {
    "encoder": "`PAINT` and `VMTC`: which patches of the encoder a token is made of is not worked out.",
    "has_grid": "`Neighborhood` and `CrossLMM`: rows and columns of the image are not known.",
    "modules_fit": "A trained `CrossLMM`: attention is not added to the residual stream as it is.",
    "places": "Maps on the picture, `AGLA`'s masks and `CARVE`: where patches lie in it is not known.",
}
_CHUNKS = "Prompts with images in chunks: other tokens stand between the tokens of an image."
_NONE = "Nothing beyond [what is refused everywhere](../families.md#refused-by-family)."
_PAGE = Template(
    """# $title

`config.model_type` is `$name`. $summary

$rest

## In short

| | |
|---|---|
| grid | $remarks |
| text mask | $mask |
| the same grid for every image | $fixed |
| models | $examples |

## Refused here

$refused

## Load it

```python
# needs the model's weights
import lvlm_attn as la
from PIL import Image

model, processor = la.load("$example", dtype="bfloat16")
image = Image.open("photo.jpg")
with la.wrap(model, la.VHR(), processor=processor) as lvlm:
    print(lvlm.generate(images=[image], prompts=["What is in this image?"], max_new_tokens=64))
```
"""
)


def page_of(family: Any) -> str:
    """The page of a family.

    Args:
        family: an `lvlm_attn.Family` of this package.
    """
    summary, _, rest = (sys.modules[f"lvlm_attn.families.{family.name}"].__doc__ or "").partition("\n\n")
    mask = family.text_mask
    refused = [text for name, text in _REFUSED.items() if not getattr(family, name)]
    if family.marks_between:
        refused.append(_CHUNKS)
    return _PAGE.substitute(
        title=family.title,
        name=family.name,
        summary=summary.strip(),
        rest=rest.strip(),
        remarks=family.remarks or "see above",
        mask=_MASKS[mask] if isinstance(mask, str) else "models of the family differ; see above",
        fixed="yes" if family.grid_is_fixed else "no",
        examples=", ".join(f"`{one}`" for one in family.examples) or "none named",
        refused="\n".join(f"- {text}" for text in refused) or _NONE,
        example=(family.examples or ("a/model",))[0],
    )
