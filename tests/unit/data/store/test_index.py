"""The index says what the file says, and is compiled once for each content, wherever it lies."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detronome.data.coco.read import read_annotations
from detronome.data.store import index as index_module
from detronome.data.store.index import AnnotationIndex
from detronome.errors import DataError

CONTENT: dict[str, Any] = {
    "images": [
        {"id": 3, "file_name": "größe.png", "height": 40, "width": 60},
        {"id": 1, "file_name": "sub/empty.png", "height": 30, "width": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 5, "bbox": [1, 2, 3, 4]},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0, 0, 60, 40], "iscrowd": 1, "area": 7},
    ],
    "categories": [{"id": 5, "name": "b"}, {"id": 2, "name": "a"}],
}


def write(path: Path, content: Any = CONTENT, indent: int | None = None) -> Path:
    path.write_text(json.dumps(content, indent=indent))
    return path


def test_no_annotations_at_all(tmp_path: Path) -> None:
    index = AnnotationIndex.open(write(tmp_path / "a.json", {**CONTENT, "annotations": []}))
    boxes, labels, area, iscrowd = index.annotations(1)
    assert boxes.shape == (0, 4)
    assert labels.shape == area.shape == iscrowd.shape == (0,)
    assert (len(index), index.num_objects, index.max_objects_per_image) == (2, 0, 0)
    assert index.used_labels() == []


def test_the_index_says_what_the_file_says(tmp_path: Path) -> None:
    index = AnnotationIndex.open(write(tmp_path / "a.json"))
    assert index.categories.ids == (2, 5)
    assert index.categories.names == ("a", "b")
    assert index.image(0) == index_module.ImageRecord(3, "größe.png", (40, 60))
    assert index.image(1) == index_module.ImageRecord(1, "sub/empty.png", (30, 20))
    boxes, labels, area, iscrowd = index.annotations(0)
    assert boxes.tolist() == [[1, 2, 3, 4], [0, 0, 60, 40]]
    assert labels.tolist() == [1, 0]
    assert area.tolist() == [12, 7]
    assert iscrowd.tolist() == [False, True]
    assert (index.num_objects, index.max_objects_per_image, index.used_labels()) == (1, 1, [0, 1])
    with pytest.raises(IndexError):
        index.image(2)


def test_annotations_are_plain_writable_copies(tmp_path: Path) -> None:
    index = AnnotationIndex.open(write(tmp_path / "a.json"))
    for column in index.annotations(0):
        assert type(column) is np.ndarray
        column[...] = 0
    assert index.annotations(0)[0].tolist() == [[1, 2, 3, 4], [0, 0, 60, 40]]


def test_a_file_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json")
    first = AnnotationIndex.open(path)
    monkeypatch.setattr(index_module, "read_annotations", lambda path: pytest.fail("compiled again"))
    assert AnnotationIndex.open(path).fingerprint == first.fingerprint


def settle(path: Path) -> Path:
    """Wait until what the file's content hashed to may be remembered."""
    while time.time_ns() - path.stat().st_ctime_ns <= index_module._SETTLED_NS:
        time.sleep(0.01)
    return path


def test_whole_columns_are_there_and_cannot_be_written_to(tmp_path: Path) -> None:
    index = AnnotationIndex.open(write(tmp_path / "a.json"))
    assert index.sizes_hw.tolist() == [[40, 60], [30, 20]]
    assert index.sizes_hw.dtype == np.int32
    assert index.boxes_xywh.tolist() == [[1, 2, 3, 4], [0, 0, 60, 40]]
    assert (index.labels.tolist(), index.area.tolist(), index.iscrowd.tolist()) == ([1, 0], [12, 7], [False, True])
    assert index.num_annotations_per_image.tolist() == [2, 0]
    assert index.num_objects_per_image.tolist() == [1, 0]
    assert index.num_objects_per_image.dtype == np.int64
    for column in (index.sizes_hw, index.boxes_xywh, index.labels, index.area, index.iscrowd):
        with pytest.raises(ValueError, match="read-only"):
            column[...] = 0


@pytest.mark.parametrize("how", ["copied", "moved", "touched", "linked"])
def test_the_same_content_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path, other = settle(write(tmp_path / "a.json")), tmp_path / "b.json"
    first = AnnotationIndex.open(path)
    monkeypatch.setattr(index_module, "read_annotations", lambda path: pytest.fail("compiled again"))
    if how == "touched":
        path.touch()
        other = path
    else:
        {"copied": shutil.copy, "moved": os.rename, "linked": lambda a, b: b.symlink_to(a)}[how](path, other)
    again = AnnotationIndex.open(other)
    assert (again.folder, again.annotation_file) == (first.folder, other)


def test_a_file_that_stayed_is_not_even_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = settle(write(tmp_path / "a.json"))
    first = AnnotationIndex.open(path)
    monkeypatch.setattr(index_module, "sha256_of", lambda path: pytest.fail("read again"))
    assert AnnotationIndex.open(path).folder == first.folder


def test_a_file_written_a_moment_ago_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a tick of the file system's clock it may change once more and look the same."""
    monkeypatch.setattr(index_module, "_SETTLED_NS", 10**12)
    path = write(tmp_path / "a.json")
    before, status = AnnotationIndex.open(path), path.stat()
    path.write_text(path.read_text().replace('"width": 60', '"width": 61'))
    monkeypatch.setattr(index_module, "_identity", lambda path: before_identity)
    before_identity = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino]
    assert AnnotationIndex.open(path).folder != before.folder


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    path = settle(write(tmp_path / "a.json"))
    AnnotationIndex.open(path)
    status = path.stat()
    path.write_text(path.read_text().replace('"width": 60', '"width": 61'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert AnnotationIndex.open(path).sizes_hw[0, 1] == 61


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"identity": 3}', "\0"])
def test_a_damaged_memory_of_the_content_is_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "cache"))
    path = settle(write(tmp_path / "a.json"))
    first = AnnotationIndex.open(path)
    (memo,) = (tmp_path / "cache/index/known").iterdir()
    memo.write_text(content)
    assert AnnotationIndex.open(path).folder == first.folder


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_and_change(path: Path) -> Any:
        columns = read_annotations(path)
        write(path, {**CONTENT, "annotations": [], "changed": 1})
        return columns

    monkeypatch.setattr(index_module, "read_annotations", read_and_change)
    with pytest.raises(DataError, match="changed while it was read"):
        AnnotationIndex.open(write(tmp_path / "a.json", {**CONTENT, "info": str(tmp_path)}))


def test_a_changed_file_is_compiled_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    before = AnnotationIndex.open(path)
    write(path, {**CONTENT, "annotations": []})
    after = AnnotationIndex.open(path)
    assert (before.num_objects, after.num_objects) == (1, 0)
    assert before.fingerprint != after.fingerprint


def test_the_fingerprint_follows_content_not_formatting(tmp_path: Path) -> None:
    plain = AnnotationIndex.open(write(tmp_path / "a.json")).fingerprint
    assert AnnotationIndex.open(write(tmp_path / "b.json", indent=1)).fingerprint == plain
    moved = copy.deepcopy(CONTENT)
    moved["annotations"][0]["bbox"][0] += 1e-9
    assert AnnotationIndex.open(write(tmp_path / "c.json", moved)).fingerprint != plain


def test_nothing_is_written_beside_the_data(tmp_path: Path) -> None:
    AnnotationIndex.open(write(tmp_path / "a.json"))
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_cache_that_cannot_be_written_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocked").write_text("a file where the cache folder should be")
    (tmp_path / "temp").mkdir()
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "blocked"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    path = write(tmp_path / "a.json")
    assert len(AnnotationIndex.open(path)) == 2
    assert list((tmp_path / "temp").rglob("meta.json"))
    monkeypatch.setattr(index_module, "read_annotations", lambda path: pytest.fail("compiled again"))
    assert len(AnnotationIndex.open(path)) == 2


def test_no_cache_anywhere_says_which_variable_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("blocked", "temp"):
        (tmp_path / name).write_text("")
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "blocked"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    with pytest.raises(DataError, match="cannot be written anywhere") as caught:
        AnnotationIndex.open(write(tmp_path / "a.json"))
    assert "DETRONOME_CACHE" in caught.value.problems[0].fix


@pytest.mark.parametrize("damage", ["truncated", "missing", "no meta"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "a.json")
    AnnotationIndex.open(path)
    (folder,) = (tmp_path / "cache/index").glob("v*")
    if damage == "truncated":
        os.truncate(folder / "boxes_xywh.npy", 130)
    else:
        (folder / ("labels.npy" if damage == "missing" else "meta.json")).unlink()
    assert AnnotationIndex.open(path).annotations(0)[0].shape == (2, 4)


def test_two_may_compile_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is late finds its folder already there and uses it."""
    path = write(tmp_path / "a.json")
    read = read_annotations

    def read_while_another_compiles(file: Path) -> Any:
        monkeypatch.setattr(index_module, "read_annotations", read)
        AnnotationIndex.open(file)
        return read(file)

    monkeypatch.setattr(index_module, "read_annotations", read_while_another_compiles)
    assert len(AnnotationIndex.open(path)) == 2


def test_problems_are_not_cached(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {})
    for _ in range(2):
        with pytest.raises(DataError, match="no list 'images'"):
            AnnotationIndex.open(path)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        AnnotationIndex.open(tmp_path / "none.json")


def test_pickling_keeps_the_path_alone(tmp_path: Path) -> None:
    many = [{"id": i, "image_id": 3, "category_id": 2, "bbox": [0, 0, 1, 1]} for i in range(5000)]
    index = AnnotationIndex.open(write(tmp_path / "a.json", {**CONTENT, "annotations": many}))
    pickled = pickle.dumps(index)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).annotations(0)[0].shape == (5000, 4)


def test_a_spawned_process_maps_the_same_columns(tmp_path: Path) -> None:
    index = AnnotationIndex.open(write(tmp_path / "a.json"))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(AnnotationIndex.image, index, 1).result(60) == index.image(1)
        boxes, *_ = pool.submit(AnnotationIndex.annotations, index, 0).result(60)
    assert boxes.tolist() == [[1, 2, 3, 4], [0, 0, 60, 40]]


def test_real_data(shared_data: Path) -> None:
    for split, expected in {"train": (205, 2804, 28), "val": (87, 1137, 30)}.items():
        index = AnnotationIndex.open(shared_data / f"bccd/annotations/instances_{split}.json")
        assert (len(index), index.num_objects, index.max_objects_per_image) == expected
    index = AnnotationIndex.open(shared_data / "coco2017_sample/annotations/instances_train.json")
    assert len(index.categories) == 80
    assert index.categories.ids[-1] == 90
    raw = json.loads((shared_data / "coco2017_sample/annotations/instances_train.json").read_text())
    for i in (0, 17, 60):
        image = raw["images"][i]
        assert index.image(i).image_id == image["id"]
        of_image = [a for a in raw["annotations"] if a["image_id"] == image["id"]]
        boxes, labels, area, iscrowd = index.annotations(i)
        assert boxes.tolist() == [a["bbox"] for a in of_image]
        assert [index.categories.ids[label] for label in labels] == [a["category_id"] for a in of_image]
        assert area.tolist() == [a["area"] for a in of_image]
        assert iscrowd.tolist() == [bool(a["iscrowd"]) for a in of_image]
