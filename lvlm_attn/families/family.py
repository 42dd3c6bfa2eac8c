"""What the package has to know of a model family: where its parts are and how its images become tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast

from torch import Tensor, nn

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families.checks import checked_grids, need_family, need_mask
from lvlm_attn.families.fits import Fit
from lvlm_attn.families.unwrap import unwrapped
from lvlm_attn.families.videos import Videos, holds_videos, video_token_id, with_videos
from lvlm_attn.layout.grids import ImageGrid
from lvlm_attn.layout.prompt import PromptLayout

TextMask = Literal[
    "causal", "bidirectional_images", "bidirectional_vision", "bidirectional_prompt", "chunked"
]
"""Who attends to whom in a text decoder: each position to those before it; each image to all of itself as well; the
tokens of all images, markers among them, to one another; the whole prompt to itself; or positions to those before them
in their chunk alone."""


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """What is known about the images of one prompt when the language model is about to process it.

    `generate` encodes the images before the prefill and hides their sizes, a plain forward does not; grids
    are found from whichever of the two there is.

    Attributes:
        config: the model's configuration.
        input_ids: `(batch, length)` token ids.
        call: the keyword arguments of the base model's forward (or the processor's outputs, before a
            forward).
        position_ids: as the language model got them: `(batch, length)`, or `(3 or 4, batch, length)` with
            rotary positions for time, height and width in the last three; None if it got none.
        newline: `(hidden,)` the embedding that ends a row of patches, in families that have one.
        inputs_embeds: `(batch, length, hidden)` embeddings with the image features in place; used only if
            `call` holds no images.
        after: the layout of what the cache already holds, if anything.
    """

    config: Any
    input_ids: Tensor
    call: Mapping[str, Any] = field(default_factory=dict)
    position_ids: Tensor | None = None
    newline: Tensor | None = None
    inputs_embeds: Tensor | None = None
    after: PromptLayout | None = None


@dataclass(frozen=True)
class Family:
    """A family of models that share a `config.model_type`.

    Paths are attribute names joined by dots: `language_model` and `vision` start at the base model, `layers`
    at the language model, `attention` at a layer and `output_projection` at its attention.

    Attributes:
        name: `config.model_type`.
        title: the name its authors gave it.
        grids: gives the grids of the images that begin in `image_inputs.input_ids`, in flat order.
        remarks: what a user should know.
        examples: hub ids of models of the family.
        base: attribute of the `...ForConditionalGeneration` model that holds the base model.
        language_model: path of the text decoder.
        layers: path of its list of layers.
        attention: path of a layer's attention.
        output_projection: path of the projection after the heads.
        final_norm: path of the norm after the last layer, from the language model.
        vision: path of the image encoder.
        newline: path of the row-ending embedding, or an empty string.
        grid_is_fixed: whether every image of a model takes the same grid, so that a prefill cut into chunks
            can be followed into the middle of an image.
        marks_between: whether other tokens stand between the image tokens of one image (breaks after rows, markers
            before tiles). They are fillers of the image, and a prompt with images cannot be prefilled in chunks.
        edges: ids of tokens that belong to the image they stand right before or after, from the configuration.
        text_mask: who attends to whom in the text decoder; a function of the configuration where models of the
            family differ. Wraps compare it with the mask that the model makes.
        token_types: the input that tells the model which tokens are an image, where its mask depends on it.
        first_position: what the model counts positions from; those that `generate` hands on begin with 0.
        encoder: whether rows of the image encoder's attention can be had (PAINT, VMTC).
        has_grid: whether image tokens stand in rows and columns that are known.
        places: whether it is known where the patches of a picture lie in it (maps, masks, crops).
        fit: how the image processor cuts or pads a picture, where its grid does not tell: from the grid, the width and
            height of the picture, the configuration and the image processor.
        modules_fit: whether the attention of a layer is added to the residual stream as it is, so that something
            else can be added after it (a trained CrossLMM).
        logits_divisor: attribute of the text configuration that the model divides its logits by (DoLa).
        late_features: whether layers after the first add image features of their own (CrossLMM).
        videos: how videos are written; None where they are refused.

    Raises:
        LvlmAttnError: if it has no name or no function of grids, or says of its mask what no wrap knows.
    """

    name: str
    title: str
    grids: Callable[[ImageInputs], list[ImageGrid]]
    remarks: str = ""
    examples: tuple[str, ...] = ()
    base: str = "model"
    language_model: str = "language_model"
    layers: str = "layers"
    attention: str = "self_attn"
    output_projection: str = "o_proj"
    final_norm: str = "norm"
    vision: str = "vision_tower"
    newline: str = ""
    grid_is_fixed: bool = False
    marks_between: bool = False
    edges: Callable[[Any], Sequence[int]] | None = None
    text_mask: TextMask | Callable[[Any], TextMask] = "causal"
    token_types: str = ""
    first_position: int = 0
    encoder: bool = True
    has_grid: bool = True
    places: bool = True
    fit: Callable[[ImageGrid, tuple[int, int], Any, Any], Fit] | None = None
    modules_fit: bool = True
    logits_divisor: str = ""
    late_features: bool = False
    videos: Videos | None = None

    def __post_init__(self) -> None:
        need_family(self, TextMask)

    def mask_of(self, config: Any, given: Mapping[str, Any] | None = None) -> TextMask:
        """The mask of a model of the family, or of one call of it.

        Args:
            config: configuration of the model.
            given: the arguments of a call; without the token types the model attends causally.
        """
        if isinstance(self.text_mask, str):
            kind = self.text_mask
        else:
            kind = self.text_mask(config)
            need_mask(self, kind, TextMask)
        is_told = not self.token_types or given is None or given.get(self.token_types) is not None
        return kind if is_told else "causal"


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules of one model that interventions attach to.

    All are the modules themselves, without adapters and compilation around them.

    Attributes:
        model: the model.
        base: the base model; the model itself where that was given.
        language_model: the text decoder.
        layers: its layers.
        attentions: the softmax attention of each layer; None at layers that have another kind.
        output_projections: the projection after its heads; None at layers without softmax attention.
        vision: the image encoder.
        text_config: configuration of the text decoder.
        newline_path: where the row-ending embedding is in the base model, in families that have one.
    """

    model: nn.Module
    base: nn.Module
    language_model: nn.Module
    layers: list[nn.Module]
    attentions: list[nn.Module | None]
    output_projections: list[nn.Module | None]
    vision: nn.Module
    text_config: Any
    newline_path: str = ""

    @property
    def newline(self) -> Tensor | None:
        """`(hidden,)` the row-ending embedding as it is now: offloaded weights come and go."""
        found = _get(self.base, self.newline_path) if self.newline_path else None
        return found if isinstance(found, Tensor) else None

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        """Indices of the layers with softmax attention; the others (convolution, linear attention) have none."""
        return tuple(index for index, found in enumerate(self.attentions) if found is not None)


def find_parts(model: nn.Module, family: Family) -> Parts:
    """Finds the parts of a `...ForConditionalGeneration` model or of its inner base model.

    Adapters (`peft`) and compiled models are looked through.

    Raises:
        LvlmAttnError: if a path of the family does not exist in the model, naming it.
    """
    model = unwrapped(model)
    inner = getattr(model, family.base, None)
    inner = unwrapped(inner) if isinstance(inner, nn.Module) else None
    base = inner if inner is not None and _has(inner, family.language_model) else model
    language_model = _module(base, family.language_model, family)
    layers = [
        unwrapped(layer) for layer in cast("nn.ModuleList", _module(language_model, family.layers, family))
    ]
    attentions = [
        _module(layer, family.attention, family) if _has(layer, family.attention) else None
        for layer in layers
    ]
    if not any(attention is not None for attention in attentions):
        _module(layers[0], family.attention, family)  # raises, naming the path
    return Parts(
        model=model,
        base=base,
        language_model=language_model,
        layers=layers,
        attentions=attentions,
        output_projections=[
            None if attention is None else _module(attention, family.output_projection, family)
            for attention in attentions
        ],
        vision=_module(base, family.vision, family),
        text_config=cast("Any", base).config.get_text_config(decoder=True),
        newline_path=family.newline,
    )


def image_token_id(config: Any) -> int:
    """The id that stands at every image position of a prompt.

    Raises:
        LvlmAttnError: if the configuration names none.
    """
    found = getattr(config, "image_token_id", None)
    if not isinstance(found, int):
        raise LvlmAttnError(
            f"The configuration of model type {getattr(config, 'model_type', '?')!r} has "
            f"image_token_id={found!r}; "
            "set it to the id of the tokenizer's image token."
        )
    return found


def prompt_layout(
    family: Family, image_inputs: ImageInputs, attention_mask: Tensor | None = None
) -> PromptLayout:
    """Lays out a prompt, or the next piece of one, of a model of `family`.

    Args:
        family: the model's family.
        image_inputs: token ids and what is known of their images; `image_inputs.after` is what came before them.
        attention_mask: `(batch, length)` padding mask; a longer one counts from its end.

    Returns:
        The layout of `image_inputs.after` and `image_inputs.input_ids` together.

    Raises:
        UnsupportedError: if the prompt holds a video in a family without them, or is cut inside an image in a family
            whose grids are not fixed.
        LvlmAttnError: if images and image tokens do not match, or image tokens come without images.
    """
    _check_ids(image_inputs)
    has_videos = holds_videos(family, image_inputs)
    token = image_token_id(image_inputs.config)
    has_images = bool((image_inputs.input_ids == token).any())
    if has_videos and cast("Videos", family.videos).are_images:
        has_images = False
    elif has_images:
        _refuse_empty_places(image_inputs, token)
    if image_inputs.after is not None and not family.grid_is_fixed:
        _refuse_cut_images(family, image_inputs, token)
    if has_images:
        _refuse_untold_images(family, image_inputs)
    grids = checked_grids(family, family.grids(image_inputs)) if has_images else []
    if has_videos:
        grids = with_videos(family, image_inputs, token, grids)
    return PromptLayout.build(
        image_inputs.input_ids,
        token,
        grids,
        attention_mask,
        after=image_inputs.after,
        may_end_inside_image=family.grid_is_fixed and is_sliced(image_inputs, token),
        marks_between=family.marks_between,
        edge_ids=_edge_ids(family, image_inputs),
        video_token_id=video_token_id(image_inputs.config) if has_videos else None,
    )


def _edge_ids(family: Family, image_inputs: ImageInputs) -> Sequence[int]:
    """Ids of tokens that belong to the image they stand next to: the family's, and those that token types mark."""
    found = [] if family.edges is None else list(family.edges(image_inputs.config))
    types = image_inputs.call.get(family.token_types) if family.token_types else None
    if family.mask_of(image_inputs.config) != "bidirectional_vision" or not isinstance(types, Tensor):
        return found
    ids, length = image_inputs.input_ids, image_inputs.input_ids.shape[1]
    own = types[:, :length] if image_inputs.after is None else types[:, -length:]
    return [*found, *set(cast("list[int]", ids[own.to(ids.device) == 1].tolist()))]


def image_features(image_inputs: ImageInputs) -> list[Tensor] | None:
    """The features of each image or tile as `generate` encoded them before the prefill, else None.

    Each is `(tokens, hidden)`. A prefill cut into chunks gives one entry for all image tokens of the chunk.
    """
    return encoded_features(image_inputs, "image")


def encoded_features(image_inputs: ImageInputs, kind: Literal["image", "video"]) -> list[Tensor] | None:
    """What `generate` encoded before the prefill of one kind, `(tokens, hidden)` each, else None."""
    encoded = image_inputs.call.get("mm_encoder_outputs")
    output = encoded.get(kind) if encoded else None
    if output is None:
        return None
    return list(output if isinstance(output, Tensor | list | tuple) else features_of(output))


def features_of(output: Any) -> Any:
    """The features in an image encoder's output: pooled ones, the last states, or those that the first layer adds."""
    for name in ("pooler_output", "last_hidden_state"):
        if (found := getattr(output, name, None)) is not None:
            return found
    return output.deepstack_features[0][1]


def is_sliced(image_inputs: ImageInputs, token: int) -> bool:
    """Whether the features are a chunk's: one entry, exactly as long as its image tokens."""
    features = image_features(image_inputs)
    if features is None or len(features) != 1:
        return False
    return len(features[0]) == int((image_inputs.input_ids == token).sum())


def image_runs(input_ids: Tensor, token: int) -> list[tuple[int, int, int]]:
    """Runs of neighbouring image tokens as `(row, start, stop)`, in flat order."""
    is_image = nn.functional.pad((input_ids == token).int(), (1, 1))
    change = is_image.diff(dim=1)
    starts = cast("list[list[int]]", (change == 1).nonzero().tolist())
    stops = cast("list[list[int]]", (change == -1).nonzero().tolist())
    return [(row, start, stop) for (row, start), (_, stop) in zip(starts, stops)]


def side(value: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a configuration value that is one number or a pair."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call of `module` by name; some models hand `input_ids` on by position.

    Args:
        module: the module that is called.
        args: its positional arguments, as a forward pre-hook gets them.
        kwargs: its keyword arguments.
    """
    if not args:
        return dict(kwargs)
    return dict(zip(_argument_names(type(module).forward), args)) | dict(kwargs)


@lru_cache(maxsize=64)
def _argument_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


def _check_ids(image_inputs: ImageInputs) -> None:
    if not isinstance(image_inputs.input_ids, Tensor):
        raise UnsupportedError(
            "The model was called without input_ids, so nothing tells where its images stand; pass the ids "
            "instead of inputs_embeds."
        )


def _refuse_empty_places(image_inputs: ImageInputs, token: int) -> None:
    """Refuses image tokens without images, which a model takes for so many copies of one meaningless token."""
    if image_inputs.call.get("pixel_values") is not None or image_features(image_inputs) is not None:
        return
    is_image = image_inputs.input_ids == token
    if image_inputs.inputs_embeds is None or not bool(is_image.any()):
        return
    placed = image_inputs.inputs_embeds[:, : is_image.shape[1]][
        is_image.to(image_inputs.inputs_embeds.device)
    ]
    if bool((placed == placed[:1]).all()):
        raise LvlmAttnError(
            f"The prompt holds {len(placed)} image tokens, but no image features stand there; pass "
            "pixel_values and all else the processor returns, and prefill_chunk_size=None."
        )


def _refuse_untold_images(family: Family, image_inputs: ImageInputs) -> None:
    """Refuses images of which the model is not told that they attend to themselves both ways."""
    is_free = family.mask_of(image_inputs.config).startswith("bidirectional")
    if is_free and family.mask_of(image_inputs.config, image_inputs.call) == "causal":
        raise LvlmAttnError(
            f"The images of this prompt would silently attend causally, which {family.title} was not trained with; "
            f"pass {family.token_types} as the processor returns them."
        )


def _refuse_cut_images(family: Family, image_inputs: ImageInputs, token: int) -> None:
    after = cast("PromptLayout", image_inputs.after)
    if after.length == 0 or image_inputs.input_ids.shape[1] == 0:
        return
    starts_inside = (image_inputs.input_ids[:, 0] == token) & (
        after.is_patch[:, -1] | after.is_filler[:, -1]
    ).to(image_inputs.input_ids.device)
    if bool(starts_inside.any()):
        raise UnsupportedError(
            f"The chunked prefill cuts an image of row {int(starts_inside.nonzero()[0, 0])}, and the grids "
            f"of "
            f"{family.title} cannot be told from a part of an image; pass prefill_chunk_size=None."
        )


def _get(module: nn.Module, path: str) -> object:
    found: object = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return unwrapped(found) if isinstance(found, nn.Module) else found


def _has(module: nn.Module, path: str) -> bool:
    return isinstance(_get(module, path), nn.Module)


def _module(module: nn.Module, path: str, family: Family) -> nn.Module:
    found = _get(module, path)
    if not isinstance(found, nn.Module):
        raise LvlmAttnError(
            f"{type(module).__name__} has no module {path!r}, where {family.title} ({family.name}) keeps it; "
            f"correct the path in the family's entry or pass a model of type {family.name!r}."
        )
    return found
