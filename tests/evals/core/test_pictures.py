import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.pictures import PictureFolder, image_key


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return PictureFolder(folder)


@pytest.mark.parametrize(
    ("image", "key"),
    [
        (42, "42"),
        (42.0, "42"),
        ("42", "42"),
        ("000000000042.jpg", "42"),
        ("COCO_val2014_000000000042.jpg", "42"),
        ("COCO_val2014_000000000042", "42"),
        ("/data/val2014/COCO_val2014_000000000042.JPG", "42"),
        (r"D:\val2014\a.jpg", "a"),
        ("https://x/val2017/000000000042.jpg?size=1", "42"),
        ("toy-test-0042", "toy-test-0042"),
        ("v1.2.png", "v1.2"),
        ("v1.2", "v1.2"),
    ],
)
def test_image_keys(image, key):
    assert image_key(image) == key


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("a.jpg", "a.jpg"),
        ("/elsewhere/val2014/a.jpg", "a.jpg"),
        ("val2014/a.jpg", "a.jpg"),
        (r"C:\pictures\a.jpg", "a.jpg"),
        ("../../a.jpg", "a.jpg"),
        ("a", "a.jpg"),
        ("1", "COCO_val2014_000000000001.jpg"),
        ("000000000001", "COCO_val2014_000000000001.jpg"),
        ("COCO_val2014_000000000001", "COCO_val2014_000000000001.jpg"),
        ("2405722.jpg", "gqa/2405722.jpg"),
        ("sub/b.png", "sub/b.png"),
    ],
)
def test_a_picture_is_found_by_any_of_its_names(tmp_path, asked, found):
    folder = fill(tmp_path, "a.jpg", "COCO_val2014_000000000001.jpg", "gqa/2405722.jpg", "sub/b.png", "a.txt")
    assert folder.find(asked) == tmp_path / found


def test_what_is_missing_is_looked_for_in_the_folder_alone(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.jpg").touch()
    folder = PictureFolder(tmp_path / "in")
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "x\0y", "", "/"):
        assert folder.find(name).is_relative_to(tmp_path / "in")
        assert "\0" in name or not folder.find(name).is_file()


def test_equal_names_are_told_apart_by_folder_or_refused(tmp_path):
    folder = fill(tmp_path, "train/1.jpg", "val/1.jpg")
    assert folder.find("/data/val/1.jpg") == tmp_path / "val/1.jpg"
    assert folder.find("/data/train/000001") == tmp_path / "train/1.jpg"
    with pytest.raises(LvlmAttnError, match=r"may be train/1\.jpg or val/1\.jpg"):
        folder.find("1.jpg")


def test_the_exact_name_wins_over_the_number(tmp_path):
    folder = fill(tmp_path, "in/000000000001.jpg", "in/1.jpg")
    assert folder.find("1.jpg") == tmp_path / "in/1.jpg"


def test_no_folder(tmp_path):
    with pytest.raises(LvlmAttnError, match="does not exist"):
        PictureFolder(tmp_path / "none")
