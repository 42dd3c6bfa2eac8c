"""The GPU benchmark as one command, at tiny sizes in the interpreter: it checks, it times, it reports."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import gpu, kernels_cuda

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(scope="module")
def result():
    return kernels_cuda.run("cpu-interpret", ["prefill", "decode", "mma", "model"], write=False)


@pytest.mark.parametrize(
    ("part", "variants"),
    [
        ("var_prefill", {"sdpa", "var", "eager var"}),
        ("var_decode", {"sdpa", "var", "kernel without edits", "eager var"}),
        ("mma_prefill", {"sdpa", "mma", "sdpa with a boolean mask", "flex attention"}),
    ],
)
def test_attention(result, part, variants):
    rows = result[part]
    assert {row["variant"] for row in rows} == variants
    for row in rows:
        assert row["ms"] > 0
        assert row["error"] < 1e-5
        assert (row["ratio"] == 1) == (row["variant"] == "sdpa")
        assert row["roofline_percent"] is None  # this machine's peaks are not known
        assert row["peak_mib"] is None


def test_whole_model(result):
    rows = {row["variant"]: row for row in result["whole_model"]}
    assert set(rows) == {"plain", "var+vhr", "vcd"}
    assert rows["var+vhr"]["kernels"].startswith("triton")
    for row in rows.values():
        assert row["ms"] > 0
        assert row["prefill_ms"] > 0


def test_a_wrong_result_stops_the_benchmark():
    machine = gpu.Machine.of("cpu-interpret")
    truth = torch.ones(3, dtype=torch.float64)
    assert gpu.check(machine, "x", truth.float(), truth) == 0
    for wrong in (truth.float() * 1.001, truth.float() * torch.nan):
        with pytest.raises(SystemExit, match="differs"):
            gpu.check(machine, "x", wrong, truth)


def test_a_variant_without_memory_is_reported_and_not_timed():
    machine = gpu.Machine.of("cpu-interpret")

    def full(index):
        raise torch.OutOfMemoryError

    rows = gpu.compare(machine, {"a": lambda index: index, "b": full}, "a", 2, 1)
    assert rows[1] == {"variant": "b", "out_of_memory": True}
    assert rows[0]["ratio"] == 1


@pytest.mark.gpu
def test_rooflines_know_the_card():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    machine = gpu.Machine.of("cuda")
    assert any(part in torch.cuda.get_device_name() for part in gpu.PEAKS) == (
        machine.roofline(1.0, 1e9) is not None
    )
