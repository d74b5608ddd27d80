"""Every structural defect has a code, and what can be read of a damaged file is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from detronome.data.coco.problems import examine, parse_json, quoted_number, whole_number
from detronome.errors import DataError

IMAGE = {"id": 1, "file_name": "a.jpg", "height": 10, "width": 10}
CATEGORY = {"id": 1, "name": "cat"}
ANNOTATION = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}


def codes(**lists: Any) -> list[str]:
    root = {"images": [IMAGE], "annotations": [ANNOTATION], "categories": [CATEGORY]} | lists
    return [defect.code for defect in examine(root).defects]


def test_nothing_at_all_is_three_missing_lists() -> None:
    examined = examine({})
    assert [(defect.code, defect.cases) for defect in examined.defects] == [
        ("list_missing", [f"$.{name}"]) for name in ("images", "annotations", "categories")
    ]
    assert examined.records == examined.strict == {"images": [], "annotations": [], "categories": []}


def test_a_sound_file_has_no_defect() -> None:
    assert codes() == []


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"images": {}}, ["list_wrong_type"]),
        ({"categories": [], "annotations": []}, ["list_empty"]),
        ({"images": [IMAGE, IMAGE]}, ["image_record_repeated"]),
        ({"images": [IMAGE, IMAGE | {"width": 11}]}, ["image_id_duplicate"]),
        ({"categories": [CATEGORY, CATEGORY]}, ["category_record_repeated"]),
        ({"categories": [CATEGORY, CATEGORY | {"name": "dog"}]}, ["category_id_duplicate"]),
        ({"images": [IMAGE | {"height": None}]}, ["image_height_missing"]),
        ({"images": [IMAGE | {"width": 0}]}, ["image_width_wrong"]),
        ({"images": [IMAGE | {"width": "10"}]}, ["number_in_quotes"]),
        ({"images": [IMAGE | {"width": "-10"}]}, ["image_width_wrong"]),
        ({"images": [IMAGE, "b.jpg"]}, ["entry_not_object"]),
        ({"annotations": [ANNOTATION | {"image_id": 2}]}, ["image_unknown"]),
        ({"annotations": [ANNOTATION | {"category_id": 2}]}, ["category_ids_shifted"]),
        ({"annotations": [ANNOTATION | {"category_id": 3}]}, ["category_unknown"]),
        ({"categories": [CATEGORY | {"name": 7}]}, ["category_name_wrong"]),
        ({"annotations": [ANNOTATION | {"category_id": "cat"}]}, ["annotation_category_id_wrong"]),
        ({"annotations": [ANNOTATION | {"bbox": ["0", 0, 1, 1]}]}, ["number_in_quotes"]),
        ({"annotations": [ANNOTATION | {"bbox": ["x", 0, 1, 1]}]}, ["bbox_wrong"]),
        ({"annotations": [ANNOTATION | {"bbox": [math.inf, 0, 1, 1]}]}, ["bbox_wrong"]),
        ({"annotations": [ANNOTATION | {"area": "12.5"}]}, ["number_in_quotes"]),
        ({"annotations": [ANNOTATION | {"area": math.nan, "iscrowd": "yes"}]}, ["area_wrong", "iscrowd_wrong"]),
    ],
)
def test_each_defect_has_its_code(lists: dict[str, Any], expected: list[str]) -> None:
    assert codes(**lists) == expected


def test_what_can_be_read_is_kept() -> None:
    root = {
        "images": [IMAGE | {"height": "ten"}],
        "annotations": [ANNOTATION | {"id": "x", "area": "big"}, 5, ANNOTATION | {"bbox": None}],
        "categories": [{"id": 1}],
    }
    strict = examine(root).strict
    assert strict["images"] == [IMAGE | {"height": None}]
    first, second = strict["annotations"]
    assert (first["id"], first["bbox"], math.isnan(first["area"])) == (None, [0, 0, 1, 1], True)
    assert (second["id"], second["bbox"], second["area"]) == (1, None, None)
    assert strict["categories"] == [{"id": 1, "name": None}]


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), (" -7 ", -7), ("7.5", 7.5), ("1e2", 100.0), (".5", 0.5)]
    + [(text, None) for text in ("", "x", "nan", "inf", "1e999", "0x10", "1_0", "--1", "٣", "1 2", "9" * 500)],
)
def test_numbers_in_quotes(text: str, number: float | None) -> None:
    assert quoted_number(text) == number


def test_whole_numbers_are_those_of_64_bits_however_spelt() -> None:
    assert [whole_number(value) for value in (7, 7.0, -(2**63), 0)] == [7, 7, -(2**63), 0]
    assert [whole_number(value) for value in (True, 7.5, math.nan, math.inf, 2**63, 1e300, "7", None)] == [None] * 8


def test_a_list_is_no_coco_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a list"):
        parse_json(b"[]", tmp_path / "results.json")
