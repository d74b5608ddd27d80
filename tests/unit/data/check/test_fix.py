"""A repaired copy has nothing left to repair, says what was changed, and keeps everything else."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from detronome.data.check.annotations import check_annotations
from detronome.data.check.findings import FixedFile
from detronome.data.check.fix import fix_annotations
from detronome.data.check.image_repairs import ImageRepairs
from detronome.data.check.repair import repair
from detronome.data.coco.read import read_annotations
from detronome.errors import ConfigError, DataError

Coco = dict[str, Any]

SOUND: Coco = {
    "info": {"year": 2017, "odd": [1, {"é": None}]},
    "licenses": [{"id": 1, "name": "CC"}],
    "images": [
        {"id": 1, "file_name": "1.jpg", "width": 100, "height": 80, "coco_url": "x", "license": 1},
        {"id": 2, "file_name": "2.jpg", "width": 50, "height": 60},
    ],
    "annotations": [
        {"segmentation": [], "id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 1, "bbox": [1.5, 2, 3, 4], "area": 12.0, "iscrowd": 0, "mine": "kept"},
    ],
    "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}],
    "and": "more",
}


def sound(*changes: dict[str, Any], **lists: Any) -> Coco:
    """The sound file with one more annotation for each change of the first."""
    coco = copy.deepcopy(SOUND) | lists
    for place, change in enumerate(changes):
        coco["annotations"].append(coco["annotations"][0] | {"id": 10 + place} | change)
    return coco


def fixed(folder: Path, coco: Coco, **options: Any) -> tuple[Coco, dict[str, tuple[str, ...]]]:
    source, out = folder / "instances.json", folder / "fixed.json"
    out.unlink(missing_ok=True)
    source.write_text(json.dumps(coco))
    before = source.read_bytes()
    result = fix_annotations(source, out, **{"most_removed": 1.0} | options)
    assert isinstance(result, FixedFile) and result.path == (str(out) if result.changes else "")
    assert source.read_bytes() == before
    assert out.exists() == bool(result.changes)
    return json.loads((out if result.changes else source).read_text()), {
        change.what: change.cases for change in result.changes
    }


def test_no_copy_is_written_of_a_sound_file(tmp_path: Path) -> None:
    content, changes = fixed(tmp_path, sound())
    assert changes == {}
    assert json.dumps(content) == json.dumps(SOUND)


def test_a_file_without_annotations(tmp_path: Path) -> None:
    assert fixed(tmp_path, sound(annotations=[]))[0]["annotations"] == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    source = tmp_path / "instances.json"
    source.write_text(json.dumps(SOUND))
    for out in (source, tmp_path / "link.json"):
        if out != source:
            out.symlink_to(tmp_path / "nowhere")
        with pytest.raises(ConfigError, match="exists already"):
            fix_annotations(source, out)
    assert not (tmp_path / "nowhere").exists()


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    source = tmp_path / "instances.json"
    source.write_text(json.dumps(SOUND))
    source.write_text(json.dumps(sound({"image_id": 2, "id": 2})))
    with pytest.raises(ConfigError, match="cannot be written"):
        fix_annotations(source, source / "below" / "a file.json")


def test_what_is_no_coco_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match="holds a list"):
        fix_annotations(tmp_path / "results.json", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("change", "expected", "told"),
    [
        ({"bbox": [5, 6, 0, 8]}, None, "removed annotations with empty boxes"),
        ({"bbox": [5, 6, 7, -8]}, None, "removed annotations with empty boxes"),
        ({"bbox": [100, 6, 7, 8]}, None, "removed annotations with boxes outside their image"),
        ({"bbox": [95, 6, 10, 8], "area": 80}, {"bbox": [95, 6, 5, 8]}, "clamped boxes to their image"),
        ({"bbox": [5, 6, 7]}, None, "removed annotations without a readable box"),
        ({"bbox": None, "segmentation": [[1, 2, 9, 2, 9, 9]]}, {"bbox": [1, 2, 8, 7]}, "took boxes from the bounds"),
        ({"bbox": ["5", 6.5, "7", 8]}, {"bbox": [5, 6.5, 7, 8]}, "took numbers of bbox out of quotes"),
        ({"image_id": "2"}, {"image_id": 2}, "took image_id of annotations out of quotes"),
        ({"image_id": 99}, None, "removed annotations whose image_id the file does not have"),
        ({"image_id": None}, None, "removed annotations without image_id"),
        ({"category_id": 99}, None, "removed annotations whose category_id the file does not have"),
        ({}, None, "removed repeated annotations"),
        ({"image_id": 2, "area": None}, {"area": 56}, "computed areas"),
        ({"image_id": 2, "area": -5}, {"area": 56}, "computed areas"),
        ({"image_id": 2, "area": "big"}, {"area": 56}, "computed areas"),
        ({"image_id": 2, "area": 15, "segmentation": [[5, 6, 12, 6, 12, 14, 5, 14]]}, {"area": 15}, ""),
        ({"image_id": 2, "area": 900, "segmentation": [[5, 6, 12, 6, 12, 14]]}, {"area": 28}, "computed areas"),
        ({"image_id": 2, "iscrowd": None}, {"iscrowd": 0}, "wrote iscrowd 0 where it was missing"),
        ({"image_id": 2, "iscrowd": "yes"}, {"iscrowd": 0}, "wrote iscrowd 0 where it was no number"),
        ({"image_id": 2, "iscrowd": 7}, {"iscrowd": 1}, "wrote iscrowd 1"),
        ({"image_id": 2, "id": None}, {"id": 3}, "gave annotations a new id"),
        ({"image_id": 2, "id": 0}, {"id": 3}, "gave annotations a new id"),
        ({"image_id": 2, "id": 2}, {"id": 3}, "gave annotations a new id"),
    ],
)
def test_each_repair(tmp_path: Path, change: dict[str, Any], expected: dict[str, Any] | None, told: str) -> None:
    content, changes = fixed(tmp_path, sound(change))
    assert len(changes) == bool(told) and all(what.startswith(told) for what in changes)
    assert content["annotations"][:2] == SOUND["annotations"]
    if expected is None:
        assert len(content["annotations"]) == 2
        ((case,),) = changes.values()
        assert case.startswith("annotation 10")
    else:
        assert content["annotations"][2] == SOUND["annotations"][0] | {"id": 10} | change | expected


def test_repeated_records_go_and_shared_ids_stay(tmp_path: Path) -> None:
    coco = sound()
    coco["images"] += [coco["images"][0], {**coco["images"][1], "file_name": "3.jpg"}, "4.jpg"]
    coco["categories"] += [coco["categories"][0]]
    content, changes = fixed(tmp_path, coco)
    assert [image["file_name"] for image in content["images"]] == ["1.jpg", "2.jpg", "3.jpg"]
    assert content["categories"] == SOUND["categories"]
    assert sorted(changes) == [
        "removed entries of images that are not objects",
        "removed repeated records of categories",
        "removed repeated records of images",
    ]


def test_annotations_that_name_unreadable_ids_are_left_to_the_user(tmp_path: Path) -> None:
    """Ids that are words tie images and annotations together all the same; removing one side would lose the data."""
    coco = sound()
    for record in coco["images"]:
        record["id"] = f"photo {record['id']}"
    for record in coco["annotations"]:
        record["image_id"] = f"photo {record['image_id']}"
    content, changes = fixed(tmp_path, coco)
    assert content == coco and changes == {}


def test_images_that_cannot_be_used_go_with_their_annotations(tmp_path: Path) -> None:
    content, changes = fixed(tmp_path, sound(), image_repairs=ImageRepairs(unusable={2: "2.jpg is missing"}))
    assert content["images"] == SOUND["images"][:1] and content["annotations"] == SOUND["annotations"][:1]
    assert changes == {
        "removed images whose file cannot be used": ("image 2: 2.jpg is missing",),
        "removed annotations of these images": ("annotation 2 of image 2",),
    }


def test_boxes_that_look_like_corners_are_not_touched_without_a_word(tmp_path: Path) -> None:
    coco = copy.deepcopy(SOUND)
    coco["annotations"] = [
        SOUND["annotations"][0] | {"id": i, "bbox": [40 + i, 30, 90, 70], "area": 2000} for i in range(1, 5)
    ]
    with pytest.raises(DataError, match="look like") as caught:
        fixed(tmp_path, coco)
    assert "--assume-xyxy" in str(caught.value)
    assert not (tmp_path / "fixed.json").exists()
    content, _ = fixed(tmp_path, coco, assume_xyxy=True)
    assert [record["bbox"] for record in content["annotations"]] == [[40 + i, 30, 50 - i, 40] for i in range(1, 5)]
    content, _ = fixed(tmp_path, coco, assume_xyxy=False)
    assert [record["bbox"] for record in content["annotations"]] == [[40 + i, 30, 60 - i, 50] for i in range(1, 5)]


def test_what_is_left_is_counted(tmp_path: Path) -> None:
    coco = sound()
    coco["images"][0]["height"] = None
    (tmp_path / "in.json").write_text(json.dumps(coco))
    left = ("image has no height: $.images[0] (id 1)",)
    assert fix_annotations(tmp_path / "in.json", tmp_path / "out.json").left == left
    assert not (tmp_path / "out.json").exists()
    coco["annotations"][0]["iscrowd"] = None
    (tmp_path / "in.json").write_text(json.dumps(coco))
    about_images = ImageRepairs(left=("2 images are CMYK",))
    fixed_file = fix_annotations(tmp_path / "in.json", tmp_path / "out.json", image_repairs=about_images)
    assert fixed_file.left == (*left, "2 images are CMYK") and (tmp_path / "out.json").exists()


def test_a_repair_that_removes_much_is_refused(tmp_path: Path) -> None:
    coco = sound(*({"category_id": 9, "bbox": [i, 6, 7, 8]} for i in range(2)), *[{"bbox": [1, 1, 0, 1]}])
    with pytest.raises(DataError, match="would remove 3 of 5 annotations: 2 annotations whose category_id") as caught:
        fixed(tmp_path, coco, most_removed=0.25)
    assert "1 annotations with empty boxes" in str(caught.value)
    assert not (tmp_path / "fixed.json").exists()
    repeated = sound(*({"id": 3 + i} for i in range(5)))
    content, _ = fixed(tmp_path, repeated, most_removed=0.25)
    assert len(content["annotations"]) == 2  # what is said twice is not lost


def test_ids_that_count_from_another_number_are_refused(tmp_path: Path) -> None:
    categories = [{"id": i, "name": f"class {i}"} for i in range(3)]
    coco = sound(*({"image_id": 2, "category_id": i, "bbox": [i, 2, 3, 4]} for i in (1, 2, 3)), categories=categories)
    with pytest.raises(DataError, match="count from different numbers") as caught:
        fixed(tmp_path, coco)
    assert "subtract 1 from every category_id" in str(caught.value)


def test_no_image_left_is_refused(tmp_path: Path) -> None:
    unusable = {1: "1.jpg is missing", 2: "2.jpg is missing"}
    with pytest.raises(DataError, match="would remove all 2 images"):
        fixed(tmp_path, sound(), image_repairs=ImageRepairs(unusable=unusable))


def test_names_and_sizes_are_corrected_before_boxes_are_judged(tmp_path: Path) -> None:
    coco = sound({"bbox": [150, 6, 7, 8]})
    content, changes = fixed(
        tmp_path, coco, image_repairs=ImageRepairs(names={2: "Two.jpg"}, sizes_wh={1: (200, 80), 2: (50, 60)})
    )
    assert [(one["file_name"], one["width"], one["height"]) for one in content["images"]] == [
        ("1.jpg", 200, 80),
        ("Two.jpg", 50, 60),
    ]
    assert content["annotations"] == coco["annotations"]
    assert changes == {
        "wrote width and height of images as their files have them": ("image 1: 100x80 is now 200x80",),
        "wrote file_name as the file is called on disk": ("image 2: 2.jpg is now Two.jpg",),
    }


@pytest.mark.parametrize(
    ("bbox", "told"),
    [
        ([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.25], [0.2, 0.1, 0.1, 0.6]], "shares of the image"),
        ([[95, 40, 10, 20], [60, 72, 12, 16], [90, 70, 20, 20]], "centre x, centre y"),
    ],
)
def test_boxes_of_another_format_are_not_touched(tmp_path: Path, bbox: list[list[float]], told: str) -> None:
    annotations = [SOUND["annotations"][0] | {"id": 1 + i, "bbox": box, "area": 3} for i, box in enumerate(bbox)]
    with pytest.raises(DataError, match=told) as caught:
        fixed(tmp_path, sound(annotations=annotations))
    assert "--assume-xywh" in str(caught.value) and not (tmp_path / "fixed.json").exists()
    fixed(tmp_path, sound(annotations=annotations), assume_xyxy=False)


def test_a_file_without_lists_has_nothing_to_repair(tmp_path: Path) -> None:
    assert repair({}, tmp_path / "x.json") == []
    assert repair({"images": 3, "annotations": None, "categories": {}}, tmp_path / "x.json") == []


_SIDES = st.one_of(
    st.floats(-120, 220),
    st.integers(-9, 110),
    st.sampled_from([0, 1, 50, 80, 100, 1e300, -1e300, 1e-300, 100.0005, math.inf, math.nan]),
)
_IDS = st.one_of(st.integers(-1, 4), st.sampled_from([None, "2", "x", 2**53, 2**63 - 1, 10**20, 3.0, 2.5, True]))
_CODE = {"size": [80, 100], "counts": [10, 40, 7950]}
_OUTLINES = [[], None, [[]], [[1, 2, 9, 2, 9, 9]], [[1, 2, 3]], _CODE, "x", [[1e300] * 6]]
_ANNOTATIONS = st.fixed_dictionaries(
    {
        "bbox": st.one_of(
            st.lists(_SIDES, min_size=4, max_size=4), st.sampled_from([None, "5", ["1", "2", "3", 4], [1]])
        ),
        "image_id": st.one_of(st.sampled_from([1, 2, 1.0]), _IDS),
        "category_id": st.one_of(st.just(1), _IDS),
    },
    optional={
        "id": _IDS,
        "area": st.one_of(_SIDES, st.sampled_from([None, "12", "x", 1e300, 5000])),
        "iscrowd": st.sampled_from([0, 1, 2, None, "1", "no", True, 0.5, math.nan, math.inf, -math.inf, 10**30]),
        "segmentation": st.sampled_from(_OUTLINES),
    },
)
_IMAGES = st.sampled_from(
    [
        *SOUND["images"],
        SOUND["images"][0] | {"width": 10},
        SOUND["images"][0] | {"height": "80"},
        {"id": "4", "file_name": "4.jpg", "width": 9},
        "5.jpg",
    ]
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_ANNOTATIONS, max_size=8), st.lists(_IMAGES, max_size=4), st.booleans())
def test_a_repaired_file_has_nothing_left_to_repair(
    tmp_path: Path, annotations: list[Any], images: list[Any], assume_xyxy: bool
) -> None:
    coco = sound(annotations=annotations, images=images)
    try:
        content, _ = fixed(tmp_path, copy.deepcopy(coco), assume_xyxy=assume_xyxy)
    except DataError as error:
        assert any(reason in str(error) for reason in ("count from different numbers", "shares of the image"))
        reject()
    (tmp_path / "fixed.json").write_text(json.dumps(content))
    found = check_annotations(tmp_path / "fixed.json", assume_xyxy=False).findings
    assert [finding.code for finding in found if finding.is_fixable] == []
    assert {key: value for key, value in content.items() if key not in ("images", "annotations")} == {
        key: value for key, value in coco.items() if key not in ("images", "annotations")
    }
    if not any(finding.severity == "error" for finding in found):
        columns = read_annotations(tmp_path / "fixed.json")
        assert (columns.boxes_xywh[:, 2:] > 0).all() and len(set(columns.annotation_ids.tolist())) == len(columns.area)
    again, changes = fixed(tmp_path, content, assume_xyxy=False)
    assert changes == {} and json.dumps(again) == json.dumps(content)
