"""Repair with the images looked at: names and sizes come from the files, and what is left is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detronome.data.check.findings import CheckReport, Finding
from detronome.data.check.run import check
from detronome.errors import ConfigError

Record = dict[str, Any]


@pytest.fixture
def folder(blocks: Path, tmp_path: Path) -> Path:
    data = shutil.copytree(blocks, tmp_path / "data")
    (data / "annotations/instances_val.json").unlink()
    for image in (data / "images").glob("val_*"):
        image.unlink()
    return Path(data)


def change(folder: Path, edit: Callable[[Record], object], split: str = "train") -> Record:
    file = folder / "annotations" / f"instances_{split}.json"
    content: Record = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return content


def found(report: CheckReport) -> dict[str, Finding]:
    return {finding.code: finding for finding in report.findings if finding.severity != "note"}


def repaired(report: CheckReport) -> Record:
    (copy,) = report.fixed
    content: Record = json.loads(Path(copy.path).read_text())
    return content


def test_no_copy_is_written_where_nothing_can_be_changed(folder: Path, tmp_path: Path) -> None:
    report = check(folder, fix=tmp_path / "out")
    assert [(copy.path, copy.changes, copy.left, copy.then) for copy in report.fixed] == [("", (), (), "")]
    assert not (tmp_path / "out").exists()


def test_swapped_sizes_are_corrected_and_no_box_is_touched(folder: Path, tmp_path: Path) -> None:
    def swap(content: Record) -> None:
        for image in content["images"]:
            image["width"], image["height"] = image["height"], image["width"]

    before = change(folder, swap)
    report = check(folder, fix=tmp_path / "out")
    assert set(found(report)) == {"image_size_differs"} and found(report)["image_size_differs"].is_fixable
    after = repaired(report)
    assert after["annotations"] == before["annotations"]
    assert {(image["width"], image["height"]) for image in after["images"]} == {(96, 64)}
    (copy,) = report.fixed
    assert [one.what for one in copy.changes] == ["wrote width and height of images as their files have them"]
    assert copy.left == () and str(folder / "annotations/instances_train.json") in copy.then


def test_sizes_that_prove_nothing_are_left(folder: Path, tmp_path: Path) -> None:
    """Of an image that was made smaller nobody knows whether its boxes were."""
    for image in (folder / "images").iterdir():
        Image.open(image).resize((48, 32)).save(image)
    (folder / "images/train_01.png").unlink()
    report = check(folder, fix=tmp_path / "out")
    assert {image["width"] for image in repaired(report)["images"]} == {96}
    assert any("another size" in error for error in report.fixed[0].left)


def test_without_images_boxes_are_judged_by_the_record(folder: Path, tmp_path: Path) -> None:
    change(folder, lambda content: [image.update(width=80) for image in content["images"]])
    report = check(folder, images=False, fix=tmp_path / "out")
    assert {image["width"] for image in repaired(report)["images"]} == {80}


@pytest.mark.parametrize(
    ("spell", "code"),
    [
        (lambda name: f"/home/joe/data/{name}", "image_other_spelling"),
        (lambda name: f"C:\\photos\\{name}", "image_other_spelling"),
        (lambda name: f"images\\{name}", "image_other_spelling"),
        (lambda name: name.upper(), "image_other_case"),
    ],
)
def test_names_are_taken_from_disk(folder: Path, tmp_path: Path, spell: Callable[[str], str], code: str) -> None:
    def rename(content: Record) -> None:
        for image in content["images"]:
            image["file_name"] = spell(image["file_name"])

    before = change(folder, rename)
    report = check(folder, fix=tmp_path / "out")
    assert {finding.code for finding in report.findings} == {code, "image_without_annotations"}
    assert found(report)[code].count == 24 and "--fix" in found(report)[code].fix
    assert report.checked["image files"] == 24
    after = repaired(report)
    assert {image["file_name"] for image in after["images"]} == {path.name for path in (folder / "images").iterdir()}
    assert after["annotations"] == before["annotations"] and report.fixed[0].left == ()


def test_a_name_that_two_records_may_mean_is_left(folder: Path, tmp_path: Path) -> None:
    def rename(content: Record) -> None:
        content["images"][0]["file_name"] = "a/train_02.png"
        content["annotations"][0]["area"] = 0

    before = change(folder, rename)
    report = check(folder, fix=tmp_path / "out")
    assert found(report)["image_name_ambiguous"].cases == ("image 100 (a/train_02.png): on disk train_02.png",)
    assert repaired(report)["images"] == before["images"]
    assert report.fixed[0].left == ("1 image file is missing, and what may be meant is not clear",)


def test_a_link_to_nothing_is_a_missing_file(folder: Path) -> None:
    (folder / "images/train_03.png").unlink()
    (folder / "images/train_03.png").symlink_to("nowhere")
    assert found(check(folder))["image_missing"].cases == ("image 103 (train_03.png)",)


def test_errors_of_images_that_stay_are_left(folder: Path, tmp_path: Path) -> None:
    (folder / "images/train_03.png").unlink()
    (folder / "images/train_03.png").mkdir()
    (folder / "images/train_04.png").unlink()
    report = check(folder, fix=tmp_path / "out")
    assert report.fixed[0].left == ("1 image file cannot be read",)


def test_a_file_without_a_copy_is_named_for_the_new_folder(blocks: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(blocks, tmp_path / "data"))
    change(data, lambda content: content["annotations"][0].update(area=0), "val")
    report = check(data, fix=tmp_path / "out")
    assert [bool(copy.path) for copy in report.fixed] == [False, True]
    assert str(data / "annotations/instances_train.json") in report.fixed[1].then


def test_several_splits_are_told_the_right_form(blocks: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--fix {tmp_path}/out for a folder"):
        check(blocks, fix=tmp_path / "out.json")


@pytest.mark.parametrize(("assume", "codes"), [(None, {"boxes_look_like_cxcywh"}), (False, {"box_beyond_image"})])
def test_centres(folder: Path, tmp_path: Path, assume: bool | None, codes: set[str]) -> None:
    def centre(content: Record) -> None:
        for record in content["annotations"]:
            left, top, width, height = record["bbox"]
            record["bbox"] = [left + width / 2, top + height / 2, width, height]

    change(folder, centre)
    report = check(folder, assume_xyxy=assume)
    assert set(found(report)) == codes
    report = check(folder, assume_xyxy=assume, fix=tmp_path / "out")
    assert ("not_repaired" in found(report)) is (assume is None)
    assert bool(report.fixed) is (assume is False)


def test_corners_that_were_said_to_be_so_are_judged_as_such(folder: Path) -> None:
    def corners(content: Record) -> None:
        for record in content["annotations"]:
            left, top, width, height = record["bbox"]
            record["bbox"] = [left, top, left + width, top + height]

    change(folder, corners)
    assert set(found(check(folder))) == {"boxes_look_like_xyxy"}
    change(folder, lambda content: content["annotations"][0].update(bbox=[5, 5, 5, 9]))
    assert set(found(check(folder, assume_xyxy=True))) == {"boxes_are_xyxy", "box_zero_size"}
    assert "boxes_look_like_xyxy" not in found(check(folder, assume_xyxy=False))


def test_all_cases(folder: Path) -> None:
    change(folder, lambda content: [record.pop("area") for record in content["annotations"]])
    for most, shown in ((5, 5), (7, 7), (None, 45)):
        (finding,) = [f for f in check(folder, images=False, max_cases=most).findings if f.code == "area_missing"]
        assert len(finding.cases) == min(shown, finding.count)


def test_splits_that_share_a_folder_are_told_apart(blocks: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(blocks, tmp_path / "data"))
    for image in (data / "images").iterdir():
        image.write_bytes(b"")
    told = [(one.code, one.split) for one in check(data).findings if one.severity == "error"]
    assert told == [("image_empty", "train"), ("image_empty", "val")]


def test_own_files_are_not_named(folder: Path) -> None:
    change(folder, lambda content: [image.pop("width") for image in content["images"]])
    text = json.dumps(check(folder).to_json())
    assert "images_not_checked" in text and "detronome-check-" not in text


YOLO = {"a": "0 0.5 0.5 0.2 0.2\n", "b": "1 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n"}


def write_yolo(root: Path, labels: dict[str, str]) -> Path:
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for name, text in labels.items():
            Image.effect_noise((60, 40), 80).save(root / f"images/{split}/{name}.png")
            (root / f"labels/{split}/{name}.txt").write_text(text)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root


def test_label_files_are_called_by_their_folder(tmp_path: Path) -> None:
    data = write_yolo(tmp_path / "data", YOLO)
    report = check(data)
    assert [(one.code, one.where) for one in report.findings if one.severity == "warning"] == [
        ("annotation_repeated", str(data / "labels/train")),
        ("annotation_repeated", str(data / "labels/val")),
    ]
    report = check(data, fix=tmp_path / "out")
    assert [copy.source for copy in report.fixed] == [str(data / "labels/train"), str(data / "labels/val")]
    assert "in place of" not in report.fixed[0].then


def test_label_files_that_cannot_be_read_are_findings(tmp_path: Path) -> None:
    data = write_yolo(tmp_path / "data", YOLO | {"c": "7 0.5 0.5 0.2 0.2\n", "d": "0 0.5 x 0.2 0.2\n"})
    report = check(data, fix=tmp_path / "out")
    assert {(one.code, one.severity, one.count) for one in report.findings} == {("labels_unreadable", "error", 2)}
    first, second = report.findings
    assert "labels/train/c.txt" in first.cases[0] + second.cases[0] and first.fix and second.fix
    assert report.fixed == () and report.worst == "error" and json.dumps(report.to_json())
