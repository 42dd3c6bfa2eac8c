"""CARVE: asks again about the part of the image that matters for the question.

Source: Ge et al., "Focusing by Contrastive Attention: Enhancing VLMs' Visual Reasoning", arXiv 2509.06461,
section 4 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.checks import (
    need_choice,
    need_flag,
    need_layers,
    need_number,
    need_whole,
    need_words,
)
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.interventions.presets import HasPresets, Preset, preset_field
from lvlm_attn.maps.contrast import GENERAL, ContrastMap, Mode, contrast_maps
from lvlm_attn.maps.crops import refine
from lvlm_attn.maps.geometry import crops_centre
from lvlm_attn.maps.maps import Map, Mask
from lvlm_attn.maps.reading import scaled_layers
from lvlm_attn.maps.regions import Box, RegionRule, best_regions, threshold
from lvlm_attn.prompts.template import image_token

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_attn.prompts.request import Request

SUFFIX = "Answer the question using a single word or phrase."

PRESETS = {
    "paper": Preset(
        {"p": 0.4, "K": 2, "mode": "last", "images": "refined_only", "regions": "paper"},
        "paper: the best steps (Table 1), and within the best shares and numbers of regions (Figure 7)",
    ),
    "code": Preset(
        {
            "p": 0.2,
            "K": 3,
            "mode": "all",
            "layers": "20..25",
            "steps": 32,
            "lam": 1e-8,
            "images": "original_plus_refined",
            "suffix_on_general": True,
            "suffix_on_question": True,
            "regions": "released",
            "fit_crop": False,
        },
        "released code; maps still lie where the model sees the image, and crops are enlarged within bounds",
        {"max_new_tokens": 32},
    ),
}
"""Settings by name. The same for all models; what differs by model is the depth that `layers` is scaled to."""


@dataclass(frozen=True, eq=False)
class Carved:
    """What CARVE made of one image.

    Attributes:
        map: `(height, width)`, the contrast in pixels of the image.
        mask: `(height, width)`, True at the pixels that are kept.
        box: (left, top, right, bottom) of the crop, right and bottom exclusive.
        image: the refined image; the image itself if nothing was taken away.
    """

    map: Map
    mask: Mask
    box: Box
    image: Image


@dataclass(frozen=True)
class CARVE(HasPresets):
    """Contrastive attention refinement of the image.

    The attention of the answer on every patch is divided by the attention that a general instruction pays to
    it. The `p` pixels of highest contrast are kept, of these the `K` connected regions with the highest sum;
    everything else becomes black, the bounding box is cut out and enlarged, and the question is asked about
    that. It runs in `lvlm.generate(images=..., prompts=...)`; `lvlm.details["CARVE"][row][image]` holds the
    map, the mask, the box and the refined image. Several images of a row share one threshold and the `K`
    regions; an image of which nothing is kept stays as it is. Rows without an image stay too.

    The two prompts share one pass over the image. In mode `"first"` the model is left after the last layer whose
    attention is used, so the answer costs little more than a plain one and the refined image; `"last"` and `"all"`
    decode both prompts greedily for up to `steps` tokens. Under interventions that act inside the model both prompts
    go through all layers.

    Args:
        p: share of the pixels that is kept; 1 keeps all and changes nothing. The paper's best are 0.2 to 0.6.
        K: number of regions that are kept; the paper's best are 2 and 3.
        mode: which steps are contrasted: `"last"` (the paper's best), `"first"` (cheapest) or `"all"`.
        layers: which layers; None is 20 to 25 of 32, scaled to the model. The paper takes 20 to 25 in all its
            models, of 28 to 40 layers.
        steps: the most answer tokens in modes `"last"` and `"all"`.
        lam: regularisation of the contrast. The paper gives no value; this is the released code's.
        lam_rel: the same relative to the mean attention of the general instruction; replaces `lam`.
        images: what the question is asked about: `"refined_only"` (the paper) or `"original_plus_refined"`
            (the released code), which shows both.
        general: the general instruction.
        suffix_on_general: end the general instruction with `suffix`, as the released code does.
        suffix_on_question: end the question with `suffix`, as the released code does, in the contrast and in what is
            answered; otherwise questions are taken as they are.
        suffix: the short-answer instruction of the released code.
        regions: `"paper"` keeps `K` regions; `"released"` keeps `max(K, int(p * number of regions))`.
        max_zoom: the largest factor by which a crop is enlarged.
        fit_crop: for processors that cut off the ends of a long image: add black so that they cut off nothing of
            the crop. The released code does not.
        preset: `"auto"`, which is `"paper"` here, or a name of `PRESETS`, for parameters that are left out.

    Raises:
        LvlmAttnError: if a parameter is out of its range.

    Example:
        >>> str(CARVE(p=0.3, mode="first"))
        'carve:p=0.3,mode=first'
    """

    name: ClassVar[str] = "carve"
    needs_image: ClassVar[bool] = True

    p: float = 0.4
    K: int = 2
    mode: Mode = "last"
    layers: Layers = None
    steps: int = 32
    lam: float = 1e-8
    lam_rel: float | None = None
    images: Literal["refined_only", "original_plus_refined"] = "refined_only"
    general: str = GENERAL
    suffix_on_general: bool = False
    suffix_on_question: bool = False
    suffix: str = SUFFIX
    regions: RegionRule = "paper"
    max_zoom: float = 8.0
    fit_crop: bool = True
    preset: str = preset_field()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __post_init__(self) -> None:
        self.apply_preset()
        need_number(self, "p", above=0, most=1)
        need_number(self, "lam", least=0)
        if self.lam_rel is not None:
            need_number(self, "lam_rel", least=0)
        need_number(self, "max_zoom", least=1)
        need_whole(self, "K", 1, 10_000)
        need_whole(self, "steps", 1, 4096)
        need_choice(self, "mode", ("last", "first", "all"))
        need_choice(self, "images", ("refined_only", "original_plus_refined"))
        need_choice(self, "regions", ("paper", "released"))
        need_flag(self, "suffix_on_general")
        need_flag(self, "suffix_on_question")
        need_flag(self, "fit_crop")
        need_words(self, "general")
        need_words(self, "suffix")
        need_layers(self)

    def is_neutral(self) -> bool:
        """Whether the image always stays as it is."""
        return self.p == 1 and self.images == "refined_only" and not self.suffix_on_question

    def default_layers(self, target: Target) -> Layers:
        """Layers 20 to 25 of 32, scaled to the model."""
        return scaled_layers(20, 25, target.layers)

    def rewrite(self, request: Request) -> Request:
        """Finds the region and puts the refined images in place of the given ones, or after them."""
        groups = request.need_images(self.title)
        if self.images == "original_plus_refined" or self.suffix_on_question:
            _refuse_own_tokens(request)
        if self.suffix_on_question:
            questions = [f"{question} {self.suffix}" for question in request.questions or ()]
            request = request.asking(questions)
        general = f"{self.general} {self.suffix}" if self.suffix_on_general else self.general
        maps = contrast_maps(
            request,
            self.layers,  # type: ignore[arg-type]
            general=general,
            mode=self.mode,
            steps=self.steps,
            lam=self.lam,
            lam_rel=self.lam_rel,
        )
        to_square = self.fit_crop and crops_centre(request.target.processor)
        carved = [self.carve(images, row, to_square) for images, row in zip(groups, maps)]
        request.details[self.title] = carved
        refined = [[item.image for item in row] for row in carved]
        if self.images == "refined_only":
            return request.with_images(refined)
        both = [list(images) + row for images, row in zip(groups, refined)]
        return request.asking(request.questions or (), both)

    def carve(
        self, images: list[Image], maps: list[ContrastMap], pad_to_square: bool = False
    ) -> list[Carved]:
        """Cuts out what matters from the images of one prompt.

        Args:
            images: the images.
            maps: their contrast maps.
            pad_to_square: see `lvlm_attn.maps.crops.refine`.
        """
        values = [item.map for item in maps]
        raw = threshold(values, self.p, [item.is_seen for item in maps])
        masks = best_regions(raw, values, self.K, self.regions, self.p)
        found = []
        for image, value, mask in zip(images, values, masks):
            refined, box = refine(image, mask, self.max_zoom, pad_to_square)
            found.append(Carved(value, mask, box, refined))
        return found


def _refuse_own_tokens(request: Request) -> None:
    """Two images where there was one need a new prompt, which cannot be made from one that says where images stand."""
    if not all(chat.images_come_first for chat in request.chats or ()):
        token = image_token(request.target.processor)
        raise LvlmAttnError(
            f"CARVE: images=original_plus_refined and suffix_on_question write the prompt themselves; give the "
            f"question without {token!r}."
        )
