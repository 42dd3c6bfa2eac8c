"""OPERA: beam search that penalises tokens that over-trust a summary token, and goes back when beams keep doing so.

Source: Huang et al., "OPERA: Alleviating Hallucination in Multi-Modal Large Language Models via Over-Trust Penalty and
Retrospection-Allocation", CVPR 2024 (arXiv 2311.17911), sections 3.2 and 3.3, and its released code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from lvlm_attn.families.target import Target
from lvlm_attn.hooks.opera.loop import search
from lvlm_attn.hooks.opera.released import search_released
from lvlm_attn.hooks.opera.scores import TAPE, Rule
from lvlm_attn.interventions.checks import need_choice, need_number, need_whole
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.presets import HasPresets, Preset, preset_field
from lvlm_attn.kernels.readouts import Reading, Readout

if TYPE_CHECKING:
    from lvlm_attn.prompts.request import Request


PRESETS = {
    "paper": Preset(
        {"rules": "paper", "candidates": 5, "sigma": 50.0, "alpha": 1.0, "r": 15, "beta": 5},
        "paper, sections 3.2 and 3.3, with the settings of its experiments",
        {"num_beams": 5},
    ),
    "code": Preset(
        {"rules": "code", "candidates": 5, "sigma": 50.0, "alpha": 1.0, "r": 16, "beta": 5},
        "released README: the same for POPE and CHAIR, and for all models; its threshold 15 asks for more than 15",
        {"num_beams": 5, "max_new_tokens": 512},
    ),
    "fast": Preset(
        {"rules": "code", "candidates": 1, "sigma": 50.0, "alpha": 1.0, "r": 26, "beta": 1},
        "released code: its fast setting, threshold 25 and one candidate",
        {"num_beams": 5, "max_new_tokens": 512},
    ),
}
"""Settings by name. Nothing is published by model."""


@dataclass(frozen=True)
class OPERA(HasPresets):
    """Over-trust penalty and retrospection-allocation, in `lvlm.generate(..., num_beams=5)`.

    In the last layer, the attention of the answer's tokens on each other (the largest over heads, rows summing to 1)
    is multiplied by `sigma` and multiplied down every column: a token that all later ones attend to has a large column
    score. Each beam's best `candidates` tokens are looked ahead at, and the largest column score with the candidate in
    place, times `alpha`, is taken from its logit. With up to 10 tokens there is no pattern yet, and the attention on
    the image is a bonus instead. If in every beam the largest column is the same at least `r` times, the search goes
    back to that column and chooses other tokens after it, at most `beta` times for a column.

    The candidates of all beams are processed in one forward, side by side at one position, whose results the chosen
    ones keep; so a step costs one forward. Going back crops the cache to the prompt and processes the kept answer
    again. Any attention backend that takes a dense mask will do (`eager`, `sdpa`).

    With `candidates=1` nothing is looked ahead at. A penalty would be the same for every token of a beam, so beam
    search and going back remain.

    `rules="code"` is what the released code does instead:

    - Candidates are chosen before logits processors act, and share all probability even if there is one, since all
      other tokens get a logit of -999. With one candidate the best beam is greedy decoding, and going back is what
      remains of the search.
    - The column in question is that of most candidates and beams at this step, not the most frequent one so far; each
      place among the beams has a history, which stays there when beams change places.
    - A position that was gone back to `beta` times is left for the one before it. Places gone back to may lie before
      earlier ones.
    - A token is given up in its parent beam alone, and gets the logit of the least likely token, not none. The others
      are chosen from the whole vocabulary, without a penalty.
    - In answers of more than 512 tokens it does not go back.

    What is left of the difference: the released code keeps column scores in 16 bits, and ties between tokens at -999
    fall as the device sorts them.

    Args:
        candidates: tokens of each beam that are judged, N_can in the paper.
        sigma: factor on the attention among the answer's tokens.
        alpha: factor on the penalty.
        r: how often a column must be the largest in every beam; None never goes back. The released code asks for
            more than its threshold, which is one less.
        beta: how often a column may be gone back to. The released code takes the number of candidates.
        rules: `"paper"` or `"code"`, see above.
        preset: `"auto"`, which is `"paper"` here, or a name of `PRESETS`, for parameters that are left out.

    Raises:
        LvlmAttnError: if a parameter is out of its range.

    Example:
        >>> str(OPERA(preset="fast"))
        'opera:candidates=1,r=26,beta=1,rules=code'
    """

    name: ClassVar[str] = "opera"
    needs_image: ClassVar[bool] = True
    beams: ClassVar[int] = 5

    candidates: int = 5
    sigma: float = 50.0
    alpha: float = 1.0
    r: int | None = 15
    beta: int = 5
    rules: Literal["paper", "code"] = "paper"
    preset: str = preset_field()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __post_init__(self) -> None:
        self.apply_preset()
        need_whole(self, "candidates", 1, 1000)
        need_number(self, "sigma", above=0, most=1e6)
        need_number(self, "alpha", least=0, most=1e6)
        need_whole(self, "r", 1, or_none=True)
        need_whole(self, "beta", 1, 1000)
        need_choice(self, "rules", ("paper", "code"))

    def is_neutral(self) -> bool:
        """Whether plain beam search is left."""
        return self.candidates == 1 and self.r is None and self.rules == "paper"

    def layers_at(self, site: str, target: Target) -> Sequence[int]:
        """The last layer."""
        return (target.layers - 1,)

    def rows_at_once(self) -> int | None:
        """One, where the search may go back."""
        return None if self.r is None and self.rules == "paper" else 1

    def loop(self, request: Request) -> Callable[..., Any]:
        """The beam search."""
        rule = Rule(self.candidates, self.sigma, self.alpha, self.r, self.beta)
        run = search_released if self.rules == "code" else None
        is_image = (request.layout.image >= 0).to(request.inputs["input_ids"].device)

        def loop(model: Any, input_ids: Tensor, **options: Any) -> Any:
            return search(model, input_ids, rule=rule, is_image=is_image, run=run, **options)

        return loop

    def readout(self, layer: Layer) -> Readout | None:
        """Asks for the rows of the answer's tokens while a search listens."""
        tape = TAPE.get()
        if tape is None or layer.is_prompt:
            return None
        every = torch.ones(
            layer.layout.batch, layer.call.queries, dtype=torch.bool, device=layer.layout.device
        )
        return Readout(every, rows="heads")

    def read(self, layer: Layer, reading: Reading) -> None:
        """Keeps the rows, the largest over heads, made to sum to 1."""
        tape = TAPE.get()
        if tape is not None:
            largest = cast("Tensor", reading.rows).amax(1).double()
            tape.rows = largest / largest.sum(-1, keepdim=True)
            tape.stats = layer.stats

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Answers, tokens chosen and how often the search went back."""
        return [dict(stats["search"])] if "search" in stats else []
