import gzip
import json

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.records import is_coco, latest_by_id, read_records

ROWS = [{"question_id": 1, "text": "Yes"}, {"question_id": 2, "text": "No, ä"}]
LINES = "\n".join(map(json.dumps, ROWS))


def values(path):
    return [record.value for record in read_records(path).records]


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        (LINES.encode(), "json lines"),
        (LINES.replace("\n", "\r\n").encode() + b"\r\n", "json lines"),
        (b"\xef\xbb\xbf" + LINES.encode(), "json lines"),
        (LINES.encode("utf-16"), "json lines"),
        (gzip.compress(LINES.encode(), mtime=0), "json lines"),
        (LINES.replace("\n", " ").encode(), "json lines"),
        (json.dumps(ROWS).encode(), "array"),
        (json.dumps(ROWS, indent=1).encode(), "array"),
        (gzip.compress(json.dumps(ROWS).encode(), mtime=0), "array"),
        ("\n".join(json.dumps(row, indent=2) for row in ROWS).encode(), "concatenated"),
        (json.dumps({"overall": {}, "sentences": ROWS}).encode(), "wrapped in sentences"),
        (json.dumps({"rows": [{"row_idx": 0, "row": row} for row in ROWS]}).encode(), "wrapped in rows"),
    ],
)
def test_every_layout_gives_the_same_records(tmp_path, data, layout):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    file = read_records(path)
    assert (file.layout, [record.value for record in file.records]) == (layout, ROWS)
    assert [record.place for record in file.records] == [1, 2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'question_id,text\n1,Yes\n2,"No, ä"\n'),
        ("a.csv", 'question_id;text\r\n1;Yes\r\n\r\n2;"No, ä"\r\n'),
        ("a.tsv", "question_id\ttext\n1\tYes\n2\tNo, ä"),
        ("a.csv.gz", 'question_id,text\n1,Yes\n2,"No, ä"'),
    ],
)
def test_tables_of_text(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if name.endswith("gz") else text.encode())
    assert values(path) == [{"question_id": "1", "text": "Yes"}, {"question_id": "2", "text": "No, ä"}]
    assert [record.line for record in read_records(path).records] == [2, 3]


def test_cells_over_several_lines_short_rows_and_pictures(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("index\timage\tprediction\n0\t" + "A" * 200_000 + '\t"Yes,\nthere is"\n1\n')
    assert values(path) == [
        {"index": "0", "prediction": "Yes,\nthere is"},
        {"index": "1", "image": "", "prediction": ""},
    ]


def test_xlsx(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (
        ["index", "answer", "prediction", None],
        [0, "Yes", "No"],
        [None, None, None],
        [1, "No", None],
    ):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert values(tmp_path / "a.xlsx") == [
        {"index": 0, "answer": "Yes", "prediction": "No"},
        {"index": 1, "answer": "No", "prediction": ""},
    ]


def hub_rows():
    arrow = pytest.importorskip("pyarrow")
    picture = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    return arrow.table(
        {
            "question_id": ["1", "2"],
            "image": arrow.array([{"bytes": b"x" * 9, "path": "a.jpg"}, None], picture),
            "answer": ["yes", None],
            "raw": arrow.array([b"x", b"y"]),
        }
    )


HUB = [
    {"question_id": "1", "image": "a.jpg", "answer": "yes"},
    {"question_id": "2", "image": "", "answer": ""},
]


def test_parquet_files_and_folders_leave_their_pictures_out(tmp_path):
    table = hub_rows()
    from pyarrow import parquet

    (tmp_path / "data").mkdir()
    for part in (0, 1):
        parquet.write_table(table.slice(part, 1), tmp_path / "data" / f"test-{part}.parquet")
    assert values(tmp_path / "data" / "test-0.parquet") == HUB[:1]
    assert values(tmp_path) == HUB
    (tmp_path / "full").mkdir()
    parquet.write_table(table, tmp_path / "full" / "test.parquet")
    with pytest.raises(LvlmAttnError, match=r"several data sets \(data, full\)"):
        read_records(tmp_path)


def save_arrow(folder, table):
    import pyarrow as arrow

    folder.mkdir(parents=True)
    with (
        arrow.OSFile(str(folder / "data-0.arrow"), "wb") as sink,
        arrow.ipc.new_stream(sink, table.schema) as stream,
    ):
        stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))


def test_folders_saved_by_datasets(tmp_path):
    table = hub_rows()
    save_arrow(tmp_path / "one", table)
    assert read_records(tmp_path / "one").layout == "datasets folder"
    assert values(tmp_path / "one") == HUB
    for split in ("random", "popular"):
        save_arrow(tmp_path / "all" / split, table)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["random", "popular"]}')
    assert [row["split"] for row in values(tmp_path / "all")] == ["random", "random", "popular", "popular"]


def test_what_datasets_itself_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert values(tmp_path / "saved") == ROWS


def test_records_are_known_by_place_not_by_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(
        '[{"image_id": 1}, {"image_id": 2}, {"sample_id": "x", "n": 1}, {"sample_id": "x", "n": 2}]'
    )
    kept = latest_by_id(read_records(path).records)
    assert [record.value for record in kept] == [{"image_id": 1}, {"image_id": 2}, {"sample_id": "x", "n": 2}]
    assert kept[1].where == "record 2 (line 1)"
    path.write_text('{"sample_id": [1]}\n{"sample_id": {"a": 1}}')
    assert len(latest_by_id(read_records(path).records)) == 2


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(r'{"text": "a\ud800b", "pair": "\ud83d\ude00", "\udfff": [{"x": "\uDC00"}]}')
    assert values(path) == [{"text": "a\ufffdb", "pair": "😀", "\ufffd": [{"x": "\ufffd"}]}]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'{"a": 1}\n{"a": ', "line 2: not valid JSON"),
        ("a.json", b'[{"a": 1}, 7]', r"record 2 \(line 1\): expected a JSON object, found 7"),
        ("a.json", b'[{"a": 1}', "ends inside its array"),
        ("a.json", b"[" * 9, "nested too deeply|ends inside|not valid|expected"),
        ("a.json", b'{"a":' * 50_000, "nested too deeply"),
        ("a.json", b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        ("a.json", b"\xc3\x28", "not UTF-8"),
        ("a.json", b"\x1f\x8b\x00", "damaged gzip"),
        ("a.json", gzip.compress(b"{}" * 99, mtime=0)[:-9], "damaged gzip"),
        ("a.json", b"", "no JSON objects"),
        ("a.csv", b"a,b\n", "holds no rows"),
        ("a.csv", b"a,b\n1,2,3\n", "line 2: 3 cells under 2 headings"),
        ("a.csv", b"a,a\n1,2\n", "two columns named 'a'"),
        ("a.xlsx", b"PK\x03\x04" + b"x" * 50, "no readable xlsx"),
        ("a.parquet", b"PAR1" + b"x" * 50, "no readable parquet"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, data, message):
    if name.endswith(("xlsx", "parquet")):
        pytest.importorskip("openpyxl" if name.endswith("xlsx") else "pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LvlmAttnError, match=message) as error:
        read_records(tmp_path / name, "answer file")
    assert str(tmp_path / name) in str(error.value)


def test_folders_that_hold_no_records(tmp_path):
    with pytest.raises(LvlmAttnError, match="is a folder"):
        read_records(tmp_path)
    pytest.importorskip("pyarrow")
    (tmp_path / "state.json").write_text('{"_data_files": 3}')
    with pytest.raises(LvlmAttnError, match=r"damaged state\.json"):
        read_records(tmp_path)


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(LvlmAttnError, match=r"pip install 'lvlm-attn\[eval\]'"):
        read_records(tmp_path / "a.xlsx")


def test_cocos_own_files_are_recognised(tmp_path):
    path = tmp_path / "a.json"
    for text, coco in [
        ('{"info": {}, "images": []}', True),
        (' {\n"images" : [', True),
        ('{"image_id": 1}', False),
    ]:
        path.write_text(text)
        assert is_coco(path) is coco
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
        assert is_coco(path) is coco
    assert not is_coco(tmp_path)
