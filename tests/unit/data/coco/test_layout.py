"""The annotation files of COCO's layouts, and the folder in which their images really lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detronome.data.coco.layout import coco_annotation_files, coco_images_dir
from detronome.errors import DataError


def put(path: Path, names: tuple[str, ...] = ("a.jpg", "b.jpg")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"annotations": [], "images": [{"id": i, "file_name": n} for i, n in enumerate(names)]}))
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def images_dir(root: Path, annotation_file: Path, split: str = "train") -> Path:
    return coco_images_dir(root, annotation_file, split, split)


def test_an_empty_folder_has_no_annotation_files(tmp_path: Path) -> None:
    assert coco_annotation_files(tmp_path) == {}


def test_both_kinds_of_files_are_found_by_split(tmp_path: Path) -> None:
    official = put(tmp_path / "annotations/instances_val2017.json")
    roboflow = put(tmp_path / "train/_annotations.coco.json")
    put(tmp_path / "annotations/captions_val2017.json")
    assert coco_annotation_files(tmp_path) == {"val2017": official, "train": roboflow}


@pytest.mark.parametrize("images", ["images", "images/train", "train", "."])
def test_the_image_folder_is_where_the_images_are(tmp_path: Path, images: str) -> None:
    annotation_file = put(tmp_path / "annotations/instances_train.json")
    for decoy in ("images/train", "train", "images"):
        (tmp_path / decoy).mkdir(parents=True, exist_ok=True)
    touch(tmp_path / images / "a.jpg", tmp_path / images / "b.jpg")
    assert images_dir(tmp_path, annotation_file) == tmp_path / images


def test_file_names_may_hold_folders_and_escapes(tmp_path: Path) -> None:
    annotation_file = put(tmp_path / "annotations/instances_train.json", ('train2017/"é".jpg',))
    touch(tmp_path / 'train2017/"é".jpg')
    assert images_dir(tmp_path, annotation_file) == tmp_path


def test_missing_images_name_the_places_looked_in(tmp_path: Path) -> None:
    annotation_file = put(tmp_path / "annotations/instances_train.json")
    with pytest.raises(DataError, match="images of split 'train' were not found") as caught:
        images_dir(tmp_path, annotation_file)
    assert "images/train/, train/, images/" in caught.value.problems[0].where


def test_a_folder_without_the_images_is_still_taken(tmp_path: Path) -> None:
    """Then opening the split can name the missing files."""
    annotation_file = put(tmp_path / "annotations/instances_train.json")
    (tmp_path / "images").mkdir()
    assert images_dir(tmp_path, annotation_file) == tmp_path / "images"


@pytest.mark.parametrize("content", [b"", b"{", b'{"file_name": "\xff\xfe"}', b'"file_name": "\\ud800 \\u0000"'])
def test_a_broken_annotation_file_is_not_judged_here(tmp_path: Path, content: bytes) -> None:
    annotation_file = put(tmp_path / "annotations/instances_train.json")
    annotation_file.write_bytes(content)
    (tmp_path / "images").mkdir()
    assert images_dir(tmp_path, annotation_file) == tmp_path / "images"
