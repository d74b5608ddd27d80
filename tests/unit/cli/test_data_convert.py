"""`detronome data convert`: what it prints where, and what it does not import."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from detronome.cli import main

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["data", "convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return (end.value.code if isinstance(end.value.code, int) else 0), captured.out, captured.err


def test_what_was_written_and_what_is_left_out(capsys: Capture, blocks: Path, tmp_path: Path) -> None:
    code, out, err = run(capsys, blocks, tmp_path / "out", "--to", "yolo", "--no-sidecar")
    assert code == 0
    assert out.splitlines()[0].startswith("train: 24 images, ")
    assert out.splitlines()[-1] == f"written to {tmp_path}/out; look at it with: detronome data check {tmp_path}/out"
    assert "lost, as YOLO files have no place for them: " in err and "2 category ids" in err
    code, out, err = run(capsys, blocks, tmp_path / "kept", "--to", "yolo", "--split", "val")
    assert out.splitlines()[0].startswith("val: 6 images, ") and len(out.splitlines()) == 2
    assert "kept in detronome.json, as YOLO files have no place for them: " in err


def test_panoptic_maps_are_said_to_be_left_behind(capsys: Capture, blocks: Path, tmp_path: Path) -> None:
    data = shutil.copytree(blocks, tmp_path / "data")
    (data / "annotations/panoptic_val.json").write_text("{}")
    code, out, err = run(capsys, data, tmp_path / "out", "--to", "roboflow")
    assert (code, err) == (0, "not converted: panoptic maps (annotations/panoptic_val.json)\n")
    code, out, err = run(capsys, data, tmp_path / "json", "--to", "voc", "--json")
    assert json.loads(out)["panoptic_files"] == ["annotations/panoptic_val.json"]


def test_json(capsys: Capture, blocks: Path, tmp_path: Path) -> None:
    code, out, err = run(capsys, blocks, tmp_path / "out", "--to", "roboflow", "--images", "copy", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert (record["source"], record["target"], record["has_sidecar"]) == ("coco", "roboflow", False)
    assert [split["written_as"] for split in record["splits"]] == ["train", "valid"]


def test_a_mistake_is_explained(capsys: Capture, blocks: Path, tmp_path: Path) -> None:
    for arguments, ends_with in (
        (("--to", "yolo", "--split", "tset"), 1),
        (("--to", "yolo", "--voc-one-based"), 2),
        (("--to", "csv"), 2),
        ((), 2),
    ):
        code, out, err = run(capsys, blocks, tmp_path / "out", *arguments)
        assert (code, out) == (ends_with, ""), arguments
        assert "error:" in err and "fix:" in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_neither_the_command_nor_the_layouts_import_torch(blocks: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from detronome.cli import main
try:
    main(["data", "convert", {str(blocks)!r}, {str(tmp_path / "out")!r}, "--to", "voc"])
except SystemExit as end:
    assert not end.code
assert not {{"torch", "torchvision", "httpx", "fsspec"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
