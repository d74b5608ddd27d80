"""`detronome plan` prints a page or a record, and ends with 1 where nothing fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detronome.cli.commands import app
from detronome.cli.dispatch import run

SMALL = ["augment.sizes=[64]", "augment.max_size=96", "augment.eval_size=64", "augment.eval_max_size=96"]


def plan(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app(["plan", *arguments, "--set", *SMALL], exit_on_error=False)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("width", [64, 80, 120])
def test_the_page_says_what_fits_and_how_to_train_so(
    blocks: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert plan(str(blocks), "--model", "nano", "--gpu", "h200", "--price", "2") == 0
    page = capsys.readouterr().out
    for said in ("nano on H200", "fits", "weights", "backbone", "at the peak", "step, model", "price", "recomputed"):
        assert said in page
    (command,) = [line for line in page.splitlines() if "detronome train" in line]
    assert "batch.micro_batch_size=8" in command and "train.precision=bf16" in command and SMALL[0] in command
    assert all(len(line) <= width for line in page.splitlines() if line != command and "nano on" not in line)


def test_numbers_are_whole_also_where_others_hold_memory(
    blocks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert plan(str(blocks), "--model", "nano", "--gpu", "cpu") == 0
    page = capsys.readouterr().out
    assert "held by others" in " ".join(page.split()) and "…" not in page


def test_json_is_one_document(blocks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(str(blocks), "--model", "nano", "--gpu", "24GiB", "--json") == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True


def test_what_does_not_fit_ends_with_one_and_says_what_would(blocks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(str(blocks), "--model", "nano", "--gpu", "0.3GiB") == 1
    page = capsys.readouterr().out
    assert "does not fit" in page and "what would fit" in page and "detronome train" not in page


def test_an_unknown_gpu_is_told_with_the_nearest(blocks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["plan", str(blocks), "--gpu", "rtx 409"])
    assert "RTX 4090" in capsys.readouterr().err
