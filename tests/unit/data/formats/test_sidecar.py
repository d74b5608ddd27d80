"""The sidecar gives back what label files cannot say, and yields to every edit of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detronome.data.formats.convert import TargetLayout, convert
from detronome.data.layout import find_split
from detronome.errors import DataError

Put = Callable[..., Path]
Record = dict[str, Any]
LAYOUTS: list[TargetLayout] = ["yolo", "voc"]


@pytest.fixture(params=LAYOUTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, put_image: Put) -> Path:
    document = {
        "info": {"year": 2017},
        "images": [
            {"id": 30, "file_name": "b.png", "width": 40, "height": 20, "license": 4},
            {"id": 20, "file_name": "a.png", "width": 40, "height": 20},
        ],
        "annotations": [
            {"id": 9, "image_id": 20, "category_id": 7, "bbox": [10, 5, 20, 10], "area": 77.5, "iscrowd": 1, "x": 1},
            {"id": 8, "image_id": 30, "category_id": 3, "bbox": [0, 0, -1, 4]},
            {"id": 7, "image_id": 20, "category_id": 3, "bbox": [0, 0, 4, 4], "segmentation": [[0, 0, 4, 0, 4, 4]]},
        ],
        "categories": [{"id": 7, "name": "owl", "supercategory": "bird"}, {"id": 3, "name": "cat"}],
    }
    data = tmp_path / "data"
    (data / "annotations").mkdir(parents=True)
    (data / "annotations/instances_train.json").write_text(json.dumps(document))
    for name in ("a.png", "b.png"):
        put_image(data / "images" / name)
    convert(data, tmp_path / request.param, to=request.param, images="copy")
    assert load(tmp_path / request.param) == document
    folder: Path = tmp_path / request.param
    return folder


def load(folder: Path) -> Record:
    record: Record = json.loads(find_split(folder, "train").annotation_file.read_bytes())
    return record


def is_yolo(folder: Path) -> bool:
    return folder.name == "yolo"


def edit(folder: Path, old: str, new: str, name: str = "a") -> None:
    file = folder / (f"labels/train/{name}.txt" if is_yolo(folder) else f"Annotations/{name}.xml")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def by_id(document: Record) -> dict[int, Record]:
    return {annotation["id"]: annotation for annotation in document["annotations"]}


def test_a_moved_box_is_taken_from_the_label_file(folder: Path) -> None:
    before = by_id(load(folder))
    if is_yolo(folder):
        edit(folder, "0.05 0.1 0.1 0.2", "0.05 0.1 0.1 0.1")
    else:
        edit(folder, "<ymin>0</ymin>", "<ymin>1</ymin>")
    after = by_id(load(folder))
    y, height = (1, 2) if is_yolo(folder) else (1, 3)
    assert after[7]["bbox"] == [0, y, 4, height]
    assert after[7]["area"] == 4 * height and "segmentation" not in after[7]
    assert {i: after[i] for i in (9, 8)} == {i: before[i] for i in (9, 8)}


def test_another_class_keeps_everything_else(folder: Path) -> None:
    before = by_id(load(folder))
    edit(folder, *(("1 0.5", "0 0.5") if is_yolo(folder) else ("owl", "cat")))
    after = by_id(load(folder))
    assert after == {**before, 9: {**before[9], "category_id": 3}}


def test_an_object_added_and_one_removed(folder: Path) -> None:
    before = load(folder)
    if is_yolo(folder):
        edit(folder, "0 0.05 0.1 0.1 0.2\n", "")
        edit(folder, "", "1 0.5 0.5 1 1\n0 0.5 0.5 1 1\n", "b")
    else:
        text = (folder / "Annotations/a.xml").read_text()
        start = text.index("<object>", text.index("owl"))
        edit(folder, text[start : text.index("</annotation>")], "")
        box = "<bndbox><xmin>0</xmin><ymin>0</ymin><xmax>40</xmax><ymax>20</ymax></bndbox>"
        objects = "".join(f"<object><name>{name}</name>{box}</object>" for name in ("owl", "cat"))
        edit(folder, "</annotation>", f"{objects}</annotation>", "b")
    after = load(folder)
    assert by_id(after).keys() == {8, 9, 10, 11}
    assert {k: after[k] for k in ("info", "images", "categories")} == {
        k: before[k] for k in ("info", "images", "categories")
    }
    new = by_id(after)[10]
    assert (new["image_id"], new["category_id"], new["bbox"], new["area"]) == (30, 7, [0, 0, 40, 20], 800)


def test_lines_in_another_order_are_the_same_objects(folder: Path) -> None:
    if not is_yolo(folder):
        pytest.skip("one of the formats is enough")
    before = load(folder)
    file = folder / "labels/train/a.txt"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert load(folder) == before


def test_a_class_renamed_and_a_class_added(folder: Path, put_text: Put) -> None:
    if is_yolo(folder):
        text = (folder / "data.yaml").read_text().replace("owl", "eagle owl").replace("nc: 2", "nc: 3")
        (folder / "data.yaml").write_text(text + "  2: dog\n")
        names = ["eagle owl", "cat", "dog"]
    else:
        file = folder / "label_map.pbtxt"
        file.write_text(file.read_text() + 'item { id: 99 name: "dog" }')
        names = ["owl", "cat", "dog"]
    categories = load(folder)["categories"]
    assert [category["name"] for category in categories] == names
    assert [category["id"] for category in categories] == [7, 3, 8]
    assert categories[0]["supercategory"] == "bird"


def test_an_image_removed_and_an_image_added(folder: Path, put_image: Put) -> None:
    images = folder / ("images/train" if is_yolo(folder) else "JPEGImages")
    if is_yolo(folder):
        (images / "a.png").unlink()
        put_image(images / "c.png", 10, 10)
        (folder / "labels/train/c.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    else:
        put_image(images / "c.png", 10, 10)
        (folder / "Annotations/c.xml").write_text((folder / "Annotations/b.xml").read_text())
        (folder / "ImageSets/Main/train.txt").write_text("b\nc\n")
    document = load(folder)
    assert [(image["id"], image["file_name"]) for image in document["images"]] == [(30, "b.png"), (31, "c.png")]
    assert sorted(by_id(document)) == ([8, 10] if is_yolo(folder) else [8])


def test_a_picture_of_another_size_takes_the_boxes_of_the_label_file(folder: Path, put_image: Put) -> None:
    if not is_yolo(folder):
        pytest.skip("VOC files count pixels")
    put_image(folder / "images/train/a.png", 80, 40)
    document = load(folder)
    assert document["images"][1] == {"id": 20, "file_name": "a.png", "width": 80, "height": 40}
    assert by_id(document)[9]["bbox"] == [20, 10, 40, 20]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "damaged"),
        ('{"detronome_sidecar": 1, "layout": "LAYOUT"}', "damaged"),
        ('{"detronome_sidecar": 2, "layout": "LAYOUT"}', "version 2"),
    ],
)
def test_a_damaged_sidecar_is_told(folder: Path, content: str, told: str) -> None:
    (folder / "detronome.json").write_text(content.replace("LAYOUT", folder.name))
    with pytest.raises(DataError, match=told) as caught:
        load(folder)
    assert "delete the file" in caught.value.problems[0].fix


@pytest.mark.parametrize("content", ["{}", "[]", '{"detronome_sidecar": 1, "layout": "other"}'])
def test_another_programs_file_of_the_name_is_left_alone(folder: Path, content: str) -> None:
    (folder / "detronome.json").write_text(content)
    ids = [category["id"] for category in load(folder)["categories"]]
    assert ids == ([0, 1] if is_yolo(folder) else [3, 7])


def test_any_part_of_the_sidecar_may_be_missing(folder: Path) -> None:
    file = folder / "detronome.json"
    record = json.loads(file.read_text())
    kept = record["splits"]["train"]
    for holder in (kept, kept["document"], kept["document"]["images"][0], kept["document"]["annotations"][0]):
        for key in list(holder):
            value = holder.pop(key)
            file.write_text(json.dumps(record))
            try:
                load(folder)
            except DataError as error:
                assert "sidecar is damaged" in str(error)
            holder[key] = value
