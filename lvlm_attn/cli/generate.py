"""`lvlm-attn generate`: one prompt about one or several pictures, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvlm_attn.cli.common import (
    Decode,
    Device,
    DeviceMap,
    Dtype,
    Intervene,
    Json,
    Model,
    Plugin,
    Seed,
    Temperature,
    check_decoding,
    load_model,
    print_json,
    read_interventions,
    say,
    tell,
)


def generate(
    model: Model,
    image: Annotated[
        list[Path], typer.Option("--image", help="The picture; repeat it for several in one prompt.")
    ],
    prompt: Annotated[str, typer.Option("--prompt", help="What to ask about it.")],
    intervene: Intervene = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Length limit of the answer.")
    ] = 128,
    decode: Decode = "greedy",
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    plugin: Plugin = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    report: Annotated[bool, typer.Option("--report", help="Also tell what each method did.")] = False,
    as_json: Json = False,
) -> None:
    """Answer a prompt about a picture or several, with or without interventions.

    Example: lvlm-attn generate --model toy --image kitchen.png --prompt "Describe this image." --intervene vhr
    """
    interventions = read_interventions(intervene)
    check_decoding(decode, temperature)
    from lvlm_attn.prompts.images import open_image

    pictures = [open_image(path) for path in image]
    loaded = load_model(model, device, dtype, device_map)
    from lvlm_attn.evals.core.answerer import Decoding, ModelAnswerer

    with ModelAnswerer(*loaded, interventions, Decoding(decode, max_new_tokens, temperature)) as answerer:
        (answer,) = answerer.answer_prepared(answerer.prepare_given([pictures], [prompt]), [seed])
        did = answerer.wrapped.report() if answerer.wrapped is not None else None
    if as_json:
        print_json(
            {
                "text": answer.raw_text,
                "prompt": answer.prompt,
                "interventions": [str(item) for item in interventions],
                "n_prompt_tokens": answer.n_prompt_tokens,
                "n_new_tokens": answer.n_new_tokens,
                "finish_reason": answer.finish_reason,
                "report": did.to_dict() if did is not None else None,
            }
        )
        return
    say(answer.raw_text.strip())
    if report and did is not None:
        tell(str(did))
