"""The same bytes in two splits, or twice in one, are found under whatever names, and nothing else is."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from detronome.data.check import leakage
from detronome.data.check.leakage import check_leakage
from detronome.data.layout import available_splits, find_split
from detronome.data.split_files import SplitFiles
from detronome.data.store.index import AnnotationIndex

Split = tuple[SplitFiles, AnnotationIndex]


def write_split(folder: Path, name: str, contents: dict[str, bytes | None]) -> Split:
    """Write files with these contents, and an annotation file that names them; None for a missing file."""
    images = []
    for i, (file_name, content) in enumerate(contents.items()):
        path = folder / name / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
        images.append({"id": 10 + i, "file_name": file_name, "height": 1, "width": 1})
    annotation_file = folder / f"{name}.json"
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    annotation_file.write_text(json.dumps(content))
    return SplitFiles(annotation_file, folder / name, name), AnnotationIndex.open(annotation_file)


def found_in(*splits: Split) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {finding.code: (finding.count, finding.cases) for finding in check_leakage(splits)}


def test_without_splits_and_files_nothing_is_found(tmp_path: Path) -> None:
    assert check_leakage([]) == []
    none = {"a.jpg": None, "b.jpg": None}
    assert found_in(write_split(tmp_path, "train", none), write_split(tmp_path, "val", none)) == {}


def test_different_files_of_the_same_size_are_no_leak(tmp_path: Path) -> None:
    ends_alike = {"a.jpg": b"1" + bytes(9000), "b.jpg": b"2" + bytes(9000)}
    train = write_split(tmp_path, "train", ends_alike)
    val = write_split(tmp_path, "val", {"a.jpg": b"3" + bytes(9000), "c.jpg": b"4" + bytes(9000)})
    assert found_in(train, val) == {}


def test_empty_files_are_no_leak(tmp_path: Path) -> None:
    train = write_split(tmp_path, "train", {"a.jpg": b"", "b.jpg": b""})
    assert found_in(train, write_split(tmp_path, "val", {"a.jpg": b""})) == {}


def test_the_same_image_in_two_splits_is_found_under_any_name(tmp_path: Path) -> None:
    train = write_split(tmp_path, "train", {"a.jpg": b"one", "b.jpg": b"two", "c.jpg": b"three"})
    val = write_split(tmp_path, "val", {"x.jpg": b"two", "c.jpg": b"three", "d.jpg": b"four"})
    (finding,) = check_leakage([train, val])
    assert (finding.code, finding.severity, finding.count) == ("split_leakage", "error", 2)
    assert finding.cases == (
        "train image 11 (b.jpg) = val image 10 (x.jpg)",
        "train image 12 (c.jpg) = val image 11 (c.jpg)",
    )
    assert str(tmp_path / "val.json") in finding.where


def test_an_image_twice_in_one_split_is_found(tmp_path: Path) -> None:
    train = write_split(tmp_path, "train", {"a.jpg": b"one", "b.jpg": b"one", "c.jpg": b"two"})
    val = write_split(tmp_path, "val", {"d.jpg": b"one"})
    assert found_in(train) == {"image_repeated": (1, ("train image 10 (a.jpg) = train image 11 (b.jpg)",))}
    assert found_in(train, val) == {
        "split_leakage": (1, ("train image 10 (a.jpg) = train image 11 (b.jpg) = val image 10 (d.jpg)",)),
        "image_repeated": (1, ("train image 10 (a.jpg) = train image 11 (b.jpg)",)),
    }


def test_links_and_records_of_the_same_file_count_too(tmp_path: Path) -> None:
    train = write_split(tmp_path, "train", {"a.jpg": b"one"})
    val = write_split(tmp_path, "val", {"a.jpg": None})
    os.link(tmp_path / "train/a.jpg", tmp_path / "val/a.jpg")
    assert found_in(train, val)["split_leakage"][0] == 1
    assert found_in(train, (train[0], train[1]))["split_leakage"][0] == 1


def test_only_files_that_may_be_equal_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def sha256_of(path: Path) -> str:
        read.append(path.name)
        return path.read_bytes().hex()

    monkeypatch.setattr(leakage, "sha256_of", sha256_of)
    contents = {"a.jpg": b"one", "b.jpg": b"three", "c.jpg": b"two", "d.jpg": b"three"}
    assert "image_repeated" in found_in(write_split(tmp_path, "train", contents))
    assert read == ["b.jpg", "d.jpg"]


def test_shards_are_left_aside(tmp_path: Path) -> None:
    files, index = write_split(tmp_path, "train", {"a.jpg": b"one"})
    val = write_split(tmp_path, "val", {"a.jpg": b"one"})
    sharded = (replace(files, shards="/shards/train"), index)
    assert found_in(sharded, val) == {"leakage_unchecked": (1, ("train (/shards/train)",))}


@pytest.mark.parametrize("name", ["coco2017_sample", "bccd"])
def test_real_splits_are_apart(shared_data: Path, name: str) -> None:
    files = [find_split(shared_data / name, split) for split in available_splits(shared_data / name)]
    assert check_leakage([(one, AnnotationIndex.open(one.annotation_file)) for one in files]) == []
