"""A panoptic file becomes the columns of an index; whatever is wrong with one is said at once."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data.panoptic_folder import edit, segment_ids_of, write_map, write_panoptic

from detronome.data.check.panoptic_map import measure_map
from detronome.data.coco.panoptic import read_panoptic_annotations
from detronome.data.coco.panoptic_map import boxes_of_rows, read_map, read_segment_ids, rows_of_segments
from detronome.data.coco.panoptic_results import read_results
from detronome.data.store.index import AnnotationIndex
from detronome.errors import DataError

Json = dict[str, Any]


def json_of(folder: Path) -> Path:
    return folder / "annotations" / "panoptic_train.json"


def test_an_image_of_void_alone_has_no_segments(tmp_path: Path) -> None:
    file = json_of(write_panoptic(tmp_path))
    edit(file, lambda content: [annotation["segments_info"].clear() for annotation in content["annotations"]])
    columns = read_panoptic_annotations(file)
    assert len(columns.image_ids) == 3 and columns.offsets.tolist() == [0, 0, 0, 0]
    assert columns.boxes_xywh.shape == (0, 4)


def test_an_image_that_nobody_annotated_is_left_out(tmp_path: Path) -> None:
    file = json_of(write_panoptic(tmp_path))
    edit(file, lambda content: content["annotations"].pop(1))
    assert read_panoptic_annotations(file).image_ids.tolist() == [70, 68]


def test_segments_belong_to_their_image_whatever_the_order(tmp_path: Path) -> None:
    file = json_of(write_panoptic(tmp_path))
    content = json.loads(file.read_text())
    columns = read_panoptic_annotations(file)
    assert columns.image_ids.tolist() == [70, 69, 68]
    assert columns.map_names == ["train_0.png", "train_1.png", "train_2.png"]
    assert columns.categories.ids == (1, 17, 200) and columns.categories.is_thing == (True, True, False)
    for n, annotation in enumerate(content["annotations"][::-1]):
        rows = slice(columns.offsets[n], columns.offsets[n + 1])
        segments = annotation["segments_info"]
        assert columns.annotation_ids[rows].tolist() == [s["id"] for s in segments]
        assert [columns.categories.ids[label] for label in columns.labels[rows]] == [s["category_id"] for s in segments]
        assert columns.boxes_xywh[rows].tolist() == [s["bbox"] for s in segments]
        assert columns.iscrowd[rows].tolist() == [bool(s["iscrowd"]) for s in segments]


def test_the_index_keeps_all_of_it_and_travels(tmp_path: Path) -> None:
    file = json_of(write_panoptic(tmp_path))
    columns = read_panoptic_annotations(file)
    AnnotationIndex.open(file, "panoptic")
    index = pickle.loads(pickle.dumps(AnnotationIndex.open(file, "panoptic")))
    assert index.kind == "panoptic" and index.categories == columns.categories
    assert [index.map_name(i) for i in range(3)] == columns.map_names
    assert np.concatenate([index.annotation_ids(i) for i in range(3)]).tolist() == columns.annotation_ids.tolist()
    assert index.num_objects == len(columns.labels), "crowds are learnt as objects"
    assert index.num_objects_per_image.tolist() == index.num_annotations_per_image.tolist()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=5), "1 segment has a category"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=0), "1 segment id cannot occur in a map"),
        (lambda c: c["annotations"][0].update(image_id=71), "belongs to an image that the file does not have"),
        (lambda c: c["annotations"][0].pop("file_name"), "1 field is missing or of a wrong type"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "1 image or map file occurs in several"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(bbox=[0, 0, 1]), "1 segments lack area, or bbox"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd="no"), "iscrowd is not 0 or 1"),
        (lambda c: c["categories"][0].pop("isthing"), "does not say whether it is a thing"),
        (lambda c: c["images"][0].update(height="30"), "1 field is missing or of a wrong type"),
        (lambda c: c["images"].clear(), "has no images"),
        (lambda c: c["annotations"].clear(), "has no annotations"),
        (lambda c: c.pop("categories"), "cannot be used"),
        (lambda c: [a.update(file_name=None, segments_info=[]) for a in c["annotations"]], "no panoptic annotations"),
    ],
)
def test_defects_are_refused(tmp_path: Path, change: Callable[[Json], object], told: str) -> None:
    file = json_of(write_panoptic(tmp_path))
    edit(file, change)
    with pytest.raises(DataError, match=told) as caught:
        read_panoptic_annotations(file)
    assert all(problem.where.startswith(str(file)) for problem in caught.value.problems)


def test_all_defects_are_said_at_once(tmp_path: Path) -> None:
    def spoil(content: Json) -> None:
        content["annotations"][0]["segments_info"][0]["category_id"] = 5
        content["annotations"][1]["segments_info"][0]["area"] = None

    file = json_of(write_panoptic(tmp_path))
    edit(file, spoil)
    with pytest.raises(DataError) as caught:
        read_panoptic_annotations(file)
    assert len(caught.value.problems) == 2


def test_missing_iscrowd_is_no_crowd(tmp_path: Path) -> None:
    file = json_of(write_panoptic(tmp_path))
    edit(file, lambda c: [s.pop("iscrowd") for a in c["annotations"] for s in a["segments_info"]])
    assert not read_panoptic_annotations(file).iscrowd.any()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "panoptic_train.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match="panoptic annotation file cannot be used"):
        read_panoptic_annotations(file)


def test_pixels_are_counted_by_their_segment() -> None:
    ids = np.array([[9, 9, 0], [0, 5, 70_000]], np.int32)
    listed = np.array([70_000, 5, 9])
    rows = rows_of_segments(ids, listed, "map.png")
    assert rows.tolist() == [[3, 3, 0], [0, 2, 1]]
    assert boxes_of_rows(rows, 3).tolist() == [[2, 1, 3, 2], [1, 1, 2, 2], [0, 0, 2, 1]]
    assert boxes_of_rows(np.zeros((2, 2), np.int32), 0).shape == (0, 4)


def test_a_map_and_a_list_that_disagree_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        rows_of_segments(np.array([[9, 5]], np.int32), np.array([9, 8]), "map.png")
    told = [problem.what for problem in caught.value.problems]
    assert told[0].endswith("does not list: 5") and told[1].endswith("lists: 8")
    assert {problem.where for problem in caught.value.problems} == {"map.png"}


def test_boxes_are_those_that_the_data_doctor_measures(tmp_path: Path) -> None:
    for seed in range(5):
        ids = segment_ids_of(seed, (40, 50))
        write_map(tmp_path / "map.png", ids)
        measured = measure_map(read_map(tmp_path / "map.png"))
        boxes_xyxy = boxes_of_rows(rows_of_segments(ids, measured.ids, ""), len(measured.ids))
        boxes_xyxy[:, 2:] -= boxes_xyxy[:, :2]
        assert np.array_equal(boxes_xyxy, measured.boxes_xywh)


@pytest.mark.parametrize("kind", ["missing", "truncated", "grey", "text"])
def test_a_file_that_is_no_map_is_refused(tmp_path: Path, kind: str) -> None:
    from PIL import Image

    path = tmp_path / "map.png"
    if kind == "truncated":
        write_map(path, segment_ids_of(0, (60, 60)))
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == "grey":
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    elif kind == "text":
        path.write_text("no image")
    with pytest.raises(DataError, match="the panoptic map cannot be used: ") as caught:
        read_segment_ids(path)
    assert caught.value.problems[0].where == str(path) and caught.value.problems[0].fix


JUNK = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        7.0,
        7.5,
        1e300,
        float("nan"),
        2**70,
        "",
        "\0",
        "7",
        "é" * 300,
        "\ud800",
        [],
        [[]],
        {},
        {"id": 1},
    ]
)


@settings(max_examples=150)
@given(st.data())
def test_junk_anywhere_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever a value is replaced by, both readers return columns or a DataError; nothing else comes out of them."""
    with TemporaryDirectory() as folder:
        file = json_of(write_panoptic(Path(folder), 2))
        content = json.loads(file.read_text())
        place: Any = content
        for _ in range(data.draw(st.integers(1, 6))):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
                place[key] = data.draw(JUNK)
                break
            place = place[key]
        file.write_text(json.dumps(content))
        for read in (read_panoptic_annotations, read_results, lambda path: AnnotationIndex.open(path, "panoptic")):
            try:
                assert read(file) is not None
            except DataError as error:
                assert all(problem.what and problem.where for problem in error.problems)
