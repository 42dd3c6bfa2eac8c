"""An intervention for every site, each with an effect on what the model says or something it has seen."""

import torch

import lvlm_attn as la
from lvlm_attn.families.encoder_patches import VisionRows, received
from lvlm_attn.kernels.extra import ExtraKeys
from lvlm_attn.kernels.readouts import Readout
from lvlm_attn.kernels.spec import Amplification
from lvlm_attn.kernels.visibility import ALL, Visibility

ROWS = VisionRows(-1, "all")


class Site(la.Intervention):
    """Keeps what its site has seen."""

    def __init__(self):
        self.seen = []


class Embeds(Site):
    def edit_embeds(self, context, embeds):
        return embeds * 1.1


class Observe(Site):
    def observe(self, layer, hidden):
        self.seen.append(hidden.detach().clone())


class See(Site):
    def visibility(self, layer):
        def table():
            late = layer.layout.is_text & layer.layout.after_image
            return Visibility(late.int(), earlier=((ALL, ALL), (ALL, 2)))

        return layer.shared("table", table)


class Scores(Site):
    def reweigh(self, layer):
        gain = 0.5 * layer.layout.is_patch.float()
        return Amplification(layer.call.text_queries(gain.device), gain=gain)


class Weights(Site):
    def edit_weights(self, layer, weights):
        is_patch = layer.layout.is_patch[:, None, None, :].to(weights.device)
        weights = weights * (1 + is_patch.to(weights.dtype))
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)


class Keys(Site):
    def extra_keys(self, layer):
        batch, queries = layer.layout.batch, layer.call.queries
        heads = layer.call.target.config.num_key_value_heads
        key = torch.ones(batch, heads, 1, layer.call.target.head_dim)
        first = torch.zeros(batch, queries, dtype=torch.long)
        return ExtraKeys(key, 2 * key, torch.zeros(batch, 1, dtype=torch.long), first, first + 1)


class Read(Site):
    def readout(self, layer):
        return Readout(layer.call.text_queries(layer.layout.device), entropy=True, rows="mean")

    def read(self, layer, reading):
        self.seen += [reading.entropy.clone(), reading.rows.clone()]


class Heads(Site):
    def scale_heads(self, layer, heads):
        return heads * torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=heads.dtype)[:, None]


class Modules(Site):
    def modules(self, layer):
        return lambda hidden: 0.1 * hidden.tanh()


class Frozen(Site):
    def frozen(self, layer):
        return layer.layout.is_patch[:, layer.queries] if layer.index % 2 else None


class Logits(Site):
    def edit_logits(self, context, logits):
        return logits + torch.arange(logits.shape[-1]) * 0.1


class Vision(Site):
    def vision(self, target):
        return (ROWS,)

    def observe(self, layer, hidden):
        if layer.index == 0 and layer.is_prompt:
            self.seen.append(received(layer.call.vision, ROWS, layer.layout))


class Views(Site):
    def views(self, request):
        return [request.with_pixels(lambda pixels, index: pixels * 0.2)]

    def fuse(self, main, views, step):
        return 2 * main - views[0]


class Generated(Site):
    def generated(self, ended, state):
        self.seen.append(ended.sequences.clone())


class Begin(Site):
    def begin(self, context):
        self.seen += list(context.call.text_heads((0, 1)).values())


SITES = {
    kind.__name__.lower(): kind
    for kind in (
        Embeds,
        Observe,
        See,
        Scores,
        Weights,
        Keys,
        Read,
        Heads,
        Modules,
        Frozen,
        Logits,
        Vision,
        Views,
        Generated,
        Begin,
    )
}
CHANGES = frozenset(SITES) - {"observe", "read", "vision", "generated", "begin"}
"""Those that change what the model says; the others have seen something."""


def outcome(model, inputs, kind):
    """What a model says with the intervention, in a forward and in `generate`, and what that has seen."""
    item, options = kind(), {"max_new_tokens": 3, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), la.wrap(model, item) as lvlm:
        said = [] if item.needs_request() else [model(**inputs).logits]
        generate = lvlm.generate if item.needs_request() else model.generate
        said.append(torch.stack(generate(**inputs, **options).logits))
    return said + item.seen


def bare(model, inputs):
    """What the model says by itself."""
    with torch.no_grad():
        return model(**inputs).logits
