"""Each defect is found under its name, with its ids, and a sound file is told nothing about."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask  # type: ignore[import-untyped, unused-ignore]

from detronome.data.check import segments
from detronome.data.check.annotations import check_annotations
from detronome.data.check.findings import Finding
from detronome.data.check.geometry import BoxGeometry
from detronome.data.check.segments import SegmentKind, measure_segments

Coco = dict[str, Any]
Change = Callable[[Coco], object]


def sound() -> Coco:
    """Ten images of 100x80 with two outlined objects of two classes each, and a crowd region."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 80} for i in range(1, 11)]
    annotations = []
    for image in images:
        for k in range(2):
            x, y, w, h = 5 + 40 * k, 10 + image["id"], 30, 20
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": k + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    crowd = {"counts": [800, 400, 6800], "size": [80, 100]}
    annotations[-1] |= {"iscrowd": 1, "segmentation": crowd, "area": 400, "bbox": [10, 0, 5, 80]}
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def findings(folder: Path, content: Any, queries: int = 100) -> dict[str, Finding]:
    path = folder / "instances_train.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    found = check_annotations(path, queries=queries).findings
    assert all(finding.where == str(path) and finding.effect and finding.fix for finding in found)
    return {finding.code: finding for finding in found}


def annotation(**changes: Any) -> Change:
    """Change the first annotation: a cat in image 1 at [5, 11, 30, 20]."""
    return lambda coco: coco["annotations"][0].update(changes)


def all_annotations(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda coco: [change(record) for record in coco["annotations"]]


def test_a_file_without_annotations(tmp_path: Path) -> None:
    assert list(findings(tmp_path, sound() | {"annotations": []})) == ["no_annotations"]


def test_a_sound_file_has_no_findings(tmp_path: Path) -> None:
    assert findings(tmp_path, sound()) == {}


def outlined(*polygons: list[float], **changes: Any) -> Change:
    return annotation(segmentation=list(polygons), **changes)


IMAGE = {"id": 11, "file_name": "11.jpg", "width": 100, "height": 80}
OTHER = {"counts": [8000], "size": [80, 100]}
BOX = [5, 11, 35, 11, 35, 31, 5, 31]
CASES: list[tuple[str, Change, list[str]]] = [
    ("no width", annotation(bbox=[5, 11, 0, 20]), ["box_zero_size"]),
    ("vanishing width", annotation(bbox=[5, 11, 1e-300, 20]), ["box_zero_size"]),
    ("negative height", annotation(bbox=[5, 11, 30, -20]), ["box_negative_size"]),
    ("NaN", annotation(bbox=[5, 11, float("nan"), 20]), ["bbox_wrong"]),
    ("quotes", annotation(bbox=["5", "11", "30", "20"]), ["number_in_quotes"]),
    ("outside", annotation(bbox=[100, 11, 30, 20], segmentation=[]), ["box_outside_image", "segmentation_missing"]),
    ("beyond", annotation(bbox=[75, 11, 30, 20], segmentation=[]), ["box_beyond_image", "segmentation_missing"]),
    ("rounded", annotation(bbox=[5, 11, 30, 69.7], area=2091, segmentation=OTHER), ["box_rounded_beyond_image"]),
    ("tiny", annotation(bbox=[5, 11, 30, 0.05], area=1, segmentation=OTHER), ["box_tiny"]),
    ("repeated", lambda c: c["annotations"].append(c["annotations"][3] | {"id": 99}), ["annotation_repeated"]),
    ("no area", lambda c: c["annotations"][0].pop("area"), ["area_missing"]),
    ("area zero", annotation(area=0), ["area_not_positive"]),
    ("area NaN", annotation(area=float("nan")), ["area_wrong"]),
    ("area of another", annotation(area=6000), ["area_implausible"]),
    ("area below the outline", annotation(area=200), ["area_implausible"]),
    ("crowd 2", annotation(iscrowd=2), ["iscrowd_odd", "crowd_without_rle"]),
    ("crowd word", annotation(iscrowd="no"), ["iscrowd_wrong"]),
    ("no crowd flag", lambda c: c["annotations"][0].pop("iscrowd"), ["iscrowd_missing"]),
    ("crowd with polygon", annotation(iscrowd=1), ["crowd_without_rle"]),
    ("odd polygon", outlined([*BOX, 5]), ["polygon_odd_count"]),
    ("two points", outlined(BOX, [1, 2, 3, 4]), ["polygon_too_short"]),
    ("empty polygon", outlined(BOX, []), ["polygon_too_short"]),
    ("flat polygon", annotation(segmentation=BOX), ["segmentation_wrong_type"]),
    ("polygon of words", annotation(segmentation=[["a"] * 6]), ["segmentation_wrong_type"]),
    ("no outline", annotation(segmentation=None), ["segmentation_missing"]),
    ("polygon elsewhere", outlined([50, 11, 80, 11, 80, 31, 50, 31]), ["polygon_box_mismatch"]),
    ("polygon beyond", outlined([-9, 11, 35, 11, 35, 31, -9, 31], bbox=[0, 11, 35, 20]), ["polygon_beyond_image"]),
    ("turned mask", annotation(segmentation={"counts": [5, 600, 7395], "size": [100, 80]}), ["rle_size_mismatch"]),
    ("short mask", annotation(segmentation={"counts": [5, 600], "size": [80, 100]}), ["rle_sum_mismatch"]),
    ("broken mask", annotation(segmentation={"counts": "~~", "size": [80, 100]}), ["rle_unreadable"]),
    ("negative run", annotation(segmentation={"counts": [-1], "size": [80, 100]}), ["segmentation_wrong_type"]),
    ("no id", lambda c: c["annotations"][0].pop("id"), ["annotation_id_missing"]),
    ("id 0", annotation(id=0), ["annotation_id_zero"]),
    ("id twice", annotation(id=2), ["annotation_id_duplicate"]),
    ("huge id", annotation(id=2**60), ["id_huge"]),
    ("unknown image", annotation(image_id=99), ["image_unknown"]),
    ("unknown class", annotation(category_id=99), ["category_unknown"]),
    ("shared file", lambda c: c["images"][0].update(file_name="2.jpg"), ["file_name_shared"]),
    ("no height", lambda c: c["images"][0].pop("height"), ["image_height_missing"]),
    ("bare image", lambda c: c["images"].append(IMAGE), ["image_without_annotations"]),
    ("image twice", lambda c: c["images"].append(c["images"][0]), ["image_record_repeated"]),
    ("image id twice", lambda c: c["images"].append(IMAGE | {"id": 1}), ["image_id_duplicate"]),
    ("class twice", lambda c: c["categories"].append(c["categories"][0]), ["category_record_repeated"]),
    ("unused class", lambda c: c["categories"].append({"id": 3, "name": "owl"}), ["category_unused"]),
    ("same name", lambda c: c["categories"][0].update(name="dog"), ["category_name_duplicate"]),
    ("like name", lambda c: c["categories"][0].update(name="DOG "), ["category_names_alike"]),
    ("no name", lambda c: c["categories"][0].update(name=" "), ["category_name_empty"]),
    ("no list", lambda c: c.pop("categories"), ["list_missing"]),
    ("corners", all_annotations(lambda r: r.update(bbox=corners(r["bbox"]))), ["boxes_look_like_xyxy"]),
    ("shares", all_annotations(lambda r: r.update(bbox=shares(r["bbox"]))), ["boxes_look_normalised"]),
]  # fmt: skip


def corners(box: list[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def shares(box: list[float]) -> list[float]:
    return [box[0] / 100, box[1] / 80, box[2] / 100, box[3] / 80]


@pytest.mark.parametrize(("change", "codes"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_defect_is_found_alone(tmp_path: Path, change: Change, codes: list[str]) -> None:
    coco = sound()
    change(coco)
    found = findings(tmp_path, coco)
    assert sorted(found) == sorted(codes)


def test_cases_are_counted_and_named(tmp_path: Path) -> None:
    coco = sound()
    for record in coco["annotations"][:7]:
        record["bbox"][2] = 0
    found = findings(tmp_path, coco)["box_zero_size"]
    assert found.count == 7 and len(found.cases) == 5
    assert found.cases[0] == "annotation 1 of image 1: [5, 11, 0, 20]"


def test_the_two_empty_boxes_of_official_coco_are_named(tmp_path: Path) -> None:
    coco = sound()
    for row, (identity, image_id, box) in enumerate(
        [(918, 200365, [296.65, 388.33, 1.03, 0.0]), (2206849, 550395, [9.98, 188.56, 15.52, 0.0])]
    ):
        coco["images"][row]["id"] = image_id
        coco["annotations"] = [one for one in coco["annotations"] if one["image_id"] != row + 1]
        coco["annotations"].append({"id": identity, "image_id": image_id, "category_id": 1, "bbox": box, "area": 0})
    found = findings(tmp_path, coco)["box_zero_size"]
    assert found.severity == "warning" and found.is_fixable
    assert [case.partition(":")[0] for case in found.cases] == [
        "annotation 918 of image 200365",
        "annotation 2206849 of image 550395",
    ]


def test_a_broken_file_is_told_all_that_can_be_checked(tmp_path: Path) -> None:
    coco = sound()
    coco["images"][0]["height"] = None
    coco["images"].append("11.jpg")
    coco["annotations"][0]["bbox"] = "5 11 30 20"
    coco["annotations"][2]["bbox"] = [5, 12, 0, 20]
    coco["annotations"][4]["category_id"] = 77
    coco["categories"].append({"id": 3, "name": "Cat"})
    assert set(findings(tmp_path, coco)) == {
        "image_height_missing", "entry_not_object", "bbox_wrong", "category_unknown", "box_zero_size",
        "category_unused", "category_names_alike",
    }  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\xfa", b"null", b"[" * 99_999])
def test_what_is_no_coco_file_is_one_finding(tmp_path: Path, content: bytes) -> None:
    found = findings(tmp_path, content)
    assert list(found) == ["file_unreadable"] and found["file_unreadable"].severity == "error"


def test_a_missing_file_is_a_finding(tmp_path: Path) -> None:
    (finding,) = check_annotations(tmp_path / "none.json").findings
    assert "No such file" in finding.what


def test_crowded_images_are_told_with_their_counts(tmp_path: Path) -> None:
    coco = sound()
    coco["annotations"] += [
        {**coco["annotations"][4], "id": 100 + i, "bbox": [i, 13, 30, 20], "segmentation": []} for i in range(8)
    ]
    found = findings(tmp_path, coco, queries=9)["more_objects_than_queries"]
    assert (found.count, found.cases) == (1, ("image 3 (3.jpg): 10 objects",))
    assert "more_objects_than_queries" not in findings(tmp_path, coco, queries=10)


def test_crowd_regions_need_no_query(tmp_path: Path) -> None:
    assert "more_objects_than_queries" in findings(tmp_path, sound(), queries=1)
    coco = sound()
    for record in coco["annotations"]:
        record["iscrowd"] = record["category_id"] - 1
    assert "more_objects_than_queries" not in findings(tmp_path, coco, queries=1)


def test_boxes_of_sound_files_do_not_look_like_corners(tmp_path: Path) -> None:
    coco = sound()
    for record in coco["annotations"][:3]:  # sloppy, but as [left, top, right, bottom] the others make no sense
        record["bbox"] = [60, 40, 90, 70]
    found = findings(tmp_path, coco)
    assert "boxes_look_like_xyxy" not in found and found["box_beyond_image"].count == 3


def test_boxes_of_sound_files_do_not_look_like_centres(tmp_path: Path) -> None:
    coco = sound()
    for record in coco["annotations"][:5]:  # sloppy, but as centres the others, which begin at the edge, make no sense
        record["bbox"] = [60, 40, 90, 70]
    for record in coco["annotations"][5:8]:
        record["bbox"] = [0, 0, 30, 20]
    assert "boxes_look_like_cxcywh" not in findings(tmp_path, coco)


def test_ids_that_cannot_be_read_are_told_once(tmp_path: Path) -> None:
    for identity in ("7", True):
        coco = sound()
        coco["annotations"][0]["id"] = identity
        assert len(findings(tmp_path, coco)) == 1


def test_what_to_write_is_said(tmp_path: Path) -> None:
    for value in (640.5, 0, 10**30):
        coco = sound()
        coco["images"][0]["width"] = value
        assert findings(tmp_path, coco)["image_width_wrong"].fix == "write width as a whole number from 1"
    coco = sound()
    coco["categories"][0]["name"] = 7
    assert findings(tmp_path, coco)["category_name_wrong"].what == "category's name is not text"


def test_ids_that_count_from_another_number_are_named(tmp_path: Path) -> None:
    coco = sound()
    for category in coco["categories"]:
        category["id"] -= 1
    found = findings(tmp_path, coco)
    assert "category_unknown" not in found and "once 1 is subtracted" in found["category_ids_shifted"].what
    assert not found["category_ids_shifted"].is_fixable


def test_one_case_is_told_in_the_singular(tmp_path: Path) -> None:
    coco = sound()
    coco["annotations"][0]["bbox"] = [0, 0, 0, 5]
    assert findings(tmp_path, coco)["box_zero_size"].what == "box has no width or no height"
    coco["annotations"][1]["bbox"] = [0, 0, 0, 5]
    assert findings(tmp_path, coco)["box_zero_size"].what == "boxes have no width or no height"


def test_normalised_boxes_in_tiny_images_are_pixels(tmp_path: Path) -> None:
    coco = sound()
    for image in coco["images"]:
        image.update(width=2, height=2)
    for record in coco["annotations"]:
        record |= {"bbox": [0, 0.5, 1, 1], "area": 1, "segmentation": []}
    assert "boxes_look_normalised" not in findings(tmp_path, coco)


def test_the_geometry_of_nothing() -> None:
    geometry = BoxGeometry(np.empty((0, 4)), np.empty((0, 2)))
    assert geometry.suspected_format(None) is None


def test_no_outline_at_all() -> None:
    assert len(measure_segments([]).kind) == 0
    assert measure_segments([b"[]", b"null"]).kind.tolist() == [SegmentKind.NONE] * 2


def test_polygons_are_measured(tmp_path: Path) -> None:
    measures = measure_segments([b"[[0,0,10,0,10,10,0,10],[20,20,30,20,30,25]]", b"[[1,1,2,2]]", b"[[1,2,3,4,5,6,7]]"])
    assert measures.area.tolist() == [125, 0, 0]
    assert measures.bounds_xyxy.tolist() == [[0, 0, 30, 25], [1, 1, 2, 2], [1, 2, 5, 6]]
    assert measures.has_short_polygon.tolist() == [False, True, False]
    assert measures.has_odd_polygon.tolist() == [False, False, True]


def test_compressed_masks_measure_as_pycocotools_says() -> None:
    rng = np.random.default_rng(0)
    masks = [np.asfortranarray(rng.random((37, 53)) < share, np.uint8) for share in (0, 0.001, 0.02, 0.5, 1)]
    codes = [coco_mask.encode(mask) for mask in masks]
    texts = [json.dumps({"size": code["size"], "counts": code["counts"].decode()}).encode() for code in codes]
    measures = measure_segments(texts)
    assert measures.area.tolist() == [int(mask.sum()) for mask in masks]
    assert measures.rle_pixels.tolist() == [37 * 53] * 5


def test_the_same_outlines_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [b"[[0,0,9,0,9,9]]", b"false", b'{"size":[2,2],"counts":[1,3]}', b"[]"] * 5
    whole = measure_segments(texts)
    monkeypatch.setattr(segments, "_CHUNK", 3)
    pieces = measure_segments(texts)
    for name, column in vars(whole).items():
        assert json.dumps(column.tolist()) == json.dumps(getattr(pieces, name).tolist())
    assert whole.kind.tolist() == [1, 3, 2, 0] * 5


def test_the_fast_and_the_slow_reading_agree(tmp_path: Path) -> None:
    coco = sound()
    coco["annotations"][0]["bbox"] = [75, 11, 30, 20]
    coco["annotations"][3]["area"] = 0
    coco["annotations"][5]["id"] = 0
    fast = findings(tmp_path, coco)
    slow = copy.deepcopy(coco)
    slow["info"] = float("nan")  # no JSON, so it takes the slow path
    assert findings(tmp_path, slow) == fast and len(fast) == 4


@pytest.mark.parametrize("name", ["coco2017_sample", "bccd"])
def test_real_files_are_sound(shared_data: Path, name: str) -> None:
    result = check_annotations(shared_data / name / "annotations" / "instances_train.json")
    assert result.is_sound
    assert {finding.severity for finding in result.findings} <= {"note"}
