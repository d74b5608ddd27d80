"""`detronome data check`: what it prints, and its exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from detronome.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(blocks: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(blocks, tmp_path / "data"))


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["data", "check", *map(str, arguments)])
    captured = capsys.readouterr()
    return (end.value.code if isinstance(end.value.code, int) else 0), captured.out, captured.err


def damage(folder: Path, **changes: object) -> None:
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0].update(changes)
    file.write_text(json.dumps(content))


def test_a_sound_folder(capsys: Capture, folder: Path) -> None:
    code, out, err = run(capsys, folder, "--no-images", "--strict")
    assert (code, err) == (0, "")
    assert "30 images" in out and "this data is sound" in out


def test_warnings_count_with_strict(capsys: Capture, folder: Path) -> None:
    damage(folder, bbox=[1, 2, 0, 3])
    assert run(capsys, folder, "--no-images")[0] == 0
    assert run(capsys, folder, "--no-images", "--strict")[0] == 1


def test_errors_end_with_1_and_the_reasons(capsys: Capture, folder: Path) -> None:
    damage(folder, bbox="1 2 3 4")
    code, out, err = run(capsys, folder, "--split", "train")
    assert (code, err) == (1, "")
    assert "bbox is not 4 finite numbers" in out and "1 error" in out


def test_json_holds_everything(capsys: Capture, folder: Path, tmp_path: Path) -> None:
    damage(folder, bbox=[1, 2, 0, 3])
    code, out, _ = run(capsys, folder, "--no-images", "--json", "--fix", tmp_path / "fixed", "--queries", 2)
    report = json.loads(out)
    assert code == 0 and report["worst"] == "warning"
    assert {finding["code"] for finding in report["findings"]} >= {"box_zero_size", "more_objects_than_queries"}
    (change,) = report["fixed"][0]["changes"]
    assert change["what"] == "removed annotations with empty boxes"
    assert (change["count"], change["cases"]) == (1, ["annotation 1 of image 100"])


def test_all_names_every_case(capsys: Capture, folder: Path) -> None:
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for record in content["annotations"]:
        del record["area"]
    file.write_text(json.dumps(content))
    assert "annotation 20 of" not in run(capsys, folder, "--no-images")[1]
    assert "annotation 20 of" in run(capsys, folder, "--no-images", "--all")[1]


def test_mistakes_are_explained(capsys: Capture, folder: Path, tmp_path: Path) -> None:
    for arguments, ends_with, told in (
        ((tmp_path / "dta",), 1, "does not exist"),
        ((folder, "--split", "tset"), 1, "no split 'tset'"),
        ((folder, "--queries", 0), 2, "0 queries"),
        ((folder, "--workers", -1), 2, "-1 workers"),
        ((folder, "--fix", tmp_path / "out.json"), 2, "one file cannot hold"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (ends_with, ""), arguments
        assert told in err and "Traceback" not in err
