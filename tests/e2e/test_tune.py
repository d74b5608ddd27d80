"""`tune` and `search` for real: a deliberately bad run becomes faster, a good one stays, a killed search goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

import detronome as dt
from detronome.config.convert import from_dict, read_toml
from detronome.config.presets import nano

BAD = {"batch.micro_batch_size": 1, "batch.global_batch_size": 12, "data.workers": 0}


def test_nothing_is_overwritten_and_nothing_is_measured_before_that_is_clear(tmp_path: Path, blocks: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("[train]\n")
    with pytest.raises(dt.ConfigError, match="the file exists"):
        dt.tune(blocks, model="nano", out=mine)
    assert mine.read_text() == "[train]\n"
    with pytest.raises(dt.ConfigError, match="a budget of 0 minutes"):
        dt.tune(blocks, model="nano", out=tmp_path / "new.toml", budget_minutes=0)
    with pytest.raises(dt.DataError):
        dt.tune(tmp_path, model="nano", out=tmp_path / "new.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]
    told: list[str] = []
    with pytest.raises(dt.ConfigError, match="cannot write"):
        dt.tune(blocks, model="nano", out="/proc/tuned.toml", on_begin=told.append)
    assert not told


def test_a_seed_that_no_generator_takes_is_told(tmp_path: Path, blocks: Path) -> None:
    with pytest.raises(dt.ConfigError, match="a seed of -1"):
        dt.search(blocks, model="nano", space=["optim.lr=1e-4..1e-2"], epochs=1, seed=-1, out=tmp_path / "search")


@pytest.mark.parametrize("command", ["tune", "search"])
def test_ranks_do_not_tune_or_search(
    command: str, tmp_path: Path, blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(dt.ConfigError, match="started 2 times"):
        if command == "tune":
            dt.tune(blocks, model="nano", out=tmp_path / "tuned.toml")
        else:
            dt.search(blocks, model="nano", space=["optim.lr=1e-4..1e-2"], epochs=1, out=tmp_path / "search")
    assert not list(tmp_path.iterdir())


def test_a_search_without_data_begins_nothing(tmp_path: Path) -> None:
    with pytest.raises(dt.DataError, match="does not exist"):
        dt.search(tmp_path / "gone", model="nano", space=["optim.lr=1e-4..1e-2"], epochs=1, out=tmp_path / "search")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_session_without_time_leaves_the_run_as_it_is(
    tmp_path: Path, blocks: Path, tiny_settings: dict[str, Any]
) -> None:
    told: list[str] = []
    out = tmp_path / "new" / "tuned.toml"
    tuning = dt.tune(blocks, model="nano", settings=tiny_settings, out=out, budget_minutes=1e-6, on_begin=told.append)
    assert tuning.result.settings == {} and tuning.result.reason in ("out of time", "finished")
    assert told[:2] == ["what a step waits for", "as it is"]
    assert "nothing was proven" in out.read_text()
    tuned = from_dict(read_toml(out), base=nano())
    assert tuned.model == from_dict(tomllib.loads(_toml(tiny_settings)), base=nano()).model


@pytest.mark.slow
def test_a_run_that_puts_images_one_by_one_through_the_model_becomes_faster(
    tmp_path: Path, blocks: Path, tiny_settings: dict[str, Any]
) -> None:
    out = tmp_path / "tuned.toml"
    settings = {**tiny_settings, **BAD}
    tuning = dt.tune(blocks, model="nano", settings=settings, out=out, budget_minutes=2, allow_inexact=True)
    result = tuning.result
    assert result.settings.get("batch.micro_batch_size", 1) > 1, result
    final = result.final["training"].speedup
    assert final is not None and final.low > 1 and not result.taken_back
    tuned = from_dict(read_toml(out), base=nano())
    assert tuned.batch.global_batch_size == 12 and tuned.batch.micro_batch_size > 1
    assert "changes in the numbers: BatchNorm sees other groups of images" in out.read_text()
    run = dt.train(blocks, model="nano", config=out, epochs=1, out=tmp_path / "run")
    assert run.reason == "finished"


SEARCH = ["--space", "optim.lr=1e-3..2e-2:log", "model.num_queries=10|25", "--epochs", "6", "--trials", "3"]


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_trial_that_it_was_in(
    tmp_path: Path, blocks: Path, tiny_settings: dict[str, Any]
) -> None:
    config, out = tmp_path / "tiny.toml", tmp_path / "search"
    config.write_text(_toml(tiny_settings))
    arguments = ["search", str(blocks), "--model", "nano", "--config", str(config), *SEARCH, "--out", str(out)]
    command = [sys.executable, "-m", "detronome", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = iter(process.stderr)
    assert next(line for line in lines if "epoch    2" in line)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    process.stderr.close()
    went_on = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert went_on.returncode == 0, went_on.stderr
    first = went_on.stderr.splitlines()[:2]
    assert first[0].startswith("trial 0  ") and int(first[1].split()[1]) > 1  # not from its beginning
    found = dt.search(
        blocks,
        model="nano",
        config=config,
        space=SEARCH[1:3],
        epochs=6,
        trials=3,
        out=out,
    )
    assert [trial.state for trial in found.result.trials] == ["done"] * 3
    assert found.report == out / "comparison.html" and found.report.is_file()
    assert found.best is not None
    best = from_dict(read_toml(found.best), base=nano())
    assert found.result.best is not None
    assert best.optim.lr == found.result.best.settings["optim.lr"] and best.train.epochs == 6
    for trial in found.result.trials:
        assert (trial.folder / "log.jsonl").is_file() and (trial.folder / "checkpoints" / "best").exists()


@pytest.mark.slow
def test_a_signal_ends_a_search_of_several_processes_and_leaves_none(
    tmp_path: Path, blocks: Path, tiny_settings: dict[str, Any]
) -> None:
    config, out = tmp_path / "tiny.toml", tmp_path / "search"
    config.write_text(_toml(tiny_settings))
    long = [*SEARCH[:3], "--epochs", "500", "--trials", "4", "--jobs", "2"]
    arguments = ["search", str(blocks), "--model", "nano", "--config", str(config), *long, "--out", str(out), "--json"]
    process = subprocess.Popen([sys.executable, "-m", "detronome", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while len(list(out.glob("trial-*/checkpoints/step-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143
    assert '"interrupted_by": "SIGTERM"' in told and told.count('"interrupted"') == 2
    deadline = time.monotonic() + 30  # the helper of multiprocessing ends a moment after its parent
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children and not any(map(is_alive, children))


def is_alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _toml(settings: dict[str, Any]) -> str:
    from detronome.tempo.settings_file import settings_toml

    return settings_toml(settings)
