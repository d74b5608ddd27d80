"""Every image file gets the right verdict, sound data sets get none, and a second look takes moments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detronome.data.check import image_verdict, images
from detronome.data.check.findings import Finding
from detronome.data.check.image_kinds import IMAGE_KINDS
from detronome.data.check.images import check_images
from detronome.data.layout import find_split
from detronome.data.split_files import SplitFiles
from detronome.data.store.index import AnnotationIndex
from detronome.errors import DataError

ODD: dict[str, set[str]] = {
    "pil_sample_cmyk.jpg": {"cmyk"},
    "hopper_gray.jpg": {"greyscale"},
    "hopper.jpg": set(),
    "hopper_orientation_3.jpg": {"exif_ignored"},
    "hopper_orientation_6.jpg": {"exif_ignored"},
    "Landscape_6.jpg": {"exif_ignored"},
    "invalid-exif.jpg": set(),
    "app13-multiple.jpg": {"progressive"},
    "truncated_jpeg.jpg": {"progressive", "no_end_marker"},
    "truncated_image.png": {"truncated"},
    "broken.png": {"corrupt"},
    "zero_width.gif": {"zero_size"},
    "decompression_bomb.gif": {"too_large"},
    "i_trns.png": {"sixteen_bit"},
    "16bit.cropped.tif": {"sixteen_bit"},
    "l_trns.png": {"greyscale"},
    "transparent.png": {"transparency"},
    "hopper_bw_500.png": {"one_bit"},
    "hopper.gif": {"palette"},
    "dispose_bgnd.gif": {"palette", "several_frames"},
    "hopper.webp": set(),
    "orientation_rectangle.jpg": {"exif_ignored"},
    "testorig.png": {"greyscale"},
    "testimgari.jpg": {"arithmetic"},
}
"""What is found in each file when the annotation file has the stored size."""

Sizes = dict[str, tuple[int, int]]
"""Height and width by file name."""


def write_split(folder: Path, sizes: Sizes) -> tuple[SplitFiles, AnnotationIndex]:
    """Write an annotation file for images that lie, or do not lie, in `folder/images`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    records = [
        {"id": 10 + i, "file_name": name, "height": height, "width": width}
        for i, (name, (height, width)) in enumerate(sizes.items())
    ]
    record = {"images": records, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    annotation_file = folder / "annotations/instances_train.json"
    annotation_file.write_text(json.dumps(record))
    return SplitFiles(annotation_file, folder / "images", "train"), AnnotationIndex.open(annotation_file)


def save(folder: Path, name: str, height: int = 20, width: int = 30, **options: Any) -> Path:
    path = folder / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def check(folder: Path, sizes: Sizes, **options: Any) -> dict[str, Finding]:
    findings, _ = check_images(*write_split(folder, sizes), **options)
    assert len({finding.code for finding in findings}) == len(findings)
    return {finding.code.removeprefix("image_"): finding for finding in findings}


def test_an_empty_folder_misses_every_image(tmp_path: Path) -> None:
    found = check(tmp_path, {"a.jpg": (20, 30), "sub/b.jpg": (20, 30)})
    assert set(found) == {"missing"}
    assert found["missing"].count == 2
    assert found["missing"].cases == ("image 10 (a.jpg)", "image 11 (sub/b.jpg)")
    assert found["missing"].where == str(tmp_path / "images")


def test_a_folder_that_does_not_exist_misses_every_image(tmp_path: Path) -> None:
    files, index = write_split(tmp_path, {"a.jpg": (20, 30)})
    (tmp_path / "images").rmdir()
    findings, checked = check_images(files, index)
    assert [finding.code for finding in findings] == ["image_missing"]
    assert checked == {"image files": 0}


def test_sound_images_are_not_spoken_of(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "c.webp", "d.bmp", "e.tif", "f.JPG"):
        save(tmp_path, name)
    files, index = write_split(
        tmp_path, dict.fromkeys(("a.jpg", "b.png", "c.webp", "d.bmp", "e.tif", "f.JPG"), (20, 30))
    )
    assert check_images(files, index) == ([], {"image files": 6})


@pytest.mark.parametrize("name", ["coco2017_sample", "bccd"])
def test_real_data_raises_no_alarm(shared_data: Path, name: str) -> None:
    for split in ("train", "val"):
        files = find_split(shared_data / name, split)
        findings, checked = check_images(files, index := AnnotationIndex.open(files.annotation_file))
        assert {finding.code for finding in findings} <= {"image_greyscale", "image_colour_profile"}
        assert {finding.severity for finding in findings} <= {"note"}
        assert checked == {"image files": len(index)}


@pytest.mark.parametrize("name", ODD)
def test_each_odd_image_is_judged(shared_data: Path, tmp_path: Path, name: str) -> None:
    manifest = json.loads((shared_data / "odd_images/manifest.json").read_text())["images"]
    assert {image["file_name"] for image in manifest} == ODD.keys()
    (about,) = (image for image in manifest if image["file_name"] == name)
    (tmp_path / "images").mkdir()
    shutil.copy(shared_data / "odd_images/images" / name, tmp_path / "images")
    found = check(tmp_path, {name: (about.get("height", 50), about.get("width", 50))})
    assert set(found) == ODD[name]
    for finding in found.values():
        assert finding.count == 1
        assert finding.cases[0].startswith(f"image 10 ({name})")
        assert finding.effect and finding.fix


def test_every_kind_is_in_plain_words() -> None:
    for kind in IMAGE_KINDS.values():
        assert kind.what and kind.effect and kind.fix
    severities = [kind.severity for kind in IMAGE_KINDS.values()]
    assert severities == sorted(severities, key=("error", "warning", "note").index)


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("empty", lambda path: path.write_bytes(b"")),
        ("not_an_image", lambda path: path.write_text("<html>404</html>")),
        ("truncated", lambda path: path.write_bytes(path.read_bytes()[:-40])),
        ("corrupt", lambda path: path.write_bytes(path.read_bytes()[:-60] + bytes(30) + path.read_bytes()[-30:])),
        ("no_end_marker", lambda path: path.write_bytes(path.read_bytes()[:-2])),
        ("unreadable", lambda path: (path.unlink(), path.mkdir())),
        ("missing", lambda path: (path.unlink(), path.symlink_to("nowhere"))),
        ("size_differs", lambda path: save(path.parents[1], path.name, 30, 20)),
        ("wrong_extension", lambda path: Image.open(path).save(path, "PNG")),
    ],
)
def test_each_defect_is_found(tmp_path: Path, kind: str, damage: Damage) -> None:
    save(tmp_path, "b.jpg")
    damage(save(tmp_path, "a.jpg"))
    found = check(tmp_path, {"a.jpg": (20, 30), "b.jpg": (20, 30)})
    assert set(found) == {kind}
    assert found[kind].count == 1
    assert found[kind].cases[0].startswith("image 10 (a.jpg)")


def test_numbers_without_a_range_are_unsupported(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((20, 30), 0.5, np.float32)).save(tmp_path / "images/a.tif")
    assert set(check(tmp_path, {"a.tif": (20, 30)})) == {"unsupported"}


@pytest.mark.parametrize(
    ("size", "kind"), [((20, 30), "exif_ignored"), ((30, 20), "exif_turned"), ((20, 31), "size_differs")]
)
def test_the_annotated_size_decides_on_the_orientation(tmp_path: Path, size: tuple[int, int], kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path, "a.jpg", exif=exif)
    found = check(tmp_path, {"a.jpg": size})
    assert set(found) == {kind}
    assert ("orientation 6" if kind != "size_differs" else "30x20 pixels") in found[kind].cases[0]


def test_other_capital_letters_are_told_with_the_name_on_disk(tmp_path: Path) -> None:
    save(tmp_path, "Sub/A.JPG")
    found = check(tmp_path, {"sub/a.jpg": (20, 30)})
    assert set(found) == {"other_case"}
    assert found["other_case"].cases == ("image 10 (sub/a.jpg): on disk Sub/A.JPG",)


def test_names_that_collide_elsewhere_are_told(tmp_path: Path) -> None:
    save(tmp_path, "a.jpg")
    save(tmp_path, "A.jpg")
    found = check(tmp_path, {"a.jpg": (20, 30), "A.jpg": (20, 30)})
    assert set(found) == {"names_differ_in_case"}
    assert found["names_differ_in_case"].cases == ("image 11 (A.jpg) and a.jpg",)


def test_unnamed_files_are_told_unless_another_split_names_them(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg", "notes.txt", "elsewhere/d.jpg"):
        if name.endswith("jpg"):
            save(tmp_path, name)
        else:
            (tmp_path / "images" / name).write_text("no image")
    assert check(tmp_path, {"a.jpg": (20, 30)})["unnamed"].cases == ("b.jpg", "c.jpg")
    (tmp_path / "annotations/instances_val.json").write_text('{"images": [{"file_name": "b.jpg"}]}')
    assert check(tmp_path, {"a.jpg": (20, 30)})["unnamed"].cases == ("c.jpg",)


def test_a_name_that_no_file_can_have_is_missing(tmp_path: Path) -> None:
    assert set(check(tmp_path, {"x" * 5000: (20, 30)})) == {"missing"}


def test_images_in_shards_are_left_aside(tmp_path: Path) -> None:
    files, index = write_split(tmp_path, {"a.jpg": (20, 30)})
    files = SplitFiles(files.annotation_file, files.images_dir, files.name, shards="/shards/train")
    findings, checked = check_images(files, index)
    assert [(finding.code, finding.severity) for finding in findings] == [("image_in_shards", "note")]
    assert checked == {"image files": 0}


def test_only_the_first_cases_are_named_and_all_are_counted(tmp_path: Path) -> None:
    found = check(tmp_path, {f"{i}.jpg": (20, 30) for i in range(40)})["missing"]
    assert (found.count, len(found.cases)) == (40, 5)


def test_processes_find_what_one_finds_in_the_same_order(tmp_path: Path) -> None:
    sizes = {f"{i:03}.jpg": (20, 30) for i in range(100)}
    for i, name in enumerate(sizes):
        path = save(tmp_path, name)
        if i % 7 == 0:
            path.write_bytes(path.read_bytes()[:-30])
    told: list[tuple[int, int]] = []
    alone = check(tmp_path, sizes, trust_cache=False)
    together = check(tmp_path, sizes, workers=2, trust_cache=False, on_progress=lambda *numbers: told.append(numbers))
    assert alone == together
    assert told == [(32, 100), (64, 100), (96, 100), (100, 100)]


def test_a_killed_process_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {f"{i:03}.jpg": (20, 30) for i in range(40)}
    for name in sizes:
        save(tmp_path, name)
    monkeypatch.setattr(images, "_ignore_interrupts", partial(os._exit, 1))
    with pytest.raises(DataError, match="was killed") as caught:
        check(tmp_path, sizes, workers=1)
    assert "000.jpg" in caught.value.problems[0].where


def test_a_second_look_decodes_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), (20, 30))
    for name in sizes:
        save(tmp_path, name)
    (tmp_path / "images/c.jpg").write_bytes(b"")
    first = check(tmp_path, sizes)
    looked_at: list[str] = []

    def judge(path: Path, size_hw: tuple[int, int]) -> image_verdict.Verdict:
        looked_at.append(path.name)
        return image_verdict.judge_image(path, size_hw)

    monkeypatch.setattr(images, "judge_image", judge)
    assert check(tmp_path, sizes) == first
    assert looked_at == []

    path = tmp_path / "images/b.jpg"
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-20:] = bytes(20)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as tools do that hide a change
    assert set(check(tmp_path, sizes)) == {"empty", "truncated"}
    assert looked_at == ["b.jpg"]

    assert set(check(tmp_path, sizes | {"a.jpg": (20, 31)})) == {"empty", "truncated", "size_differs"}
    assert looked_at == ["b.jpg", "a.jpg"], "another annotated size is another question"
    check(tmp_path, sizes, trust_cache=False)
    assert len(looked_at) == 5


@pytest.mark.parametrize("content", [b"", b"no msgpack", b"\x82\xa5sound\xc4\x03abc\xa6others\x81\xa1x\x90"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "cache"))
    save(tmp_path, "a.jpg").write_bytes(b"")
    first = check(tmp_path, {"a.jpg": (20, 30)})
    (file,) = (tmp_path / "cache/checked").iterdir()
    whole = file.read_bytes()
    file.write_bytes(content)
    assert check(tmp_path, {"a.jpg": (20, 30)}) == first
    assert file.read_bytes() == whole


def test_the_check_does_not_import_torch() -> None:
    modules = ("images", "panoptic", "leakage", "manifest")
    imports = "; ".join(f"import detronome.data.check.{name}" for name in modules)
    subprocess.run([sys.executable, "-c", f"import sys; {imports}; sys.exit('torch' in sys.modules)"], check=True)


def test_images_that_a_yolo_folder_had_to_leave_out_are_told(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        for name in ("a", "b"):
            Image.new("RGB", (32, 24), "red").save(tmp_path / "images" / split / f"{name}.png")
            (tmp_path / "labels" / split / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"")
    files = find_split(tmp_path, "train")
    found, _ = check_images(files, AnnotationIndex.open(files.annotation_file))
    (finding,) = [finding for finding in found if finding.severity != "note"]
    assert (finding.code, finding.count) == ("image_left_out", 1) and finding.cases[0].endswith("b.png")
    assert "image_unnamed" not in {finding.code for finding in found}
