"""The thread between a run and a tracker: order, failures, slowness."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from run_events import ended, eventful_run, logged, started, whole_run

from detronome.engine.events import RunEnded, RunStarted
from detronome.report.happenings import Happening
from detronome.report.trackers.tracker import Results, Trackers


@dataclass
class Recorder:
    """A tracker that keeps what it is told; it can fail, or wait."""

    label: str = "the recorder"
    failing_opens: int = 0
    failing_writes: frozenset[int] = frozenset()
    gate: threading.Event | None = None
    told: list[tuple[str, int]] = field(default_factory=list)
    results: Results | None = None
    end: RunEnded | None = None

    def open(self, start: RunStarted) -> None:
        if self.gate is not None:
            self.gate.wait(30)
        if self.failing_opens:
            self.failing_opens -= 1
            raise ConnectionError("no answer\nfrom the server")
        self.told.append(("open", start.step))

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        if step in self.failing_writes:
            raise RuntimeError("the server is away")
        self.told.append(("write", step))

    def tell(self, happened: Happening) -> None:
        self.told.append((happened.kind, happened.step))

    def go_back(self, step: int) -> None:
        self.told.append(("go_back", step))

    def close(self, end: RunEnded | None, results: Results) -> None:
        self.end, self.results = end, results
        self.told.append(("close", end.step if end else -1))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "report.html").write_text("<p>")
    return tmp_path


def test_no_tracker_and_no_event_start_no_thread(run_dir: Path) -> None:
    before = threading.active_count()
    with Trackers([], run_dir) as trackers:
        trackers(started())
    with Trackers([Recorder()], run_dir):
        assert threading.active_count() == before


def test_events_come_in_order_and_all_before_the_end(run_dir: Path) -> None:
    recorder = Recorder()
    with Trackers([recorder], run_dir) as trackers:
        for event in eventful_run():
            trackers(event)
    assert recorder.told[0] == ("open", 0) and recorder.told[-1] == ("close", 100)
    written = [step for what, step in recorder.told if what == "write"]
    back = recorder.told.index(("go_back", 40))
    assert ("rollback", 40) in recorder.told[back:]
    assert set(written) >= set(range(1, 101))
    assert {"skip", "split", "warning", "bad_image", "checkpoint_failed"} <= {what for what, _ in recorder.told}
    assert recorder.results is not None and recorder.results.report == run_dir / "report.html"


def test_a_damaged_log_keeps_nothing_from_the_end(run_dir: Path) -> None:
    (run_dir / "log.jsonl").write_text("no record\n{}\n")
    recorder = Recorder()
    with Trackers([recorder], run_dir) as trackers:
        trackers(started())
        trackers(ended(5))
    assert recorder.results is not None and recorder.results.report == run_dir / "report.html"


def test_a_run_that_failed_or_was_interrupted_has_no_results(run_dir: Path) -> None:
    failed, interrupted = Recorder(), Recorder()
    with pytest.raises(KeyError), Trackers([failed], run_dir) as trackers:
        trackers(started())
        raise KeyError
    assert failed.told == [("open", 0), ("close", -1)] and failed.results == Results()
    with Trackers([interrupted], run_dir) as trackers:
        trackers(started())
        trackers(ended(5, "interrupted"))
    assert interrupted.end is not None and interrupted.results == Results()


def test_a_tracker_that_cannot_be_opened_is_tried_again_and_misses_nothing(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(failing_opens=3)
    with caplog.at_level(logging.WARNING), Trackers([recorder], run_dir, retry_s=0.01) as trackers:
        for event in whole_run():
            trackers(event)
        deadline = time.monotonic() + 30
        while ("write", 100) not in recorder.told and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [step for what, step in recorder.told if what == "write"][:2] == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "the recorder cannot follow the run, training goes on: no answer from the server"
    ]


def test_one_that_never_opens_does_not_hold_up_the_end(run_dir: Path) -> None:
    recorder = Recorder(failing_opens=10**6)
    began = time.monotonic()
    with Trackers([recorder], run_dir, retry_s=3600) as trackers:
        for event in whole_run():
            trackers(event)
    assert time.monotonic() - began < 60
    assert recorder.told == []


def test_a_failing_write_is_told_once_and_the_others_go_on(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder, other = Recorder(failing_writes=frozenset(range(10, 20))), Recorder()
    with caplog.at_level(logging.WARNING), Trackers([recorder, other], run_dir) as trackers:
        trackers(started())
        for step in range(1, 31):
            trackers(logged(step))
    assert [step for what, step in recorder.told if what == "write"] == [*range(1, 10), *range(20, 31)]
    assert [step for what, step in other.told if what == "write"] == list(range(1, 31))
    assert len(caplog.records) == 1


def test_one_that_hangs_neither_slows_the_run_nor_its_end(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    with caplog.at_level(logging.WARNING), Trackers([Recorder(gate=gate)], run_dir, patience_s=0.05) as trackers:
        for event in whole_run():
            trackers(event)  # would wait half a minute
        assert not gate.is_set()
    assert "has not taken the whole run" in caplog.text
    gate.set()
