"""What a family says of itself and gives for a prompt: of the right kind, or refused with one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from lvlm_attn.errors import LvlmAttnError, closest, shown
from lvlm_attn.layout.grids import ImageGrid

if TYPE_CHECKING:
    from lvlm_attn.families.family import Family


def need_family(family: Family, masks: Any) -> None:
    """Checks what a family says of itself.

    Args:
        family: the family.
        masks: the literal type of what masks there are.

    Raises:
        LvlmAttnError: if it has no name, no function of grids, or a mask that is not known.
    """
    if not isinstance(family.name, str) or not family.name.strip():
        raise LvlmAttnError(
            f"Family: name={shown(family.name)} must be the model type, as config.model_type has it."
        )
    if not callable(family.grids):
        raise LvlmAttnError(
            f"Family {family.name!r}: grids={shown(family.grids)} must be a function of ImageInputs that gives one "
            f"ImageGrid for each image."
        )
    if not callable(family.text_mask):
        need_mask(family, family.text_mask, masks)


def need_mask(family: Family, kind: Any, masks: Any) -> None:
    """Raises `LvlmAttnError`, with the closest one, unless a mask is one that is known."""
    known = get_args(masks)
    if not isinstance(kind, str) or kind not in known:
        hint = closest(kind, known) if isinstance(kind, str) else ""
        raise LvlmAttnError(
            f"Family {family.name!r}: text_mask={shown(kind)} must be one of {', '.join(known)}, or a function "
            f"that gives one.{hint}"
        )


def checked_grids(family: Family, found: Any, what: str = "image") -> list[ImageGrid]:
    """What the function of a family gave for the images or videos of a prompt.

    Raises:
        LvlmAttnError: if it is no list of `ImageGrid`.
    """
    if isinstance(found, Sequence) and all(isinstance(grid, ImageGrid) for grid in found):
        return list(found)
    came = (
        next((grid for grid in found if not isinstance(grid, ImageGrid)), None) if _is_list(found) else found
    )
    among = " among others" if _is_list(found) else ""
    raise LvlmAttnError(
        f"Family {family.name!r}: grids gave {shown(came)}{among}; it must give a list with one ImageGrid for each "
        f"{what} that begins in the ids."
    )


def _is_list(found: Any) -> bool:
    return isinstance(found, Sequence) and not isinstance(found, str)
