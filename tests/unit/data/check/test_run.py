"""The whole doctor: one report for a folder, whatever is broken in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detronome.data.check.findings import CheckReport
from detronome.data.check.run import check
from detronome.errors import ConfigError, DataError

WriteCoco = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, write_coco: WriteCoco) -> Path:
    write_coco(tmp_path / "data", 5, "train")
    return write_coco(tmp_path / "data", 3, "val")


def codes(report: CheckReport) -> dict[str, int]:
    return {finding.code: finding.count for finding in report.findings if finding.severity != "note"}


def change(folder: Path, edit: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    file = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_a_split_without_annotations(tmp_path: Path, write_coco: WriteCoco) -> None:
    report = check(write_coco(tmp_path / "data", 1, annotations=[]))
    assert codes(report) == {"no_annotations": 1}


def test_a_sound_folder_is_clean_and_counted(blocks: Path) -> None:
    report = check(blocks)
    assert report.worst in (None, "note")
    assert report.checked["annotation files"] == 2
    assert report.checked["images"] == report.checked["image files"] == 30
    assert {finding.code for finding in report.findings} == {"image_without_annotations"}


def test_annotations_alone(folder: Path) -> None:
    shutil.rmtree(folder / "images")
    assert codes(check(folder, images=False)) == {}
    report = check(folder)
    assert [finding.code for finding in report.findings if finding.severity == "error"] == ["image_folder_missing"] * 2
    assert report.checked["annotations"] == 24


def test_one_split_or_one_file(folder: Path) -> None:
    assert check(folder, splits=["val"]).checked["images"] == 3
    assert check(folder / "annotations" / "instances_val.json").checked == {
        "annotation files": 1,
        "images": 3,
        "annotations": 9,
    }


def test_what_does_not_exist_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        check(tmp_path / "dta")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="annotations"):
        check(tmp_path / "empty")
    with pytest.raises(DataError, match="no split 'test'"):
        check(folder, splits=["test"])


def test_annotations_images_and_splits_in_one_report(folder: Path) -> None:
    (folder / "images" / "train_0.jpg").unlink()
    (folder / "images" / "train_1.jpg").write_bytes(b"no image")
    change(folder, lambda c: c["annotations"][0].update(bbox=[0, 0, 0, 5]))
    change(folder, lambda c: c["categories"][0].update(name="crow"), "val")
    change(folder, lambda c: c["categories"].append({"id": 91, "name": "new"}), "val")
    change(folder, lambda c: c["annotations"][0].update(category_id=91), "val")
    assert codes(check(folder)) == {
        "box_zero_size": 1,
        "image_missing": 1,
        "image_not_an_image": 1,
        "categories_differ": 1,
        "category_unknown_to_train": 1,
    }


def test_images_of_a_broken_file_are_looked_at_all_the_same(folder: Path) -> None:
    change(folder, lambda c: c["annotations"][0].update(bbox="wide", category_id=5))
    change(folder, lambda c: c["images"][4].pop("width"))
    (folder / "images" / "train_0.jpg").unlink()
    report = check(folder)
    assert codes(report) == {"bbox_wrong": 1, "category_unknown": 1, "image_width_missing": 1, "image_missing": 1}
    assert report.checked["image files"] == 6


def test_a_file_that_is_not_json_does_not_hide_the_others(folder: Path) -> None:
    (folder / "annotations" / "instances_train.json").write_text('{"images": [')
    change(folder, lambda c: c["annotations"][0].update(bbox=[0, 0, 0, 5]), "val")
    assert codes(check(folder)) == {"file_unreadable": 1, "box_zero_size": 1}


def test_classes_that_are_measured_but_never_learned(folder: Path) -> None:
    change(folder, lambda c: [record.update(category_id=2) for record in c["annotations"]])
    (finding,) = [f for f in check(folder, images=False).findings if f.code == "category_not_learned"]
    assert (finding.count, finding.cases) == (2, ("'owl' (id 90): 3 objects", "'dog' (id 7): 3 objects"))


def test_ids_that_moved_between_splits(folder: Path) -> None:
    def move(content: dict[str, Any]) -> None:
        content["categories"][0]["id"] = 91
        for record in content["annotations"]:
            record["category_id"] = 91 if record["category_id"] == 90 else record["category_id"]

    change(folder, move, "val")
    (finding,) = [f for f in check(folder, images=False).findings if f.code == "categories_differ"]
    assert finding.cases == ("'owl' is id 90 in train, 91 in val",)


def test_a_repaired_copy_leaves_out_images_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    (folder / "images" / "train_0.jpg").unlink()
    (folder / "images" / "train_1.jpg").write_bytes(b"no image")
    change(folder, lambda c: c["annotations"][-1].update(bbox=[0, 0, 0, 5]))
    before = (folder / "annotations" / "instances_train.json").read_bytes()
    out = tmp_path / "fixed"
    report = check(folder, fix=out)
    assert [Path(copy.path).relative_to(out).as_posix() for copy in report.fixed] == [
        "annotations/instances_train.json",
        "annotations/instances_val.json",
    ]
    assert (folder / "annotations" / "instances_train.json").read_bytes() == before
    repaired = json.loads((out / "annotations" / "instances_train.json").read_text())
    assert [image["file_name"] for image in repaired["images"]] == ["train_2.jpg", "train_3.jpg", "train_4.jpg"]
    assert len(repaired["annotations"]) == 3 * 3 - 1
    assert codes(check(out / "annotations" / "instances_train.json")) == {}


def test_one_file_for_one_split(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed.json"
    with pytest.raises(ConfigError, match="one file cannot hold"):
        check(folder, fix=out)
    check(folder, splits=["train"], fix=out)
    with pytest.raises(ConfigError, match="exist already"):
        check(folder, splits=["train"], fix=out)
    with pytest.raises(ConfigError, match="exist already"):
        check(folder, images=False, fix=folder)


def test_a_file_that_cannot_be_repaired_is_a_finding(folder: Path, tmp_path: Path) -> None:
    change(folder, lambda c: [record.update(bbox=[9, 9, 19, 19]) for record in c["annotations"]])
    report = check(folder, splits=["train"], images=False, fix=tmp_path / "out.json")
    assert {"boxes_look_like_xyxy", "not_repaired"} <= set(codes(report))
    assert report.fixed == () and not (tmp_path / "out.json").exists()
    report = check(folder, splits=["train"], images=False, fix=tmp_path / "out.json", assume_xyxy=True)
    assert len(report.fixed) == 1


def test_progress_is_told(folder: Path) -> None:
    told: list[str] = []
    check(folder, on_progress=lambda what, done, total: told.append(what))
    assert dict.fromkeys(told) == dict.fromkeys(
        ["annotations of train", "images of train", "annotations of val", "images of val", "images that splits share"]
    )


def test_real_data_is_clean(shared_data: Path) -> None:
    report = check(shared_data / "coco2017_sample")
    assert codes(report) == {"category_not_learned": 6}
    assert report.checked["panoptic maps"] == 26


def test_torch_is_not_imported() -> None:
    modules = "detronome.data.check.run, detronome.api.data, detronome.cli.data.check, detronome.report.check_console"
    source = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_manifest_shows_a_flipped_bit_that_decodes(blocks: Path, tmp_path: Path) -> None:
    data = shutil.copytree(blocks, tmp_path / "data")
    digests = tmp_path / "digests"
    first = check(data, manifest=digests)
    assert first.worst != "error" and first.checked["new image digests"] == 30
    again = check(data, manifest=digests)
    assert again.worst != "error" and "new image digests" not in again.checked
    for name, content in (("train_02.png", b"x"), ("val_01.png", b"")):
        with (data / "images" / name).open("ab") as file:
            file.write(content)
    found = {finding.code: finding for finding in check(data, manifest=digests).findings}
    assert found["image_changed"].severity == "error" and found["image_changed"].cases == ("train_02.png",)
