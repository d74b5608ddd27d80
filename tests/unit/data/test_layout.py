"""Every layout is found under the names that users say; what is missing is named with what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detronome.data.layout import available_splits, find_split
from detronome.errors import DataError


def put(path: Path, names: tuple[str, ...] = ("a.jpg", "b.jpg")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"annotations": [], "images": [{"id": i, "file_name": n} for i, n in enumerate(names)]}))
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    assert available_splits(tmp_path) == []
    with pytest.raises(DataError, match="holds no COCO annotations") as caught:
        find_split(tmp_path, "train")
    assert "annotations/instances_train.json" in caught.value.problems[0].fix


@pytest.mark.parametrize("images", ["images", "images/train", "train", "."])
def test_the_image_folder_is_where_the_images_are(tmp_path: Path, images: str) -> None:
    annotation_file = put(tmp_path / "annotations/instances_train.json")
    for decoy in ("images/train", "train", "images"):
        (tmp_path / decoy).mkdir(parents=True, exist_ok=True)
    touch(tmp_path / images / "a.jpg", tmp_path / images / "b.jpg")
    found = find_split(tmp_path, "train")
    assert found.annotation_file == annotation_file
    assert found.images_dir == tmp_path / images
    assert found.name == "train"


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_the_official_names_carry_a_year(tmp_path: Path, year: str) -> None:
    put(tmp_path / f"annotations/instances_train{year}.json")
    put(tmp_path / "annotations/instances_train2014_100.json")
    touch(tmp_path / f"train{year}/a.jpg")
    found = find_split(tmp_path, "train")
    assert (found.name, found.images_dir) == (f"train{year}", tmp_path / f"train{year}")
    assert find_split(tmp_path, f"train{year}") == found


def test_of_two_years_the_later_is_meant(tmp_path: Path) -> None:
    for year in ("2014", "2017"):
        put(tmp_path / f"annotations/instances_val{year}.json")
        touch(tmp_path / f"val{year}/a.jpg")
    assert find_split(tmp_path, "val").name == "val2017"


@pytest.mark.parametrize("asked", ["val", "valid"])
def test_roboflow_keeps_images_beside_the_annotations(tmp_path: Path, asked: str) -> None:
    put(tmp_path / "valid/_annotations.coco.json")
    put(tmp_path / "train/_annotations.coco.json")
    touch(tmp_path / "valid/a.jpg", tmp_path / "train/a.jpg")
    assert available_splits(tmp_path) == ["train", "valid"]
    assert find_split(tmp_path, asked).images_dir == tmp_path / "valid"


def test_file_names_may_hold_folders_and_escapes(tmp_path: Path) -> None:
    put(tmp_path / "annotations/instances_train.json", ('train2017/"é".jpg',))
    touch(tmp_path / 'train2017/"é".jpg')
    assert find_split(tmp_path, "train").images_dir == tmp_path


def test_a_missing_folder_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    with pytest.raises(DataError, match="does not exist") as caught:
        find_split(tmp_path / "datasets/coco", "train")
    assert "did you mean 'dataset'?" in caught.value.problems[0].fix
    with pytest.raises(DataError, match="does not exist"):
        available_splits(tmp_path / "xyz")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data folder is a file"):
        find_split(put(tmp_path / "x.json"), "train")


def test_a_missing_split_lists_those_there(tmp_path: Path) -> None:
    put(tmp_path / "annotations/instances_train.json")
    put(tmp_path / "annotations/instances_test.json")
    with pytest.raises(DataError, match="no split 'val'; it has test, train"):
        find_split(tmp_path, "val")


def test_missing_images_name_the_places_looked_in(tmp_path: Path) -> None:
    put(tmp_path / "annotations/instances_train.json")
    with pytest.raises(DataError, match="images of split 'train' were not found") as caught:
        find_split(tmp_path, "train")
    assert "images/train/, train/, images/" in caught.value.problems[0].where


def test_a_folder_without_the_images_is_still_taken(tmp_path: Path) -> None:
    """Then opening the split can name the missing files."""
    put(tmp_path / "annotations/instances_train.json")
    (tmp_path / "images").mkdir()
    assert find_split(tmp_path, "train").images_dir == tmp_path / "images"


@pytest.mark.parametrize("content", [b"", b"{", b'{"file_name": "\xff\xfe"}', b'"file_name": "\\ud800 \\u0000"'])
def test_a_broken_annotation_file_is_not_judged_here(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "annotations/instances_train.json").write_bytes(content)
    (tmp_path / "images").mkdir()
    assert find_split(tmp_path, "train").images_dir == tmp_path / "images"


def test_real_data(shared_data: Path) -> None:
    for name, splits in (("bccd", ["test", "train", "val"]), ("coco2017_sample", ["train", "val"])):
        assert available_splits(shared_data / name) == splits
        assert find_split(shared_data / name, "train").images_dir == shared_data / name / "images"
