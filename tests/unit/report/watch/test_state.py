from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_events import HOSTILE, ended, evaluated, eventful_run, logged, started, warned, whole_run
from timed_log import BEGAN, write

from detronome.report.html import write_report
from detronome.report.run_files import VerdictFile
from detronome.report.watch.state import RunState, Watcher, newest_run
from detronome.report.watch.terminal_view import draw_state


def watcher(path: Path, now: float = BEGAN, **options: Any) -> Watcher:
    return Watcher(path, clock=lambda: now, **options)


def shown(state: RunState, *, width: int = 100, height: int | None = None, is_unicode: bool = True) -> str:
    console = Console(width=width, color_system=None, force_terminal=False, file=io.StringIO())
    for line in draw_state(state, width=width, height=height, is_unicode=is_unicode).renderables:
        console.print(line, soft_wrap=True)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    state = watcher(tmp_path / "later").look()
    assert state.status == "waiting" and state.series == {} and not state.has_ended
    assert json.loads(json.dumps(state.to_record()))["status"] == "waiting"
    assert "waiting" in shown(state)
    assert not (tmp_path / "later").exists()


def test_every_state_of_a_run_is_told(tmp_path: Path) -> None:
    run, now = tmp_path / "run", BEGAN
    watch = Watcher(run, clock=lambda: now)
    write(run, [started()])
    assert watch.look().status == "starting"
    now = write(run, [logged(step) for step in range(1, 11)])
    state = watch.look()
    assert state.status == "running" and state.step == 10 and state.epoch == 1.0
    now += 119
    assert watch.look().status == "running"
    now += 10
    silent = watch.look()
    assert silent.status == "silent" and silent.silent_s == pytest.approx(129)
    assert "silent for 2 min" in shown(silent)
    write(run, [ended(10, "interrupted")])
    assert watch.look().status == "interrupted"
    write(run, [started(10), logged(11)], at=now)
    resumed = watch.look()
    assert resumed.status == "running" and resumed.num_resumes == 1
    write(run, [ended(100)])
    assert watch.look().has_ended


def test_a_run_that_logs_rarely_has_longer_to_be_silent(tmp_path: Path) -> None:
    now = write(tmp_path / "run", [started(), *(logged(step) for step in range(1, 9))], gap_s=300)
    assert watcher(tmp_path / "run", now + 1100).look().status == "running"
    assert watcher(tmp_path / "run", now + 1300).look().status == "silent"


def test_an_evaluation_is_no_silence(tmp_path: Path) -> None:
    steps = [logged(step) for step in range(1, 51)]
    now = write(tmp_path / "run", [started(), *steps])
    images_per_s, num_images = steps[-1].images_per_s, started().num_val_images
    expected_s = 4 * num_images / images_per_s
    slow = [replace(step, images_per_s=num_images / 300) for step in steps]
    now = write(tmp_path / "slow", [started(), *slow])  # evaluating as fast as it trains, it takes 5 minutes
    assert watcher(tmp_path / "slow", now + 1100).look().status == "running"
    assert watcher(tmp_path / "slow", now + 1300).look().status == "silent"
    assert expected_s < 120 and watcher(tmp_path / "run", now + 130).look().status == "silent"
    now = write(tmp_path / "slow", [replace(evaluated(50, 0.2), eval_s=600.0)], at=now + 600)
    now = write(tmp_path / "slow", slow, at=now)  # more records than gaps are remembered
    assert watcher(tmp_path / "slow", now + 2300).look().status == "running"
    assert watcher(tmp_path / "slow", now + 2500).look().status == "silent"


def test_a_resumed_run_has_time_to_start_whatever_it_tells_meanwhile(tmp_path: Path) -> None:
    now = write(tmp_path / "run", [started(), logged(1), started(1), warned(1)])
    assert watcher(tmp_path / "run", now + 800).look().status == "running"
    assert watcher(tmp_path / "run", now + 1000).look().status == "silent"


def test_the_time_left_counts_evaluations(tmp_path: Path) -> None:
    write(tmp_path / "run", [started(), *(logged(step) for step in range(1, 51))])
    assert watcher(tmp_path / "run").look().eta_s == pytest.approx(50 * 0.2)
    write(tmp_path / "run", [evaluated(50, 0.2)])  # 1 s, after 10 s of training
    assert watcher(tmp_path / "run").look().eta_s == pytest.approx(50 * 0.2 * 1.1)


def test_an_eventful_run_is_shown_and_nothing_is_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, eventful_run())
    (run / "hangs").mkdir()
    (run / "hangs" / "hang-5-rank0.json").write_text(json.dumps({"what": f"rank 1 of 2 {HOSTILE}"}))
    (run / "trackers.json").write_text('{"wandb": {"url": "https://a.b/c"}, "mlflow": {"url": "javascript:alert(1)"}}')
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    state = watcher(run).look()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert state.status == "finished" and state.num_evaluations > 5
    assert state.counts["rollback"] == 1 and state.counts["skip"] >= 3
    assert state.links == {"wandb": "https://a.b/c"}
    assert state.hangs[0].startswith("rank 1 of 2") and "\x1b" not in state.hangs[0]
    record = json.dumps(state.to_record(), allow_nan=False)
    assert "\\u001b" not in record
    assert "\x1b" not in shown(state)


def test_the_sections_are_means_and_the_verdict_is_asked_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    steps = [replace(logged(s), sections_s={"forward": 0.1 * s, "data_wait": 0.1}) for s in (1, 2, 3)]
    write(run, [started(), *steps])
    asked: list[int] = []

    def verdict_of(run_dir: Path, records: Sequence[Mapping[str, Any]]) -> VerdictFile | None:
        asked.append(len(records))
        return VerdictFile(verdict="DATA", sentence="it waits for the loader", best_gain=1.3)

    watch = watcher(run, verdict_of=verdict_of)
    state = watch.look()
    watch.look()
    assert asked == [4]  # once for each growth of the log: the start and the steps
    assert {part.name: part.value for part in state.step_parts} == pytest.approx(
        {"forward": 0.2, "waiting for data": 0.1}
    )
    text = shown(state)
    assert "DATA" in text and "1.30x faster" in text and "66.7%" in text


def test_without_a_live_verdict_that_of_the_file_is_shown(tmp_path: Path) -> None:
    write(tmp_path / "run", whole_run())
    (tmp_path / "run" / "verdict.json").write_text('{"format": 1, "verdict": "HOST", "sentence": "the host"}')
    state = watcher(tmp_path / "run").look()
    assert state.verdict is not None and state.verdict.verdict == "HOST"


def test_changes_are_written_as_they_are_given(tmp_path: Path) -> None:
    write(tmp_path / "run", whole_run())
    changes = [
        {"setting": "train.compile", "value": True},
        {"setting": "batch.global_batch_size", "value": 131072},
        {"setting": "the slowest rank's machine", "value": "look at it", "why": "the others wait"},
    ]
    verdict = {"format": 1, "verdict": "HOST", "sentence": "the host", "changes": changes}
    (tmp_path / "run" / "verdict.json").write_text(json.dumps(verdict))
    state = watcher(tmp_path / "run").look()
    told = [change["assignment"] for change in state.to_record()["verdict"]["changes"]]
    assert told == ["train.compile=true", "batch.global_batch_size=131072", "the slowest rank's machine: look at it"]
    assert all(text in shown(state) for text in told)
    page = write_report([tmp_path / "run"], tmp_path / "a.html").read_text().replace("<wbr>", "")
    assert all(text.replace("'", "&#39;") in page for text in told)


def test_of_a_folder_of_runs_the_newest_is_watched(tmp_path: Path) -> None:
    assert newest_run(tmp_path) is None
    write(tmp_path / "a", whole_run())
    write(tmp_path / "b", [started()])
    (tmp_path / "notes").mkdir()
    for name, at in (("a", 1_000), ("b", 2_000)):
        os.utime(tmp_path / name / "log.jsonl", (at, at))
    watch = watcher(tmp_path)
    assert watch.look().name == "b"
    os.utime(tmp_path / "a" / "log.jsonl", (3_000, 3_000))
    state = watch.look()
    assert state.name == "a" and state.status == "finished"
    assert newest_run(tmp_path / "a") == tmp_path / "a"


@pytest.mark.parametrize("is_unicode", [True, False])
@pytest.mark.parametrize(("width", "height"), [(20, 5), (60, 24), (80, 24), (120, 50), (300, 120), (1, 1)])
def test_the_view_fits_any_terminal(tmp_path: Path, width: int, height: int, is_unicode: bool) -> None:
    write(tmp_path / "run", eventful_run())
    state = watcher(tmp_path / "run").look()
    lines = draw_state(state, width=width, height=height, is_unicode=is_unicode).renderables
    assert 0 < len(lines) <= height
    assert all(line.cell_len <= width for line in lines)  # type: ignore[union-attr]
    if not is_unicode and width > 20:
        text = "\n".join(line.plain for line in lines)  # type: ignore[union-attr]
        assert text.isascii()


def test_odd_records_are_endured(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    odd = [
        {"kind": "start", "step": 0, "total_steps": "many", "environment": None},
        {"kind": "step", "step": 1, "loss": None, "losses": 3, "epoch": True, "sections_s": {"forward": None}},
        {"kind": "step", "step": 2, "time": "noon", "sections_s": [], "learning_rates": None, "system": {"x": "y"}},
        {"kind": "eval", "step": 2, "metrics": None},
        {"kind": "new in the next version", "step": 2},
        {"kind": "skip", "step": 2},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in odd))
    for name in ("plan.json", "verdict.json", "trackers.json"):
        (run / name).write_text("[")
    state = watcher(run).look()
    json.dumps(state.to_record(), allow_nan=False)
    shown(state)
