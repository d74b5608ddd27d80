"""`data stats`, `data index` and `data cache`: text for people, JSON for programs, and an answer at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detronome.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as end:
        main(["data", *map(str, arguments)])
    captured = capsys.readouterr()
    assert not end.value.code, captured.err
    return captured.out


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    return json.loads(run(capsys, *arguments, "--json"))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache"


def test_stats_show_the_splits_side_by_side(blocks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "stats", blocks)
    assert "train" in text and "val" in text and "red" in text and "blue" in text
    assert not any(line.rstrip().endswith("…") for line in text.splitlines())
    record = run_json(capsys, "stats", blocks, "--split", "val")
    assert [one["split"] for one in record["splits"]] == ["val"]
    assert record["splits"][0]["images"] == 6


def test_stats_draw_pictures_only_when_asked(blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "stats", blocks)["pictures"] == []
    pictures = run_json(capsys, "stats", blocks, "--out", tmp_path / "pictures")["pictures"]
    assert sorted(Path(name) for name in pictures) == sorted((tmp_path / "pictures").iterdir())


def test_a_folder_that_cannot_be_written_is_said(
    blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        main(["data", "stats", str(blocks), "--out", str(tmp_path / "file")])
    assert end.value.code == 1
    assert "the pictures cannot be written" in capsys.readouterr().err


def test_a_long_list_of_classes_is_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}],
        "annotations": [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1]}],
        "categories": [{"id": n, "name": f"class{n}\x1b[2J"} for n in range(40)],
    }
    path.write_text(json.dumps(content))
    short, whole = run(capsys, "stats", path), run(capsys, "stats", path, "--all-classes")
    assert short.count("class") < 25 < 40 <= whole.count("class")
    assert "20 more (--all-classes)" in short
    assert "\x1b[2J" not in whole


def test_index_says_what_was_compiled(own_cache: Path, blocks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(own_cache / "index") in run(capsys, "index", blocks)
    splits = run_json(capsys, "index", blocks)["splits"]
    assert [(one["split"], one["images"]) for one in splits] == [("train", 24), ("val", 6)]


def test_the_path_of_an_index_fits_into_a_terminal(
    own_cache: Path, blocks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", run(capsys, "index", blocks)).splitlines()]
    assert max(map(len, lines)) <= 80
    folder = run_json(capsys, "index", blocks)["splits"][0]["folder"]
    head, _, tail = lines[1].split()[-1].partition("…")
    assert folder.startswith(head) and folder.endswith(tail) and min(len(head), len(tail)) > 8


def test_cache_is_listed_and_cleared(own_cache: Path, blocks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "cache").startswith("0 entries")
    run(capsys, "index", blocks)
    kinds = [line.split() for line in run(capsys, "cache").splitlines()]
    assert kinds[0][:3] == ["kind", "entries", "size"]
    assert [line[0] for line in kinds[1:-1]] == sorted({line[0] for line in kinds[1:-1]})
    assert all(line[3] in ("B", "KiB") and float(line[2]) < 1024 for line in kinds[1:-1])
    assert str(blocks) not in str(kinds)
    listed = run(capsys, "cache", "--all")
    assert str(blocks / "annotations/instances_val.json") in listed and "e-" not in listed.replace(str(blocks), "")
    assert len(run_json(capsys, "cache")["entries"]) >= 2
    assert run_json(capsys, "cache", "--clear", "--older-than", "1")["removed"] == []
    assert run(capsys, "cache", "--clear").startswith("removed ")
    assert run_json(capsys, "cache")["entries"] == []
    assert own_cache.exists()


@pytest.mark.parametrize("arguments", [["--older-than", "3"], ["--clear", "--older-than", "-1"]])
def test_an_age_that_makes_no_sense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["data", "cache", *arguments])
    assert end.value.code == 2
    assert "--older-than" in capsys.readouterr().err


def test_neither_torch_nor_matplotlib_is_imported(blocks: Path) -> None:
    script = f"""
import sys
from detronome.cli import main
for arguments in (["stats", {str(blocks)!r}], ["index", {str(blocks)!r}], ["cache"]):
    try:
        main(["data", *arguments])
    except SystemExit as end:
        assert not end.code
print(sorted({{"torch", "matplotlib"}} & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == "[]\n"
