"""The page of a model family, from its source."""

from __future__ import annotations

import sys
from typing import Any

_MASKS = {
    "causal": "Every token attends to what comes before it.",
    "bidirectional_images": "The tokens of an image attend to each other both ways, all others to what comes before.",
    "bidirectional_prompt": "The whole prompt attends to itself both ways; the answer is causal.",
}


def page_of(family: Any) -> str:
    """The page of a family.

    Args:
        family: an `lvlm_attn.Family` of this package.
    """
    module = sys.modules[f"lvlm_attn.families.{family.name}"]
    first, _, rest = (module.__doc__ or "").partition("\n\n")
    mask = family.text_mask
    refused = [
        text
        for applies, text in (
            (not family.encoder, "`PAINT` and `VMTC`: where the encoder's patches stand among the tokens is not worked out."),
            (not family.has_grid, "`Neighborhood`, `CrossLMM`: rows and columns of the image are not known."),
            (not family.modules_fit, "A trained `CrossLMM`: a layer's attention is not added to the residual stream as it is."),
            (not family.places, "Maps on the picture, `AGLA`'s masks and `CARVE`: where patches lie in the picture is not known."),
            (family.marks_between, "Prompts with images in chunks: other tokens stand between the tokens of an image."),
        )
        if applies
    ]
    lines = [
        f"# {family.title}",
        "",
        f"`config.model_type` is `{family.name}`. {first.strip()}",
        "",
        rest.strip(),
        "",
        "## In short",
        "",
        "| | |",
        "|---|---|",
        f"| grid | {family.remarks or 'see above'} |",
        f"| text mask | {_MASKS.get(mask, 'depends on the configuration; see above.') if isinstance(mask, str) else 'Models of the family differ; see above.'} |",
        f"| same grid for every image | {'yes' if family.grid_is_fixed else 'no'} |",
        f"| models | {', '.join(f'`{one}`' for one in family.examples) or 'none named'} |",
        "",
        "## Refused here",
        "",
        *([f"- {text}" for text in refused] or ["Nothing beyond [what is refused everywhere](../families.md#refused-by-family)."]),
        "",
        "## Load it",
        "",
        "```python",
        "# needs the model's weights",
        "import lvlm_attn as la",
        "",
        f'model, processor = la.load("{(family.examples or ("a/model",))[0]}", dtype="bfloat16")',
        "with la.wrap(model, la.VHR(), processor=processor) as lvlm:",
        '    print(lvlm.generate(images=["photo.jpg"], prompts=["What is in this image?"], max_new_tokens=64))',
        "```",
        "",
    ]
    return "\n".join(lines)
