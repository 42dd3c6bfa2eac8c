"""Which path is picked, what is said about it, and that both give the same."""

import warnings

import pytest
import torch

pytest.importorskip("triton")

import lvlm_attn as la
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.kernels import dispatch
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.dispatch import Dispatch, picked, requested, unavailable, unsupported_call
from lvlm_attn.kernels.readouts import Readout
from lvlm_attn.kernels.spec import Geometry
from tests.samples import VAR, Louder, Mutual
from tests.tiny import tiny_inputs, tiny_model

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a GPU")


class Reader(Intervention):
    """Sees the last row."""

    def __init__(self):
        self.seen = []

    def readout(self, layer):
        rows = torch.zeros(layer.layout.batch, layer.call.queries, dtype=torch.bool)
        rows[:, -1] = True
        return Readout(rows, rows="heads")

    def read(self, layer, reading):
        self.seen.append(reading.rows)


class Free(Intervention):
    def edit_weights(self, layer, weights):
        return weights * 0.5


def outcome(name, items, kernels, batch=((1, 2, 4), (0, 3, 9)), side="left", **generate):
    model = tiny_model(name)
    inputs = tiny_inputs(name, model, list(batch), side=side)
    with la.wrap(model, *items, kernels=kernels) as lvlm, torch.no_grad():
        logits = model(**inputs).logits[inputs["attention_mask"].bool()]
        tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False, **generate)
    with torch.no_grad():
        bare = model(**inputs).logits[inputs["attention_mask"].bool()]
    assert relative(logits, bare) > 1e-3  # so that equality of the paths says something
    return logits, tokens, lvlm.report()


def relative(found, want):
    return float((found - want).norm() / want.norm())


CASES = {
    "var": lambda: [la.VAR(**VAR)],
    "visibility": lambda: [Mutual()],
    "amplification": lambda: [Louder()],
    "all": lambda: [Mutual(), Louder(), la.VAR(**VAR)],
}


@pytest.mark.parametrize(
    ("name", "case", "side"),
    [
        ("llava", "var", "left"),
        ("llava_next", "var", "right"),
        ("qwen2_5_vl", "var", "left"),
        ("llava", "visibility", "left"),
        ("llava", "amplification", "left"),
        ("qwen2_5_vl", "all", "left"),
    ],
)
def test_a_wrapped_model_gives_what_the_torch_path_gives(name, case, side):
    want, tokens, said = outcome(name, CASES[case](), "torch", side=side)
    found, ours, report = outcome(name, CASES[case](), "triton", side=side)
    assert relative(found, want) < 1e-5
    assert torch.equal(ours, tokens)
    assert said.kernels == "torch, as asked for"
    assert report.kernels == "triton"
    assert len(report.rows) == len(said.rows)
    for mine, theirs in zip(report.rows, said.rows):
        assert [list(row) for row in mine] == [list(row) for row in theirs]
        for a, b in zip(mine, theirs):
            assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-5)


def test_a_static_cache_gives_the_same():
    options = {"cache_implementation": "static"}
    _, tokens, _ = outcome("llava", [la.VAR(**VAR)], "torch", **options)
    _, ours, report = outcome("llava", [la.VAR(**VAR)], "triton", **options)
    assert torch.equal(ours, tokens)
    assert report.kernels == "triton"


def test_rows_that_are_read_have_the_weights_of_the_torch_path():
    readers = Reader(), Reader()
    for reader, kernels in zip(readers, ("torch", "triton")):
        _, _, report = outcome("llava", [Mutual(), la.VAR(**VAR), reader], kernels)
    assert report.kernels == "triton"
    assert len(readers[0].seen) == len(readers[1].seen) > 0
    for a, b in zip(readers[0].seen, readers[1].seen):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_off_a_gpu_torch_is_taken_without_a_word(monkeypatch):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        _, _, report = outcome("llava", [la.VAR(**VAR)], "auto")
    assert report.kernels == "torch"
    assert "kernels torch" in str(report)
    _, _, report = outcome("llava", [la.VHR()], "auto")
    assert report.kernels == "none used"


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        (lambda: [Free()], "Free edits the whole weight matrix"),
        (lambda: [Louder(), Louder()], "several interventions change the scores"),
    ],
)
def test_what_the_kernels_cannot_do_is_warned_of_once(items, reason):
    with pytest.warns(RuntimeWarning) as caught:
        found, _, report = outcome("llava", items(), "triton")
    said = [str(item.message) for item in caught if "Triton" in str(item.message)]
    assert len(said) == 1
    assert reason in said[0]
    assert report.kernels == f"torch ({reason})"
    assert relative(found, outcome("llava", items(), "torch")[0]) == 0


def test_a_mask_of_the_callers_own_is_kept():
    """Two texts packed into one row: a mask that no padding explains."""
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, [(1, 2, 8)])
    length = inputs["input_ids"].shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[-3:, :2] = False
    inputs["attention_mask"] = mask[None, None]
    logits = []
    for kernels in ("torch", "triton"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with la.wrap(model, la.VAR(**VAR), kernels=kernels) as lvlm, torch.no_grad():
                logits.append(model(**inputs).logits)
    assert torch.equal(*logits)
    assert "mask of its own" in lvlm.report().kernels


def test_gradients_flow_through_the_torch_path():
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    with pytest.warns(RuntimeWarning, match="gradients"), la.wrap(model, la.VAR(**VAR), kernels="triton"):
        model(**inputs).logits.sum().backward()
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    assert weight.grad.abs().sum() > 0


def test_the_argument_counts_before_the_environment(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    assert requested() == "triton"
    assert requested("torch") == "torch"
    assert picked(CPU) == "triton, interpreted"
    monkeypatch.setenv(dispatch.VARIABLE, "torch")
    assert "LVLM_ATTN_KERNELS" in picked(CPU)
    monkeypatch.delenv(dispatch.VARIABLE)
    assert requested() == "auto"
    monkeypatch.setattr(dispatch, "unavailable", lambda device: "Triton is not installed")
    assert picked(CPU) == "torch: there is no GPU"  # a CPU misses no Triton


def test_misspelt_paths_are_refused(monkeypatch):
    with pytest.raises(LvlmAttnError, match=r"'tritton'.*Did you mean 'triton'"):
        la.wrap(tiny_model("llava"), la.VAR(), kernels="tritton")
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    with pytest.raises(LvlmAttnError, match=r"LVLM_ATTN_KERNELS='cuda'.*Choose auto, torch, triton"):
        requested()


def test_a_forced_path_that_cannot_run_is_refused_before_anything_changes(monkeypatch):
    monkeypatch.setattr(dispatch, "unavailable", lambda device: "there is no GPU")
    model = tiny_model("llava")
    before = model.config.text_config._attn_implementation
    with (
        pytest.raises(LvlmAttnError, match="TRITON_INTERPRET=1"),
        la.wrap(model, la.VAR(**VAR), kernels="triton"),
    ):
        pass
    assert model.config.text_config._attn_implementation == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "float64"),
        ({"dim": 264}, "264"),
        ({"kwargs": {"softcap": 30.0}}, "bounds"),
        ({"kwargs": {"s_aux": torch.ones(2)}}, "sinks"),
        ({"kwargs": {"dropout": 0.1}}, "dropout"),
        ({"scaling": -1.0}, "-1.0"),
        ({"requires_grad": True}, "gradients"),
        ({}, None),
    ],
)
def test_calls_the_kernels_cannot_compute(change, reason):
    made = {"dtype": torch.float16, "requires_grad": False} | change
    options = {"dtype": made["dtype"], "requires_grad": made["requires_grad"]}
    tensor = torch.ones(1, 2, 4, made.get("dim", 16), **options)
    kwargs, scaling = made.get("kwargs", {}), made.get("scaling", 1.0)
    call = AttentionCall(
        tensor, tensor, tensor, Geometry(0, 4, 4), scaling, softcap=kwargs.get("softcap"), kwargs=kwargs
    )
    found = unsupported_call(call)
    assert found is None if reason is None else reason in found


def test_the_choice_of_one_wrap_says_nothing_in_another():
    first, second = Dispatch.of("triton"), Dispatch.of("triton")
    with pytest.warns(RuntimeWarning):
        first.fall_back("a reason")
    with pytest.warns(RuntimeWarning):
        second.fall_back("a reason")
    assert unavailable(CPU) is None


def test_a_mask_that_is_over_when_decoding_does_not_count_as_torch():
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, [(1, 2, 4), (0, 3, 9)])
    found = {}
    for kernels in ("torch", "triton"):
        with la.wrap(model, la.MMA(), kernels=kernels) as lvlm, torch.no_grad():
            found[kernels] = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert lvlm.report().kernels == "triton"
    assert torch.equal(found["triton"], found["torch"])


def test_layers_without_anything_to_do_are_counted_under_no_path():
    class Late(Louder):
        def reweigh(self, layer):
            return super().reweigh(layer) if layer.is_prompt and layer.index == 1 else None

    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, [(1, 2, 4), (0, 3, 9)])
    with la.wrap(model, Late(), kernels="triton") as lvlm, torch.no_grad():
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert lvlm.report().kernels == "triton"
