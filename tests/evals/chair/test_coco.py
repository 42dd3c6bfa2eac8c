"""COCO's own annotation files, written small; the large ones take the streaming path, forced here by a lower bound."""

import gzip
import json

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair import coco
from lvlm_attn.evals.chair.coco import kind_of, read_coco, truth_lines
from lvlm_attn.evals.chair.data import load_ground_truth

IMAGES = [
    {"id": 1, "file_name": "COCO_val2014_000000000001.jpg"},
    {"id": 22, "file_name": "000000000022.jpg"},
]
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 4, "name": "motorcycle"}, {"id": 99, "name": "window-blind"}]
BOXES = [(1, 18), (1, 18), (1, 99), (22, 4)]
TEXTS = [(1, "A puppy on a sofa."), (1, "Two hotdogs."), (22, "A bus."), (333, "Nothing.")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LVLM_ATTN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["at once", "streamed"])
def way(request, monkeypatch):
    if request.param == "streamed":
        pytest.importorskip("ijson")
        monkeypatch.setattr(coco, "_SMALL", 0)


def write(path, name, rows, **others):
    data = json.dumps({"info": {"year": 2014}, "images": IMAGES, name: rows, **others}).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def instances(path):
    rows = [
        {"id": i, "image_id": image, "category_id": number, "bbox": [0.5, 1]}
        for i, (image, number) in enumerate(BOXES)
    ]
    return write(path, "annotations", rows, categories=CATEGORIES)


def captions(path):
    return write(
        path,
        "annotations",
        [{"id": i, "image_id": image, "caption": text} for i, (image, text) in enumerate(TEXTS)],
    )


@pytest.mark.parametrize("ending", ["json", "json.gz"])
def test_objects_are_the_union_of_instances_and_captions(tmp_path, way, ending):
    found = read_coco([instances(tmp_path / f"i.{ending}")], [captions(tmp_path / f"c.{ending}")])
    assert found.pictures() == ["1", "22", "333"]
    assert [found.objects(name) for name in found.pictures()] == [
        ["dog", "couch", "hot dog"],
        ["motorcycle", "bus"],
        [],
    ]
    assert found.instances == {"1": ["dog"], "22": ["motorcycle"]}
    assert found.file_names == {"1": "COCO_val2014_000000000001.jpg", "22": "000000000022.jpg"}
    assert found.unknown == ["window-blind"]


def test_words_are_read_in_the_mode_asked_for(tmp_path, way):
    found = read_coco([], [captions(tmp_path / "c.json")], "pattern")
    assert found.captions == {"1": ["dog", "couch"], "22": [], "333": []}


def test_several_files_are_joined(tmp_path, way):
    first, second = instances(tmp_path / "a.json"), tmp_path / "b.json"
    write(
        second, "annotations", [{"image_id": 22, "category_id": 7}], categories=[{"id": 7, "name": "train"}]
    )
    assert read_coco([first, second]).instances == {"1": ["dog"], "22": ["motorcycle", "train"]}


def test_a_result_is_kept_under_the_contents_and_the_mode(tmp_path, monkeypatch):
    files = [instances(tmp_path / "i.json")], [captions(tmp_path / "c.json")]
    first = read_coco(*files)
    with monkeypatch.context() as patch:
        patch.setattr(coco, "_rows", lambda *args: pytest.fail("read again"))
        again = read_coco(*files)
        (tmp_path / "moved.json").write_bytes(files[0][0].read_bytes())
        assert read_coco([tmp_path / "moved.json"], files[1]).instances == first.instances
    assert vars(again) == vars(first)
    assert read_coco(*files, "pattern").captions != first.captions
    write(files[0][0], "annotations", [{"image_id": 1, "category_id": 4}], categories=CATEGORIES)
    assert read_coco(*files).instances == {"1": ["motorcycle"]}


def test_a_damaged_or_forbidden_cache_costs_only_time(tmp_path, monkeypatch):
    files = [instances(tmp_path / "i.json")]
    first = read_coco(files)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text('{"file_names": 3}')
    assert vars(read_coco(files)) == vars(first)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LVLM_ATTN_CACHE", str(tmp_path / "file"))
    assert vars(read_coco(files)) == vars(first)


def test_truth_lines_are_read_back_in_their_mode_alone(tmp_path):
    found = read_coco([instances(tmp_path / "i.json")], [captions(tmp_path / "c.json")])
    lines = list(truth_lines(found, ["22", "1"]))
    assert json.loads(lines[1]) == {
        "image_id": 1,
        "file_name": "COCO_val2014_000000000001.jpg",
        "objects": ["dog", "couch", "hot dog"],
        "mode": "strict",
        "source": {"instances": ["dog"], "captions": ["dog", "couch", "hot dog"]},
    }
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    direct = load_ground_truth([tmp_path / "c.json", tmp_path / "i.json"])
    written = load_ground_truth(tmp_path / "t.jsonl")
    assert {key: direct.objects[key] for key in written.objects} == written.objects
    with pytest.raises(LvlmAttnError, match="made for mode 'strict', captions are scored in mode wordnet"):
        load_ground_truth(tmp_path / "t.jsonl", "wordnet")
    with pytest.raises(LvlmAttnError, match=r"1 of 2 pictures are not in the COCO files \(first: 4\)"):
        list(truth_lines(found, ["1", "4"]))


def test_ground_truth_says_what_it_lacks(tmp_path):
    assert load_ground_truth([instances(tmp_path / "i.json"), captions(tmp_path / "c.json")]).notes == ()
    (note,) = load_ground_truth(tmp_path / "i.json").notes
    assert "no reference captions" in note
    (note,) = load_ground_truth(tmp_path / "c.json").notes
    assert "no instances" in note


def test_own_records_and_coco_are_joined(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"image_id": 1, "objects": ["kite"]}')
    truth = load_ground_truth([tmp_path / "own.jsonl", instances(tmp_path / "i.json")])
    assert truth.objects["1"] == {"dog", "kite"}
    assert truth.file_names["1"] == "1"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image_id": 1}], "is no instance"),
        ([7], "is no instance"),
        ([{"image_id": 1, "category_id": 5}], "does not say what category 5 is"),
        ([], "annotates no picture"),
        ({"a": 1}, "no list of annotations|annotates no picture|is no instance"),
    ],
)
def test_other_files_are_refused(tmp_path, way, rows, message):
    path = write(tmp_path / "i.json", "annotations", rows, categories=CATEGORIES)
    with pytest.raises(LvlmAttnError, match=message) as error:
        read_coco([path])
    assert str(path) in str(error.value)


def test_cut_off_and_missing_files(tmp_path, way):
    path = instances(tmp_path / "i.json")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LvlmAttnError, match=r"i\.json"):
        read_coco([path])
    with pytest.raises(LvlmAttnError, match="cannot be read"):
        read_coco([tmp_path / "none.json"])
    with pytest.raises(LvlmAttnError, match="no COCO file"):
        read_coco()


def test_kinds(tmp_path, way):
    assert kind_of(instances(tmp_path / "i.json")) == "instances"
    assert kind_of(captions(tmp_path / "c.json")) == "captions"
    with pytest.raises(LvlmAttnError, match="neither instances nor captions"):
        kind_of(write(tmp_path / "x.json", "annotations", [{"keypoints": []}]))


def test_large_files_ask_for_their_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "_SMALL", 0)
    monkeypatch.setitem(__import__("sys").modules, "ijson", None)
    with pytest.raises(LvlmAttnError, match=r"pip install 'lvlm-attn\[eval\]'"):
        read_coco([instances(tmp_path / "i.json")])


def test_a_bar_is_drawn_to_the_end(tmp_path, capsys):
    read_coco([instances(tmp_path / "i.json")], show_progress=True, cache=False)
    assert "reading COCO" in capsys.readouterr().err
