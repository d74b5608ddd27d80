from __future__ import annotations

import json
import logging
import math
import resource
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_events import (
    bad_image,
    checkpoint_failed,
    ended,
    evaluated,
    logged,
    rolled_back,
    skipped,
    split,
    started,
    warned,
    whole_run,
)
from scripted_run import NUM_STEPS, Killed, Script, ScriptedRun, killing

import detronome as dt
from detronome.engine.events import Event, StepLogged
from detronome.errors import DataError
from detronome.report.run_log import RunLog, read_run_log


def _steps(path: Path) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in read_run_log(path)]


def test_an_empty_log_has_no_records(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.touch()
    assert read_run_log(path) == []


def test_every_event_is_one_line_with_a_time_and_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "run" / "log.jsonl"
    log = RunLog(path)
    events = list(whole_run())
    for event in events:
        log(event)
    lines = path.read_text().splitlines()
    assert len(lines) == len(events)
    for line in lines:
        record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert datetime.fromisoformat(record["time"]).tzinfo is not None
    assert _steps(path)[0] == ("start", 0)
    assert _steps(path)[-1] == ("end", 100)


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log(logged(1, loss=math.inf))
    (record,) = read_run_log(log.path)
    assert record["loss"] is None
    assert record["losses"] == {"loss_bbox": 0.1, "loss_giou": None}


def test_numpy_numbers_are_written_as_numbers(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log(logged(1, loss=np.float32(0.5)))  # type: ignore[arg-type]
    assert read_run_log(log.path)[0]["loss"] == 0.5


def test_a_resumed_log_reads_like_an_uninterrupted_one(tmp_path: Path) -> None:
    straight, resumed = RunLog(tmp_path / "a.jsonl"), RunLog(tmp_path / "b.jsonl")
    for event in whole_run():
        straight(event)
    for event in whole_run():
        if event.step <= 57 and not isinstance(event, type(ended())):
            resumed(event)
    resumed(ended(57, "interrupted"))
    again = RunLog(resumed.path)
    again(started(step=30))
    for event in whole_run():
        if event.step > 30:
            again(event)
    records = [record for record in _steps(resumed.path) if record != ("start", 30)]
    assert records == _steps(straight.path)


def test_a_rollback_drops_the_steps_undone_and_keeps_what_led_to_it(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log(rolled_back(40, 46))  # an empty log has nothing to drop
    log(started())
    before = [logged(10), evaluated(10, 0.1)]
    undone = [split(11), bad_image(12), logged(12), evaluated(12, 0.2), warned(12), skipped(13), checkpoint_failed(12)]
    for event in (*before, *undone, rolled_back(10, 14), logged(12)):
        log(event)
    kinds = ["start", "step", "eval", "split", "bad_image", "warning", "skip", "checkpoint_failed", "rollback", "step"]
    assert [kind for kind, _ in _steps(log.path)] == kinds


def test_a_skip_after_the_checkpoint_is_not_told_twice(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    for event in (started(), logged(10), warned(10), skipped(10), split(10)):
        log(event)
    log(started(step=10))
    assert [kind for kind, _ in _steps(log.path)] == ["start", "step", "warning", "start"]


@pytest.mark.parametrize("step", [0, 10])
def test_a_run_killed_right_after_it_went_back_still_says_why_it_did(tmp_path: Path, step: int) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    led_to_it = [skipped(step), split(step + 1), skipped(step + 1), rolled_back(step, step + 2)]
    for event in (started(), logged(step), *led_to_it, skipped(step)):
        log(event)
    log(started(step))
    kinds = ["start", "step", "skip", "split", "skip", "rollback", "start"]
    assert [kind for kind, _ in _steps(log.path)] == kinds


steps = st.frozensets(st.integers(0, NUM_STEPS), max_size=6)
scripts = st.builds(
    Script,
    log_steps=st.integers(1, 6),
    eval_steps=st.integers(3, NUM_STEPS),
    checkpoints=steps,
    failing=steps,
    skips=st.frozensets(st.tuples(st.integers(0, NUM_STEPS - 1), st.integers(0, 2)), max_size=10),
    rollbacks=st.just(frozenset(range(NUM_STEPS))) | steps,
    splits=steps,
    eval_splits=steps,
    bad_images=steps,
    warnings=st.frozensets(st.integers(0, 2 * NUM_STEPS + 1), max_size=12),
)


def _without_starts(path: Path) -> list[dict[str, Any]]:
    records = [record for record in read_run_log(path) if record["kind"] != "start"]
    return [{name: value for name, value in record.items() if name != "time"} for record in records]


@settings(max_examples=60)
@given(script=scripts, lives=st.lists(st.integers(0, 40), max_size=5))
def test_the_log_of_a_run_killed_anywhere_is_that_of_the_uninterrupted_one(script: Script, lives: list[int]) -> None:
    with TemporaryDirectory() as folder:
        straight, killed = Path(folder) / "a.jsonl", Path(folder) / "b.jsonl"
        ScriptedRun(script, RunLog(straight)).run()
        run = ScriptedRun(script, killing(RunLog(killed), iter(lives)))
        for _ in range(len(lives) + 1):
            try:
                run.run()
                break
            except Killed:
                continue
        assert _without_starts(killed) == _without_starts(straight)


class _Crash(Exception):  # noqa: N818
    pass


def test_the_log_of_a_crashed_and_resumed_training_is_that_of_the_uninterrupted_one(
    blocks: Path, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    def crash(event: Event) -> None:
        if isinstance(event, StepLogged) and event.step == 5:
            raise _Crash

    settings = {**tiny_settings, "batch.global_batch_size": 8}  # three steps an epoch
    dt.train(blocks, model="nano", epochs=3, out=tmp_path / "straight", settings=settings)
    with pytest.raises(_Crash):
        dt.train(blocks, model="nano", epochs=3, out=tmp_path / "killed", settings=settings, observers=[crash])
    dt.resume(tmp_path / "killed")

    def without_times(name: str) -> list[dict[str, Any]]:
        timed = ("_s", "_bytes", "goodput", "seconds", "batches_ready", "system")
        records = _without_starts(tmp_path / name / "log.jsonl")
        return [{key: value for key, value in record.items() if not key.endswith(timed)} for record in records]

    assert without_times("killed") == without_times("straight")
    assert [record["kind"] for record in without_times("straight")].count("step") == 9


def test_a_torn_last_line_is_left_out_and_removed_by_a_resume(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    for event in (started(), logged(10), evaluated(10, 0.1), logged(20)):
        log(event)
    whole = log.path.read_bytes()
    for cut in range(1, 60):
        log.path.write_bytes(whole[:-cut])
        assert _steps(log.path)[:3] == [("start", 0), ("step", 10), ("eval", 10)]
    log(started(step=10))
    log(skipped(11))
    assert _steps(log.path) == [("start", 0), ("step", 10), ("eval", 10), ("start", 10), ("skip", 11)]


def test_a_run_that_starts_over_keeps_the_old_log_aside(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log(started())
    log(logged(10))
    log(started())
    assert _steps(log.path) == [("start", 0)]
    assert _steps(tmp_path / "log.jsonl.previous") == [("start", 0), ("step", 10)]


def test_a_log_that_cannot_be_written_warns_once_and_does_not_raise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = RunLog(tmp_path)  # a folder
    with caplog.at_level(logging.WARNING):
        log(logged(1))
        log(logged(2))
    assert len(caplog.records) == 1
    assert "training goes on" in caplog.text


def test_a_disk_that_was_full_for_a_while_costs_one_record_alone(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log(started())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (log.path.stat().st_size + 40, limits[1])
    )  # takes the beginning of a line
    try:
        log(logged(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log(logged(2))
    assert _steps(log.path) == [("start", 0), ("step", 2)]


def test_a_missing_log_says_what_where_and_how_to_fix_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run log") as caught:
        read_run_log(tmp_path / "log.jsonl")
    (problem,) = caught.value.problems
    assert problem.where == str(tmp_path / "log.jsonl")
    assert "detronome train" in problem.fix


@pytest.mark.parametrize("line", [b"garbage", b"[1, 2]", b'{"step": 1}', b"\xff\xfe"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"kind": "step", "step": 1}\n' + line + b'\n{"kind": "step", "step": 2}\n')
    with pytest.raises(DataError, match="is no record") as caught:
        read_run_log(path)
    assert caught.value.problems[0].where.endswith("line 2")


def test_the_report_does_not_import_torch() -> None:
    modules = ["run_log", "html", "plots", "console", "pictures", "trackers.build", "happenings", "wall_time"]
    code = "; ".join(f"import detronome.report.{name}" for name in modules)
    subprocess.run([sys.executable, "-c", f"{code}; import sys; assert 'torch' not in sys.modules"], check=True)
