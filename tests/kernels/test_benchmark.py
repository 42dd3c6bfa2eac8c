"""The GPU benchmark as one command, at tiny sizes in the interpreter: it checks, it times, it reports."""

import json

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import common, gpu, kernels, kernels_cuda
from benchmarks.attention_case import Asked, Case, Shape
from benchmarks.kernels_cuda import PARTS

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:The Triton kernels are not used"),
]
OURS = {"ours", "ours, torch"}
PLAIN = {"sdpa", "sdpa, flash"}  # the others need a GPU
VISIBLE = {"sdpa with a boolean mask", "flex attention"}
VARIANTS = {
    "prefill": {"eager, the authors' rule", "flex attention, two passes"},
    "decode": {"eager, the authors' rule", "flex attention, two passes"},
    "pai": set(),
    "mma": VISIBLE,
    "visual_self": VISIBLE,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def result(written):
    results, out = written
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "RESULTS", results)
        patch.setenv("OUT", str(out))
        return kernels_cuda.run("cpu-interpret", list(PARTS))


def test_every_part_is_written_where_it_is_asked_for(result, written):
    for folder in written:
        assert {path.name for path in folder.iterdir()} == {f"kernels_cpu_{part}.json" for part in PARTS}
        for part in PARTS:
            saved = json.loads((folder / f"kernels_cpu_{part}.json").read_text("utf-8"))
            assert saved[part] == json.loads(json.dumps(result[part]))
            assert {"cuda", "cudnn", "torch"} <= set(saved["environment"])


@pytest.mark.parametrize("part", [*VARIANTS, "prefill_more"])
def test_attention(result, part):
    rows = result[part]
    shapes = {row["shape"] for row in rows}
    assert len(shapes) == {"decode": 3, "prefill_more": 2, "pai": 2}.get(part, 1)
    for shape in shapes:
        mine = {row["variant"]: row for row in rows if row["shape"] == shape}
        assert OURS | {"sdpa"} <= set(mine)
        assert set(mine) - PLAIN - OURS == VARIANTS.get(part, VARIANTS["prefill"])
        for row in mine.values():
            assert row["ms"] > 0
            assert row["roofline_percent"] is None  # this machine's peaks are not known
            assert row["peak_mib"] is None
            assert row["change"] > 0.01
            assert all(error < 1e-5 for error in row["errors"].values())
        assert min(mine[name]["ratio"] for name in mine if name in PLAIN) == 1


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("model", ["var", "vhr", "var+vhr", "var+vhr, known text"]),
        ("model_views", ["vcd", "agla's view", "pai", "visual_self", "mma"]),
        ("model_more", ["var+vhr", "var+vhr"]),
    ],
)
def test_whole_models(result, part, names):
    rows = result[part]
    assert [row["variant"] for row in rows] == names
    for row in rows:
        assert row["ms"] > 0
        assert row["prefill_ms"] > 0
        assert row["plain_ms"] > 0
    if part == "model":
        assert rows[2]["kernels"].startswith("triton")


def case(**asked):
    shape = Shape(130, 130, heads=2, kv_heads=1, dim=16, dtype=torch.float32)
    made = Case(gpu.Machine.of("cpu-interpret"), shape)
    made.asked = Asked(moved=made.redistribution()) if not asked else Asked(**asked)
    return made


def test_an_unknown_part_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kernels", "--device", "cpu-interpret", "--parts", "prefil"])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        kernels.main()
    assert "--parts prefil: choose from prefill," in capsys.readouterr().err


def test_a_wrong_result_stops_the_benchmark():
    made = case()
    asked = kernels_cuda._var(made)
    right = made.call("torch")
    assert kernels_cuda._checked(made, asked, {"ours": right})["errors"]["ours"] < 1e-6
    for wrong in (lambda index: right(index) * 1.001, lambda index: right(index) * torch.nan, made.plain):
        with pytest.raises(SystemExit, match="differs"):
            kernels_cuda._checked(made, asked, {"ours": wrong})


def test_a_case_in_which_nothing_changes_stops_the_benchmark():
    made = case()
    asked = kernels_cuda._var(made)
    still = made.asked.moved.__class__(made.asked.moved.key_class, made.is_touched(), 0.0, 0.0, 0.0)
    made.asked = Asked(moved=still)
    with pytest.raises(SystemExit, match="nothing is measured"):
        kernels_cuda._checked(made, asked, {"ours": made.call("torch")})


def test_a_variant_that_fails_is_told_and_not_timed():
    machine = gpu.Machine.of("cpu-interpret")

    def full(index):
        raise torch.OutOfMemoryError

    def refused(index):
        raise RuntimeError("not on this card\nmore")

    variants = {"a": lambda index: index, "b": full, "c": refused}
    rows = gpu.compare(machine, variants, ["a"], 2, 1)
    assert rows[1:] == [
        {"variant": "b", "failed": "out of memory"},
        {"variant": "c", "failed": "not on this card"},
    ]
    assert rows[0]["ratio"] == 1


def test_ratios_are_to_the_fastest(monkeypatch):
    machine = gpu.Machine.of("cpu-interpret")
    taken = {"a": 4.0, "b": 2.0, "ours": 3.0}
    monkeypatch.setattr(gpu.Machine, "time", lambda self, run: (taken[run()], 1.0))
    variants = {name: lambda index, name=name: name for name in taken}
    rows = {row["variant"]: row["ratio"] for row in gpu.compare(machine, variants, ["a", "b"], 2, 1)}
    assert rows == {"a": 2, "b": 1, "ours": 1.5}


def test_a_part_whose_time_is_over_leaves_cases_out():
    rows = kernels_cuda.decode(gpu.Machine.of("cpu-interpret"), gpu.Clock(minutes=0))
    assert {"left_out"} == {key for row in rows for key in row} - {"shape"}


@pytest.mark.gpu
def test_rooflines_know_the_card():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    machine = gpu.Machine.of("cuda")
    assert any(part in torch.cuda.get_device_name() for part in gpu.PEAKS) == (
        machine.roofline(1.0, 1e9) is not None
    )
