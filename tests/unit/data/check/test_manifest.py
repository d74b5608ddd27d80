"""A manifest shows every changed byte, and `sha256sum` reads it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detronome.data.check.images import check_images
from detronome.data.check.manifest import compare_manifest, write_manifest
from detronome.data.split_files import SplitFiles
from detronome.data.store.index import AnnotationIndex
from detronome.errors import DataError

NAMES = ("a.jpg", "sub/b c.jpg", "back\\slash.jpg", "new\nline.jpg", "ünïcödé.jpg")


@pytest.fixture
def split(tmp_path: Path) -> tuple[SplitFiles, AnnotationIndex]:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(images / name)
    records = [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in enumerate(NAMES)]
    content = {"images": records, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    annotation_file = tmp_path / "instances_train.json"
    annotation_file.write_text(json.dumps(content))
    return SplitFiles(annotation_file, images, "train"), AnnotationIndex.open(annotation_file)


def test_missing_files_are_left_to_the_check_of_images(split: tuple[SplitFiles, AnnotationIndex]) -> None:
    files, index = split
    shutil.rmtree(files.images_dir)
    assert write_manifest(files, index, manifest := files.annotation_file.with_name("m.txt")) == 0
    assert manifest.read_text() == ""
    assert compare_manifest(files, index, manifest) == []


def test_an_unchanged_folder_is_as_its_manifest_says(split: tuple[SplitFiles, AnnotationIndex]) -> None:
    files, index = split
    assert write_manifest(files, index, manifest := files.annotation_file.with_name("m.txt")) == len(NAMES)
    assert compare_manifest(files, index, manifest) == []
    assert check_images(files, index, manifest=manifest) == ([], {"image files": len(NAMES)})


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_sha256sum_reads_and_writes_the_same(split: tuple[SplitFiles, AnnotationIndex]) -> None:
    files, index = split
    write_manifest(files, index, manifest := files.annotation_file.with_name("m.txt"))
    subprocess.run(["sha256sum", "--check", "--strict", manifest], cwd=files.images_dir, check=True)
    theirs = subprocess.run(["sha256sum", *NAMES], cwd=files.images_dir, check=True, capture_output=True).stdout
    assert manifest.read_bytes() == theirs
    manifest.write_bytes(theirs.replace(b"  ", b" *", 1))  # binary mode, as Windows writes it
    assert compare_manifest(files, index, manifest) == []


def test_every_flipped_bit_is_found(split: tuple[SplitFiles, AnnotationIndex]) -> None:
    files, index = split
    write_manifest(files, index, manifest := files.annotation_file.with_name("m.txt"))
    path = files.images_dir / "a.jpg"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(content), 50).tolist():
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        (finding,) = compare_manifest(files, index, manifest)
        assert (finding.code, finding.severity, finding.cases) == ("image_changed", "error", ("a.jpg",))
    assert "image_changed" in {finding.code for finding in check_images(files, index, manifest=manifest)[0]}


def test_a_file_that_is_not_listed_is_noted(split: tuple[SplitFiles, AnnotationIndex]) -> None:
    files, index = split
    write_manifest(files, index, manifest := files.annotation_file.with_name("m.txt"))
    manifest.write_text("".join(line for line in manifest.read_text().splitlines(keepends=True) if "sub/" not in line))
    (finding,) = compare_manifest(files, index, manifest)
    assert (finding.code, finding.severity, finding.cases) == ("image_unlisted", "note", ("sub/b c.jpg",))


def test_what_is_no_manifest_is_an_error_with_its_line(split: tuple[SplitFiles, AnnotationIndex]) -> None:
    files, index = split
    manifest = files.annotation_file.with_name("m.txt")
    with pytest.raises(DataError, match="No such file"):
        compare_manifest(files, index, manifest)
    manifest.write_text(f"{'0' * 64}  a.jpg\nsomething else\n")
    with pytest.raises(DataError, match="no SHA-256") as caught:
        compare_manifest(files, index, manifest)
    assert caught.value.problems[0].where == f"{manifest}, line 2"
