"""`detronome profile`: on data, on a run, in a terminal, as JSON; and the verdict that a run leaves in its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import detronome as dt
from detronome.api.profiling import write_verdict
from detronome.cli import main
from detronome.config.convert import from_dict, read_toml

pytestmark = pytest.mark.alone

Capture = pytest.CaptureFixture[str]
QUICK = ["--steps", "2"]


def as_options(settings: dict[str, Any]) -> list[str]:
    return ["--set", *(f"{key}={json.dumps(value)}" for key, value in settings.items())]


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return (end.value.code if isinstance(end.value.code, int) else 0), captured.out, captured.err


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(f).encode() + f.read_bytes() for f in files)).hexdigest()


def test_a_profile_of_data_has_ceilings_sections_and_a_verdict(
    blocks: Path, tiny_settings: dict[str, Any], capsys: Capture
) -> None:
    code, out, _ = run(capsys, "profile", blocks, "--model", "nano", *QUICK, "--json", *as_options(tiny_settings))
    found = json.loads(out)
    assert code == 0
    assert found["verdict"] in ("DATA", "HOST", "DEVICE", "MEMORY", "NETWORK", "BALANCED")
    assert {"run", "loader", "device"} == found["images_per_s"].keys()
    assert all(rate > 0 for rate in found["images_per_s"].values())
    assert {"data_wait", "forward", "matcher", "loss", "backward", "update"} <= found["sections_s"].keys()
    assert {"read", "decode", "augment", "collate"} <= found["data_stages_s"].keys()
    assert 0.99 <= sum(found["shares"].values()) <= 1.01


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(
    columns: int, blocks: Path, tiny_settings: dict[str, Any], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = run(capsys, "profile", blocks, "--model", "nano", *QUICK, *as_options(tiny_settings))
    assert max(map(len, out.splitlines())) <= columns
    assert "loader alone" in out and "data wait" in out and "detronome tune" in out


def test_a_run_is_profiled_with_its_settings_and_left_as_it_is(tiny_run: Path) -> None:
    before = digest(tiny_run)
    found = dt.profile(tiny_run, steps=2)
    assert digest(tiny_run) == before
    assert found.config.augment.sizes == (64,)
    assert found.name == str(tiny_run)


def test_a_run_whose_data_are_gone_is_profiled_on_those_that_are_named(
    tiny_run: Path, blocks: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "run"
    moved.mkdir()
    held = (tiny_run / "config.toml").read_text()
    assert str(blocks.resolve()) in held
    (moved / "config.toml").write_text(held.replace(str(blocks.resolve()), str(tmp_path / "gone")))
    with pytest.raises(dt.DataError, match="not there any more") as caught:
        dt.profile(moved, steps=2)
    assert "--set data.root=" in caught.value.problems[0].fix
    assert dt.profile(moved, steps=2, settings={"data.root": str(blocks)}).measured.run[0].images_per_s > 0


def test_a_trace_shows_the_sections(blocks: Path, tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "made" / "trace.json"
    dt.profile(blocks, model="nano", steps=2, settings=tiny_settings, trace=file)
    names = {event.get("name") for event in json.loads(file.read_text())["traceEvents"]}
    assert {"section: forward", "section: matcher", "section: backward"} <= names


def test_a_memory_snapshot_of_a_cpu_is_refused_before_anything_is_measured(
    blocks: Path, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "snapshot.pickle"
    with pytest.raises(dt.ConfigError, match="computes on cpu"):
        dt.profile(blocks, model="nano", settings=tiny_settings, memory_snapshot=file)
    assert not file.exists()


def test_mistakes_are_told(blocks: Path, tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(dt.ConfigError, match="steps"):
        dt.profile(blocks, model="nano", steps=1, settings=tiny_settings)
    with pytest.raises(dt.DataError):
        dt.profile(tmp_path / "nothing", model="nano", settings=tiny_settings)
    (tmp_path / "file").write_text("")
    with pytest.raises(dt.ConfigError, match="cannot write"):
        dt.profile(blocks, model="nano", steps=2, settings=tiny_settings, trace=tmp_path / "file" / "trace.json")


def test_a_run_leaves_the_verdict_of_its_log(tiny_run: Path) -> None:
    written = json.loads((tiny_run / "verdict.json").read_text())
    assert (written["format"], written["source"]) == (1, "log")
    assert written["sentence"]
    assert written["proof"]


def test_a_log_that_does_not_tell_leaves_no_verdict(tiny_run: Path, tmp_path: Path) -> None:
    config = from_dict(read_toml(tiny_run / "config.toml"), where="test")
    assert write_verdict(tmp_path, config) is None
    (tmp_path / "log.jsonl").write_text('{"kind": "start"}\n')
    assert write_verdict(tmp_path, config) is None
    assert not (tmp_path / "verdict.json").exists()
