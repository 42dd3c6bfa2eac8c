"""VCD: contrasts the image with a noisy copy of it, so that what the words alone suggest cancels out.

Source: Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive
Decoding", CVPR 2024 (arXiv 2311.16922), sections 3.2 and 3.3; the noise schedule is that of the released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lvlm_attn.decoding.contrast import contrast, cut
from lvlm_attn.interventions.checks import need_number, need_whole
from lvlm_attn.interventions.presets import HasPresets, Preset, preset_field

if TYPE_CHECKING:
    from lvlm_attn.prompts.request import Request

STEPS = 1000
"""Steps of the diffusion schedule."""


PRESETS = {
    "code": Preset(
        {"alpha": 1.0, "beta": 0.1, "noise_step": 500},
        "released evaluation: what it takes where its command line says nothing",
        {"do_sample": True},
    ),
    "pope": Preset(
        {"alpha": 1.0, "beta": 0.2, "noise_step": 500},
        "the released scripts for POPE with LLaVA-1.5",
        {"do_sample": True},
    ),
}
"""Settings by name."""


@dataclass(frozen=True)
class VCD(HasPresets):
    """Visual contrastive decoding, in `lvlm.generate`.

    The prompt is decoded twice in one batch, with its images and with noisy copies of them. Next-token logits are
    `(1 + alpha) * z - alpha * z_noisy` at the tokens that z itself finds plausible, and minus infinity elsewhere;
    temperature and all else the user set come after that. The paper samples from them; greedy decoding works as
    well. The noisy view keeps its own cache, as in the released loop since July 2024; before, both views shared one
    from the second token on. Samples without an image keep their logits.

    `alpha=0, beta=0` changes nothing, and nothing is decoded twice. `alpha=0` with a positive `beta` only cuts.

    Args:
        alpha: strength of the contrast.
        beta: a token stays if it is at least `beta` times as likely as the likeliest; 0 keeps all. The released
            script for POPE takes 0.2.
        noise_step: how much noise, 0 (almost none) to 999 (mostly noise).
        noise_seed: seed of the noise. Every image draws from a generator of its own, seeded by this number and
            the image's place in its prompt, so that a sample does not depend on the batch it stands in.
        preset: `"auto"`, which is `"code"` here, or a name of `PRESETS`, for parameters that are left out.

    Raises:
        LvlmAttnError: if a parameter is out of its range.

    Example:
        >>> str(VCD(alpha=0.5, noise_step=700))
        'vcd:alpha=0.5,noise_step=700'
    """

    name: ClassVar[str] = "vcd"
    needs_image: ClassVar[bool] = True

    alpha: float = 1.0
    beta: float = 0.1
    noise_step: int = 500
    noise_seed: int = 0
    preset: str = preset_field()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __post_init__(self) -> None:
        self.apply_preset()
        need_number(self, "alpha", least=0)
        need_number(self, "beta", least=0, most=1)
        need_whole(self, "noise_step", 0, STEPS - 1)
        need_whole(self, "noise_seed", 0)

    def is_neutral(self) -> bool:
        """Whether the logits stay as they are."""
        return self.alpha == 0 and self.beta == 0

    def views(self, request: Request) -> Sequence[Request]:
        """The same prompts with noisy images."""
        if not bool(request.layout.has_image.any()):
            return ()
        return (
            request.with_pixels(lambda pixels, index: noisy(pixels, self.noise_step, self.noise_seed, index)),
        )

    def fuse(self, main: Tensor, views: Sequence[Tensor], step: int) -> Tensor:
        """Contrasts the two views at plausible tokens."""
        return cut(contrast(main, views[0], self.alpha), main, self.beta)


def noisy(pixels: Tensor, step: int, seed: int = 0, index: int = 0) -> Tensor:
    """`sqrt(kept) * pixels + sqrt(1 - kept) * noise`, the forward diffusion of normalised pixels.

    Args:
        pixels: `(tiles, channels, height, width)` or `(patches, values)` of one image.
        step: of the schedule.
        seed: of the noise.
        index: which image of its prompt it is.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    # Tile by tile, so that tiles added as padding do not change the noise of the others.
    shapes = [pixels.shape[1:]] * len(pixels) if pixels.dim() == 4 else [pixels.shape]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    noise = (torch.stack(drawn) if pixels.dim() == 4 else drawn[0]).to(pixels.device)
    kept = kept_signal()[step]
    mixed: Tensor = kept**0.5 * pixels.float() + (1 - kept) ** 0.5 * noise
    return mixed.to(pixels.dtype)


@lru_cache(maxsize=1)
def kept_signal() -> tuple[float, ...]:
    """The share of the signal's variance that is left at each step of the schedule.

    Example:
        >>> [round(kept_signal()[step], 3) for step in (0, 500, 999)]
        [1.0, 0.745, 0.081]
    """
    betas = torch.sigmoid(torch.linspace(-6, 6, STEPS, dtype=torch.float64)) * (5e-3 - 1e-5) + 1e-5
    return tuple((1 - betas).cumprod(0).tolist())
