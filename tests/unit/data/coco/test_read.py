"""Sound files become columns; every other file becomes a DataError that lists all of its problems."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detronome.data.coco import read as read_module
from detronome.data.coco.read import read_annotations
from detronome.errors import DataError

SOUND: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [
        {"id": 9, "file_name": "nine.jpg", "height": 40, "width": 60},
        {"id": 4, "file_name": "four.jpg", "height": 30, "width": 20},
        {"id": 7, "file_name": "seven.jpg", "height": 10, "width": 10},
    ],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 18, "bbox": [1, 2, 3, 4], "area": 11.5, "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0.5, 0, 10, 20], "segmentation": [[1, 2, 3, 4, 5, 6]]},
        {"id": 3, "image_id": 4, "category_id": 90, "bbox": [5, 5, 0, -1], "iscrowd": 1, "area": None},
    ],
    "categories": [{"id": 90, "name": "c"}, {"id": 1, "name": "a"}, {"id": 18, "name": "b", "supercategory": "x"}],
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SOUND), **changes}


def write(folder: Path, content: Any) -> Path:
    path = folder / "instances.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def problems(folder: Path, content: Any) -> list[str]:
    path = write(folder, content)
    with pytest.raises(DataError) as caught:
        read_annotations(path)
    assert all(str(path) in problem.where for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


def test_a_file_without_annotations_is_sound(tmp_path: Path) -> None:
    columns = read_annotations(write(tmp_path, changed(annotations=[])))
    assert columns.offsets.tolist() == [0, 0, 0, 0]
    assert columns.boxes_xywh.shape == (0, 4)


def test_columns_keep_the_order_of_images_and_sort_categories(tmp_path: Path) -> None:
    columns = read_annotations(write(tmp_path, SOUND))
    assert columns.image_ids.tolist() == [9, 4, 7]
    assert columns.file_names == ["nine.jpg", "four.jpg", "seven.jpg"]
    assert (columns.heights.tolist(), columns.widths.tolist()) == ([40, 30, 10], [60, 20, 10])
    assert columns.categories.ids == (1, 18, 90)
    assert columns.categories.names == ("a", "b", "c")
    assert columns.offsets.tolist() == [0, 1, 3, 3]
    assert columns.annotation_ids.tolist() == [2, 1, 3]
    assert columns.labels.tolist() == [0, 1, 2]
    assert columns.boxes_xywh.tolist() == [[0.5, 0, 10, 20], [1, 2, 3, 4], [5, 5, 0, -1]]
    assert columns.area.tolist() == [200.0, 11.5, 0.0]
    assert columns.iscrowd.tolist() == [False, False, True]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + json.dumps(SOUND).encode(),
        json.dumps(SOUND).encode("utf-16"),
        json.dumps({**SOUND, "scores": float("nan")}).encode(),
        json.dumps(SOUND).replace(": 9,", ": 9.0,").replace(": 60", ": 6e1").encode(),
        json.dumps(SOUND).replace('"iscrowd": 1', '"iscrowd": true').encode(),
        json.dumps(SOUND).replace('"iscrowd": 0', '"iscrowd": null').encode(),
    ],
    ids=["byte-order mark", "UTF-16", "NaN elsewhere", "whole floats", "boolean crowd", "null crowd"],
)
def test_other_spellings_mean_the_same(tmp_path: Path, content: bytes) -> None:
    plain = read_annotations(write(tmp_path, SOUND))
    other = read_annotations(write(tmp_path, content))
    for name, column in vars(plain).items():
        np.testing.assert_array_equal(column, getattr(other, name))


def test_duplicate_and_missing_annotation_ids_are_fine(tmp_path: Path) -> None:
    content = copy.deepcopy(SOUND)
    content["annotations"][0]["id"] = 3
    del content["annotations"][1]["id"]
    assert read_annotations(write(tmp_path, content)).annotation_ids.tolist() == [2, 3, 3]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_annotations(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_annotations(tmp_path)


@pytest.mark.parametrize(
    ("content", "what", "where"),
    [
        (b"", "is empty", ""),
        (b" \n", "is empty", ""),
        (b'{"images": [\n1, 2', "not valid JSON", "line 2, column 5"),
        (b"\xff\xd8\xff\xe0", "not UTF-8 text", "byte 0"),
        (b"[]", "holds a list where COCO has an object", "$"),
        (b'"x"', "holds a string", "$"),
        (b"1" * 5000, "holds a number", "$"),
        (b"[" * 200_000, "cannot be read as JSON", ""),
    ],
    ids=["empty", "blank", "cut short", "a JPEG", "list", "string", "endless number", "endless nesting"],
)
def test_what_is_not_a_coco_file_is_refused(tmp_path: Path, content: bytes, what: str, where: str) -> None:
    (problem,) = problems(tmp_path, content)
    assert what in problem and where in problem


def test_all_missing_lists_at_once(tmp_path: Path) -> None:
    assert len(problems(tmp_path, {"images": {}, "info": {}})) == 3
    (problem,) = problems(tmp_path, changed(images=[], annotations=[]))
    assert "the list 'images' is empty" in problem
    (problem,) = problems(tmp_path, changed(categories=[], annotations=[]))
    assert "the list 'categories' is empty" in problem


def test_all_kinds_of_problem_at_once(tmp_path: Path) -> None:
    content = copy.deepcopy(SOUND)
    content["images"] += [content["images"][0], {"id": "5", "file_name": "", "height": 0, "width": 5}, 3]
    content["images"] += [{"id": 9, "file_name": "other.jpg", "height": 40, "width": 60}]
    content["categories"] += [{"id": 1, "name": "again"}, {"id": 2}]
    content["annotations"] += [
        {"id": 11, "image_id": 1234, "category_id": 1, "bbox": [0, 0, 1, 1]},
        {"id": 12, "image_id": 9, "category_id": 55, "bbox": [0, 0, 1, 1]},
        {"id": 13, "image_id": 9, "category_id": 1},
        {"id": 14, "image_id": 9, "category_id": 1, "bbox": [0, 0, "1", 1]},
        {"id": 15, "image_id": 9, "category_id": 1, "bbox": [0, 0, float("nan"), 1], "area": "x", "iscrowd": "no"},
        {"id": 16, "image_id": 9, "category_id": 1, "bbox": [0, 0, 1]},
    ]
    text = "\n".join(problems(tmp_path, content))
    for expected in (
        "image records are repeated\n  where: " + str(tmp_path / "instances.json") + ": $.images[3] (id 9)",
        "image ids are used twice\n  where: " + str(tmp_path / "instances.json") + ": $.images[6] (id 9)",
        "id of images is in quotes, not a whole number",
        "images have no file_name",
        "height of images is not a whole number of at least 1",
        "entries of 'images' are not objects",
        "category ids are used twice",
        "categories have no name",
        "$.annotations[3] (id 11) has image_id 1234",
        "$.annotations[4] (id 12) has category_id 55",
        "annotations have no bbox",
        '$.annotations[6] (id 14) has [0, 0, "1", 1]',
        "$.annotations[7] (id 15) has [0, 0, NaN, 1], ",
        "$.annotations[8] (id 16) has [0, 0, 1]",
        "area is not a finite number",
        "iscrowd is not 0 or 1",
    ):
        assert expected in text
    assert text.count("bbox is not 4 finite numbers") == text.count("bbox holds numbers in quotes") == 1


def test_many_cases_of_one_kind_are_counted(tmp_path: Path) -> None:
    content = changed(annotations=[{"id": i, "image_id": 9, "category_id": 1} for i in range(100)])
    (problem,) = problems(tmp_path, content)
    assert "$.annotations[4] (id 4) and 95 more" in problem


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_impossible_file_names_are_refused(tmp_path: Path, name: str) -> None:
    content = copy.deepcopy(SOUND)
    content["images"][1]["file_name"] = name
    (problem,) = problems(tmp_path, content)
    assert "characters that no file can have" in problem


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=-(10**20), max_value=10**20),
    st.sampled_from([10**400, 2**63, -(2**63), 0, 1, -1]),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.one_of(st.floats(), st.integers(), st.text(max_size=2)), max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """List every (container, key) inside a JSON value."""
    keys = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ()
    return [spot for key in keys for spot in [(value, key), *_spots(value[key])]]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_mutation_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = copy.deepcopy(SOUND)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(_spots(content)))
        if data.draw(st.booleans()):
            container[key] = data.draw(_VALUES)
        else:
            del container[key]
        if not _spots(content):
            break
    text = json.dumps(content).encode()
    if data.draw(st.integers(0, 3)) == 0:
        text = text[: data.draw(st.integers(0, len(text)))]
    try:
        columns = read_annotations(write(tmp_path, text))
    except DataError as error:
        assert error.problems
        assert all(problem.what and problem.where for problem in error.problems)
    else:
        assert np.isfinite(columns.boxes_xywh).all()
        assert columns.offsets[-1] == len(columns.labels) == len(columns.area)
        assert ((columns.labels >= 0) & (columns.labels < len(columns.categories))).all()


_ODD = st.sampled_from(
    [
        {},
        {"note": "},{"},
        {"note": '"}, {"'},
        {"attributes": [{"a": [{}, {}]}, {"b": 1}]},
        {"segmentation": {"size": [1]}},
    ]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from([4, 7, 9]), st.none() | st.integers(1, 99), _ODD), max_size=12),
    st.integers(0, 200),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\n\t", " : ")]),
)
def test_piece_by_piece_or_as_a_whole_is_the_same(
    tmp_path: Path, drawn: list[tuple[int, int | None, dict[str, Any]]], chunk_bytes: int, separators: tuple[str, str]
) -> None:
    annotations = [
        {"id": number, "image_id": image_id, "category_id": 1, "bbox": [0, n, 1, 1], **odd}
        for n, (image_id, number, odd) in enumerate(drawn)
    ]
    path = write(tmp_path, json.dumps(changed(annotations=annotations), separators=separators).encode())
    whole = read_annotations(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_module, "_CHUNK_BYTES", chunk_bytes)
        patch.setattr(read_module, "normalise_json", lambda *_: pytest.fail("took the slow path"))
        pieces = read_annotations(path)
    for name in ("annotation_ids", "boxes_xywh", "labels", "area", "iscrowd", "offsets"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))
    assert sorted(whole.boxes_xywh[:, 1].tolist()) == list(range(len(drawn)))
