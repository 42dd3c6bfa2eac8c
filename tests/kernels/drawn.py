"""Attention calls drawn at random with everything a spec can say, and what they give by definition in float64."""

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import pack_edits, pack_visibility, unsupported_visibility
from lvlm_attn.kernels.readouts import Readout
from lvlm_attn.kernels.reference import attention
from lvlm_attn.kernels.spec import Amplification, Geometry, Redistribution, amplified, class_indicator
from lvlm_attn.kernels.visibility import ALL, Visibility, allowed_keys


@dataclass
class Drawn:
    """One call; tensors are fp32."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    geometry: Geometry
    visibility: list[Visibility] = field(default_factory=list)
    amplification: Amplification | None = None
    redistribution: Redistribution | None = None
    scaling: float = 0.3

    def truth(self, moves=True):
        """Output `(batch, queries, heads, head_dim)` and weights, in float64."""
        output, weights = attention(
            self.query.double(),
            self.key.double(),
            self.value.double(),
            scaling=self.scaling,
            geometry=self.geometry,
            visibility=self.visibility,
            amplification=[self.amplification] if self.amplification else [],
            redistribution=self.redistribution if moves else None,
        )
        return output.transpose(1, 2), weights

    def log_sum_exp(self):
        """`(batch, heads, queries)` in float64."""
        key = self.key.double().repeat_interleave(self.query.shape[1] // self.key.shape[1], 1)
        scores = torch.einsum("bhqd,bhkd->bhqk", self.query.double(), key) * self.scaling
        index = torch.arange(self.geometry.start, self.geometry.length).expand(len(scores), -1)
        readable, bias = allowed_keys(self.visibility, self.geometry, index, dtype=torch.float64)
        scores = scores if bias is None else scores + bias[:, None]
        scores = scores.masked_fill(~readable[:, None], -torch.inf)
        if self.amplification:
            scores = amplified(scores, self.amplification, self.geometry, self.amplification.is_touched)
        return scores.logsumexp(-1)

    def touched(self):
        """`(batch, queries)`, True at rows that an edit touches."""
        found = torch.zeros(self.query.shape[0], self.query.shape[2], dtype=torch.bool)
        for spec in (self.amplification, self.redistribution):
            if spec is not None:
                found |= spec.is_touched
        return found

    def packed(self, device):
        """The arguments of the kernels that come from the spec."""
        device = torch.device(device)
        return {
            "packed": pack_visibility(self.visibility, self.geometry, device),
            "edits": pack_edits(self.amplification, self.redistribution, device),
        }

    def attention(self, device="cpu"):
        """The call without its edits."""
        tensors = (tensor.to(device) for tensor in (self.query, self.key, self.value))
        return AttentionCall(*tensors, self.geometry, self.scaling)

    def edits(self):
        """The arguments of the torch path that come from the spec."""
        return {
            "visibility": self.visibility,
            "amplification": [self.amplification] if self.amplification else [],
            "redistribution": self.redistribution,
        }


def is_close_call(call, masses):
    """Whether a row's masses lie so near a threshold that rounding may decide it either way."""
    spec = call.redistribution
    image = masses[..., 2] + masses[..., 3]
    near = (image - spec.mass_floor).abs() < 1e-5
    return near | ((masses[..., 2] - spec.rho * image).abs() < 1e-5)


def masses_of(call):
    """`(batch, heads, queries, 4)` in float64, the weight on each key class before any is moved."""
    _, weights = call.truth(moves=False)
    indicator = class_indicator(call.geometry.to_columns(call.redistribution.key_class), torch.float64)
    return torch.einsum("bhqk,bck->bhqc", weights, indicator)


def relative(found, want):
    """Norm of the difference over the norm of the truth; the norm itself where the truth is 0."""
    scale = float(want.norm())
    return float((found.double() - want).norm()) / (scale if scale else 1.0)


# Long because each line is one thing that a spec can say.
@st.composite
def calls(
    draw, queries=(1, 2, 3, 5, 8), lengths=(1, 17, 63, 111), dims=(16, 32, 80), edits=True, amplifies=True
):
    """A call with a few of: padding on either side, window, static or sliding cache, tables, both edits."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    batch = draw(st.integers(1, 2))
    kv_heads, group = draw(st.sampled_from([(2, 1), (1, 4), (2, 4), (1, 8), (3, 1)]))
    rows = draw(st.sampled_from(queries))
    length = max(draw(st.sampled_from(lengths)), rows)
    dim = draw(st.sampled_from(dims))
    extra = draw(st.sampled_from([0, 0, 9]))  # a static cache longer than what was written
    window = draw(st.sampled_from([None, None, 5, 40]))
    dropped = draw(st.sampled_from([0, 0, 2])) if window and not extra else 0  # a sliding cache
    keys = max(length + extra - dropped, rows)
    is_valid = None
    if draw(st.booleans()):
        pads = torch.randint(0, length + 1, (batch, 1), generator=generator)  # whole samples of padding too
        columns = torch.arange(length)[None]
        is_valid = columns >= pads if draw(st.booleans()) else columns < length - pads

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    def some_rows():
        share = draw(st.sampled_from([1.0, 0.5, 0.0]))
        return torch.rand(batch, rows, generator=generator) < share

    def some_heads(*shape):
        return noise(*shape) * (torch.rand(shape, generator=generator) < 0.7)

    geometry = Geometry(length - rows, rows, keys, is_valid, window)
    call = Drawn(
        draw(st.sampled_from([0.2, 2.0, 20.0])) * noise(batch, kv_heads * group, rows, dim),
        noise(batch, kv_heads, keys, dim),
        noise(batch, kv_heads, keys, dim),
        geometry,
        scaling=dim**-0.5,
    )
    prompt = draw(st.integers(1, length))  # later positions are generated
    if draw(st.booleans()):
        call.visibility = draw(_visibilities(batch, prompt, generator))
    if edits and amplifies and draw(st.booleans()):
        gain = torch.rand(batch, prompt, generator=generator) * (
            torch.rand(batch, prompt, generator=generator) < 0.5
        )
        call.amplification = Amplification(
            some_rows(),
            gain if draw(st.booleans()) else None,
            noise(batch, prompt) if draw(st.booleans()) else None,
            draw(st.sampled_from([None, some_heads(batch, kv_heads * group), some_heads(kv_heads * group)])),
            signed=draw(st.booleans()),
        )
    if edits and draw(st.booleans()):
        most = draw(st.sampled_from([1, 3, 4, 4]))  # some classes may be empty
        call.redistribution = Redistribution(
            torch.randint(0, most, (batch, prompt), generator=generator),
            some_rows(),
            removed_fraction=draw(st.sampled_from([0.375, 1.0])),
            rho=draw(st.sampled_from([0.25, 0.5, 0.0])),
            mass_floor=draw(st.sampled_from([0.125, 0.0])),
        )
    return call


@st.composite
def _visibilities(draw, batch, positions, generator):
    groups = draw(st.integers(1, 3))
    reaches = st.sampled_from([0, 3, ALL, ALL])
    table = st.lists(st.tuples(*[reaches] * groups), min_size=groups, max_size=groups).map(tuple)
    items = []
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        items.append(
            Visibility(
                torch.randint(0, groups, (batch, positions), generator=generator),
                earlier=draw(table),
                later=draw(table) if draw(st.booleans()) else None,
                strength=draw(st.sampled_from([1.0, 0.25])),
            )
        )
    return items if unsupported_visibility(items) is None else items[:1]


@st.composite
def readouts(draw, call):
    """Some rows and quantities of a call."""
    batch, _, queries, _ = call.query.shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    return Readout(
        torch.rand(batch, queries, generator=generator) < draw(st.sampled_from([1.0, 0.5, 0.0])),
        key_class=torch.randint(0, 4, (batch, call.geometry.length), generator=generator)
        if draw(st.booleans())
        else None,
        rows=draw(st.sampled_from(["heads", "mean", None])),
        column_sums=draw(st.booleans()),
        entropy=draw(st.booleans()),
    )
