"""ICD: contrasts the prompt with a disturbed instruction, which brings out what the model makes up.

Source: Wang et al., "Mitigating Hallucinations in Large Vision-Language Models with Instruction Contrastive
Decoding", Findings of ACL 2024 (arXiv 2403.18715), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from lvlm_attn.decoding.contrast import contrast, cut
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.checks import need_number, need_words

if TYPE_CHECKING:
    from lvlm_attn.prompts.request import Request

CONFUSED = "You are a confused objects detector to provide a fuzzy overview or impression of the image."
"""The disturbing instruction of the paper."""


@dataclass(frozen=True)
class ICD(Intervention):
    """Instruction contrastive decoding, in `lvlm.generate`.

    The prompt is decoded twice in one batch, as it is and with a disturbing instruction at its beginning.
    Next-token logits are `(1 + lam) * z - lam * z_disturbed` at the tokens that z itself finds plausible, and
    minus infinity elsewhere; temperature and all else the user set come after that.

    The instruction takes the place of the system message where the prompt is made from a question
    (`images=`, `prompts=`) by a chat template that shows one. In prompts given as tensors or in full, it stands
    after the beginning-of-sequence token, or before the first image where there is no such token. Either
    way the wrap needs the processor. Images are encoded once for both.

    `lam=0, beta=0` changes nothing, and nothing is decoded twice. `lam=0` with a positive `beta` only cuts.

    Args:
        lam: strength of the contrast; 1 in the released code, for all models and tasks.
        beta: a token stays if it is at least `beta` times as likely as the likeliest; 0 keeps all. The released
            code takes 0.1, for all models and tasks.
        prefix: the disturbing instruction.

    Raises:
        LvlmAttnError: if a parameter is out of its range; in use, if the wrap has no processor.

    Example:
        >>> str(ICD(lam=0.5))
        'icd:lam=0.5'
    """

    name: ClassVar[str] = "icd"

    lam: float = 1.0
    beta: float = 0.1
    prefix: str = CONFUSED

    def __post_init__(self) -> None:
        need_number(self, "lam", least=0)
        need_number(self, "beta", least=0, most=1)
        need_words(self, "prefix", remark="leave it out for the paper's")

    def is_neutral(self) -> bool:
        """Whether the logits stay as they are."""
        return self.lam == 0 and self.beta == 0

    def views(self, request: Request) -> Sequence[Request]:
        """The same prompts under the disturbing instruction."""
        return (request.with_instruction(self.prefix, self.title),)

    def fuse(self, main: Tensor, views: Sequence[Tensor], step: int) -> Tensor:
        """Contrasts the two views at plausible tokens."""
        return cut(contrast(main, views[0], self.lam), main, self.beta)
