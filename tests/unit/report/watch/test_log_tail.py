from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from run_events import eventful_run
from scripted_run import Killed, Script, ScriptedRun, killing

from detronome.report.run_log import RunLog, read_run_log
from detronome.report.watch.log_tail import LogTail


class Follower:
    """What somebody holds who does as the tail says."""

    def __init__(self, path: Path) -> None:
        self.records: list[dict[str, Any]] = []
        self._tail = LogTail(path)

    def look(self) -> None:
        added, is_new = self._tail.read()
        self.records = [*([] if is_new else self.records), *added]


def line(step: int, text: str = "") -> bytes:
    return json.dumps({"kind": "step", "step": step, "text": text}).encode() + b"\n"


def test_a_log_that_is_not_there_or_empty_gives_nothing(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "run" / "log.jsonl")
    follower.look()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").touch()
    follower.look()
    assert follower.records == []


def test_a_torn_line_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    follower = Follower(path)
    path.write_bytes(line(1) + line(2)[:9])
    follower.look()
    assert [record["step"] for record in follower.records] == [1]
    with path.open("ab") as file:
        file.write(line(2)[9:])
    follower.look()
    follower.look()
    assert [record["step"] for record in follower.records] == [1, 2]


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b'\n{}\n[1]\n"kind"\nnull\n{"kind": 3, "step": 1}\n{"kind": "step", "step": "x"}\n\xff\xfe\n' + line(4)
    )
    follower = Follower(path)
    follower.look()
    assert [record["step"] for record in follower.records] == [4]


def test_a_log_written_anew_at_the_same_length_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(line(1) + line(2))
    follower = Follower(path)
    follower.look()
    path.write_bytes(line(3) + line(4))  # the same inode, size and all
    follower.look()
    assert [record["step"] for record in follower.records] == [3, 4]


def test_a_log_moved_aside_by_a_new_start_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(line(1) + line(2))
    follower = Follower(path)
    follower.look()
    os.replace(path, tmp_path / "log.jsonl.previous")
    follower.look()
    path.write_bytes(line(7))
    follower.look()
    assert [record["step"] for record in follower.records] == [7]


@given(looks=st.lists(st.booleans(), min_size=200, max_size=200))
@settings(max_examples=15)
def test_at_any_moment_of_an_eventful_run_it_holds_what_the_log_holds(looks: list[bool]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        log, follower = RunLog(path), Follower(path)
        for event, is_looking in zip(eventful_run(), looks, strict=False):
            log(event)
            if is_looking:
                follower.look()
                assert follower.records == read_run_log(path)


@given(
    lives=st.lists(st.integers(3, 30), max_size=4),
    skips=st.frozensets(st.tuples(st.integers(1, 23), st.integers(0, 1)), max_size=3),
    data=st.data(),
)
@settings(max_examples=25)
def test_killed_and_resumed_runs_are_followed(lives: list[int], skips: frozenset[tuple[int, int]], data: Any) -> None:
    script = Script(
        log_steps=2,
        eval_steps=6,
        checkpoints=frozenset({4, 9}),
        failing=frozenset(),
        skips=skips,
        rollbacks=frozenset(step for step, _ in skips),
        splits=frozenset({3}),
        eval_splits=frozenset(),
        bad_images=frozenset({8}),
        warnings=frozenset({7}),
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        log, follower = RunLog(path), Follower(path)

        def tell(event: Any) -> None:
            log(event)
            if data.draw(st.booleans()):
                follower.look()
                assert follower.records == read_run_log(path)

        run = ScriptedRun(script, killing(tell, iter(lives)))
        while True:
            try:
                run.run()
                break
            except Killed:
                log = RunLog(path)
        follower.look()
        assert follower.records == read_run_log(path)
