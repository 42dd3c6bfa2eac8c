"""VMTC against dense float64 attention with merging in loops, and its invariants."""

import copy

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.vmtc import VMTC, compress, spherical_kmeans
from tests.hooks.full_attention import dense, extended, image_positions
from tests.hooks.test_paint import runs
from tests.hooks.towers import deep_model, token_weights
from tests.oracle_setup import generate, relative_error
from tests.tiny import tiny_inputs, tiny_rows
from tests.versions import needs_pre_encoding

FAMILIES = ["llava", "llava_next", "qwen2_5_vl"]
families = pytest.mark.parametrize("name", FAMILIES)
BATCH = [(1,), (0,), (2,)]
METHOD = VMTC(keep=200, clusters=150)


def merged_by_hand(vectors, weights, keep, clusters):
    """What each patch becomes, None where it is gone: spherical K-means in loops."""
    count = len(vectors)
    ranked = sorted(range(count), key=lambda n: (-weights[n], n))
    rest = sorted(ranked[keep:])
    result = [vectors[n] if n in ranked[:keep] else None for n in range(count)]
    if not rest:
        return result
    unit = {n: vectors[n] / vectors[n].norm() for n in rest}
    seeds = [max(rest, key=lambda n: (weights[n], -n))]
    while len(seeds) < min(clusters, len(rest)):
        seeds.append(min(rest, key=lambda n: (max(float(unit[n] @ unit[s]) for s in seeds), n)))
    centres, label = [unit[s] for s in seeds], {}
    for _ in range(11):
        label = {n: max(range(len(centres)), key=lambda c, n=n: float(unit[n] @ centres[c])) for n in rest}
        for c in range(len(centres)):
            members = [unit[n] for n in rest if label[n] == c]
            if members:
                total = torch.stack(members).sum(0)
                centres[c] = total / total.norm()
    for c in range(len(centres)):
        members = [n for n in rest if label[n] == c]
        if members:
            total = sum(weights[n] for n in members)
            first = max(members, key=lambda n: (weights[n], -n))
            result[first] = sum(weights[n] / total * vectors[n] for n in members)
    return result


def truth(name, model, row, generated=None, method=METHOD):
    """Logits of a single row in float64, with hidden columns and exchanged embeddings."""
    double = copy.deepcopy(model).double()
    whole = row if generated is None else extended(row, generated)
    where = image_positions(row).tolist()
    gone = []
    if where:
        weights = token_weights(name, model, row, 1 if name == "qwen2_5_vl" else 2)
        groups = runs(where) if name != "llava" else [where[i : i + 25] for i in range(0, len(where), 25)]

    def swap(module, args, kwargs):
        embeds = kwargs["inputs_embeds"].clone()
        done = 0
        for group in groups:
            share = weights[done : done + len(group)]
            done += len(group)
            patches = [p for p, w in zip(group, share.tolist(), strict=True) if w == w]
            values = [w for w in share.tolist() if w == w]
            keep, clusters = (round(n * len(patches) / 576) for n in (method.keep, method.clusters))
            new = merged_by_hand([embeds[0, p] for p in patches], values, keep, clusters)
            for place, vector in zip(patches, new, strict=True):
                if vector is None:
                    gone.append(place)
                else:
                    embeds[0, place] = vector
        return args, {**kwargs, "inputs_embeds": embeds}

    def hide(layer, scores):
        for place in gone:
            own = scores[:, :, place, place].clone()
            scores[:, :, :, place] = -torch.inf
            scores[:, :, place, place] = own
        return scores

    handle = double.model.language_model.register_forward_pre_hook(swap, with_kwargs=True) if where else None
    with dense(double, hide):
        logits = double(**whole).logits[0]
    if handle is not None:
        handle.remove()
    return logits, gone


@families
def test_against_merging_by_hand_through_decoding(name):
    model = deep_model(name)
    rows = tiny_rows(name, model, BATCH)
    with torch.no_grad():
        bare = generate(model, tiny_inputs(name, model, BATCH), 4)[1]
        with la.wrap(model, METHOD) as lvlm:
            ids, logits = generate(model, tiny_inputs(name, model, BATCH), 4)
            [report] = lvlm.report().rows[0]
    missing = 0
    for index, row in enumerate(rows):
        want, gone = truth(name, model, row, ids[index : index + 1, :-1])
        assert relative_error(logits[index], want[-4:]) < 1e-5
        missing += len(gone)
    assert missing == report["patches"] - report["left"]
    assert missing > 0
    assert torch.equal(bare[1], logits[1])
    assert relative_error(logits[2], bare[2].double()) > 1e-3


@families
def test_keeping_all_patches_is_the_identity(name):
    model = deep_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare = generate(model, inputs, 4)[1]
        for method in (VMTC(keep=576), VMTC(keep=575, clusters=576)):
            if method.keep == 575 and name == "llava_next":
                continue  # an image of more than 287 patches would lose one
            with la.wrap(model, method):
                assert torch.equal(generate(model, inputs, 4)[1], bare)


@families
@needs_pre_encoding
def test_rows_of_a_batch_and_beams(name):
    model = deep_model(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    options = {"num_beams": 2, "max_new_tokens": 4, "do_sample": False}
    with torch.no_grad(), la.wrap(model, METHOD, no_image="pass"):
        ids, logits = generate(model, inputs, 4)
        beams = model.generate(**inputs, **options)[:, -4:]
        for index, row in enumerate(rows):
            one_ids, one = generate(model, row, 4)
            assert torch.equal(ids[index], one_ids[0])
            assert relative_error(logits[index], one[0].double()) < 2e-5
            assert torch.equal(model.generate(**row, **options)[0, -4:], beams[index])


def test_merged_patches_lie_in_the_hull_of_their_members():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(40, 6, generator=generator)
    weight = torch.rand(40, generator=generator)
    merged, is_gone = compress(vectors, weight, 10, 5)
    top = weight.argsort(descending=True)[:10]
    assert torch.equal(merged[top], vectors[top])
    assert int((~is_gone).sum()) == 15
    rest = torch.tensor(sorted(set(range(40)) - set(top.tolist())))
    label = spherical_kmeans(vectors[rest], weight[rest], 5)
    for cluster in range(5):
        member = rest[label == cluster]
        first = member[weight[member].argmax()]
        assert not is_gone[first]
        assert is_gone[member].sum() == len(member) - 1
        low, high = vectors[member].min(0).values, vectors[member].max(0).values
        assert ((merged[first] >= low - 1e-6) & (merged[first] <= high + 1e-6)).all()
        share = weight[member] / weight[member].sum()
        assert torch.allclose(merged[first], (share[:, None] * vectors[member]).sum(0), atol=1e-6)


def test_odd_cases_of_compression():
    vectors, none = torch.eye(3), torch.zeros(3)
    merged, is_gone = compress(vectors, none, 0, 1)  # no importance at all: the plain mean
    assert torch.allclose(merged[~is_gone][0], torch.full((3,), 1 / 3))
    same, is_gone = compress(vectors, none, 5, 2)
    assert torch.equal(same, vectors)
    assert not is_gone.any()
    _, is_gone = compress(torch.ones(4, 2), torch.arange(4.0), 1, 3)  # equal vectors share one cluster
    assert int((~is_gone).sum()) == 2
    assert compress(vectors, none, 1, 0)[1].tolist() == [False, True, True]


def test_state_errors_and_refusals():
    model = deep_model("llava")
    rows = tiny_rows("llava", model, BATCH)
    with torch.no_grad():
        bare = model(**rows[2]).logits
        with la.wrap(model, METHOD):
            alone = model(**rows[2]).logits
        with la.wrap(model, METHOD):
            model(**rows[0])
            assert torch.equal(model(**rows[2]).logits, alone)

        class Breaks(la.Intervention):
            def observe(self, layer, hidden):
                if layer.index == 3:
                    raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"), la.wrap(model, METHOD, Breaks()):
            model(**rows[0])
        assert torch.equal(model(**rows[2]).logits, bare)
        with la.wrap(model, METHOD):
            with pytest.raises(la.UnsupportedError, match="one pass"):
                model.generate(**rows[0], max_new_tokens=2, prefill_chunk_size=8)
            features = model.model.get_image_features(rows[0]["pixel_values"], return_dict=True)
            foreign = type(features)(pooler_output=[piece + 1 for piece in features.pooler_output])
            rest = {key: value for key, value in rows[0].items() if key != "pixel_values"}
            with pytest.raises(la.LvlmAttnError, match="outside the wrap"):
                model(**rest, mm_encoder_outputs={"image": foreign})


def test_second_turn_keeps_what_is_gone():
    model = deep_model("llava")
    row = tiny_rows("llava", model, [(1, 2, 6)])[0]
    ids, cut = row["input_ids"], row["input_ids"].shape[1] - 3
    with torch.no_grad(), la.wrap(model, METHOD):
        whole = model(**row).logits[0, -1]
        first = {"input_ids": ids[:, :cut], "attention_mask": torch.ones_like(ids[:, :cut])}
        out = model(**first, pixel_values=row["pixel_values"], use_cache=True)
        second = {"input_ids": ids[:, cut:], "attention_mask": torch.ones_like(ids)}
        got = model(**second, past_key_values=out.past_key_values, use_cache=True).logits[0, -1]
    assert relative_error(got, whole.double()) < 2e-5


@pytest.mark.parametrize("options", [{"keep": -1}, {"clusters": 1.5}, {"keep": 0, "clusters": 0}], ids=str)
def test_bad_parameters(options):
    with pytest.raises(la.LvlmAttnError, match=next(iter(options))):
        VMTC(**options)
