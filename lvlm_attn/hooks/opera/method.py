"""OPERA: beam search that distrusts words read off a summary token, and goes back when beams keep doing so.

Source: Huang et al., "OPERA: Alleviating Hallucination in Multi-Modal Large Language Models via Over-Trust Penalty and
Retrospection-Allocation", CVPR 2024 (arXiv 2311.17911), sections 3.2 and 3.3, and its released code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from lvlm_attn.families.target import Target
from lvlm_attn.hooks.opera.loop import search
from lvlm_attn.hooks.opera.scores import TAPE, Rule
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.checks import need_number, need_whole
from lvlm_attn.interventions.context import Layer
from lvlm_attn.kernels.readouts import Reading, Readout

if TYPE_CHECKING:
    from lvlm_attn.prompts.request import Request


@dataclass(frozen=True)
class OPERA(Intervention):
    """Over-trust penalty and retrospection-allocation, in `lvlm.generate(..., num_beams=5)`.

    In the last layer, the attention of the answer's tokens on each other (the largest over heads, rows summing to 1)
    is multiplied by `sigma` and multiplied down every column: a token that all later ones attend to has a large
    column score. Each beam's best `candidates` words are looked ahead at, and the largest column score with the word
    in place, times `alpha`, is taken from its logit. With up to 10 tokens there is no pattern yet, and the attention
    on the image is a bonus instead. If in every beam the largest column is the same at least `r` times, the search
    goes back to that column and chooses other words behind it, at most `beta` times for a column.

    The candidates of all beams are read in one forward, side by side at one position, whose results the chosen ones
    keep; so a step costs one forward. Going back crops the cache to the prompt and reads the kept answer again. Any
    attention backend that takes a dense mask will do (`eager`, `sdpa`).

    With `candidates=1` nothing is looked ahead at. A penalty would be the same for every word of a beam, so beam
    search and going back remain, which is the authors' fast setting with `r=25`.

    Args:
        candidates: words of each beam that are judged, N_can in the paper.
        sigma: factor on the attention among the answer's tokens.
        alpha: factor on the penalty.
        r: how often a column must be the largest in every beam; None never goes back. The released code asks for
            more than `r` times.
        beta: how often a column may be gone back to.

    Raises:
        LvlmAttnError: if a parameter is out of its range.

    Example:
        >>> str(OPERA(candidates=1, r=25))
        'opera:candidates=1,r=25'
    """

    name: ClassVar[str] = "opera"
    needs_image: ClassVar[bool] = True
    beams: ClassVar[int] = 5

    candidates: int = 5
    sigma: float = 50.0
    alpha: float = 1.0
    r: int | None = 15
    beta: int = 5

    def __post_init__(self) -> None:
        need_whole(self, "candidates", 1, 1000)
        need_number(self, "sigma", above=0, most=1e6)
        need_number(self, "alpha", least=0, most=1e6)
        need_whole(self, "r", 1, or_none=True)
        need_whole(self, "beta", 1, 1000)

    def is_neutral(self) -> bool:
        """Whether plain beam search is left."""
        return self.candidates == 1 and self.r is None

    def layers_at(self, site: str, target: Target) -> Sequence[int]:
        """The last layer."""
        return (target.layers - 1,)

    def rows_at_once(self) -> int | None:
        """One, where the search may go back."""
        return None if self.r is None else 1

    def loop(self, request: Request) -> Callable[..., Any]:
        """The beam search."""
        rule = Rule(self.candidates, self.sigma, self.alpha, self.r, self.beta)
        is_image = (request.layout.image >= 0).to(request.inputs["input_ids"].device)

        def loop(model: Any, input_ids: Tensor, **options: Any) -> Any:
            return search(model, input_ids, rule=rule, is_image=is_image, **options)

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
