from __future__ import annotations

import io
from pathlib import Path

from run_events import HOSTILE, bad_image, ended, evaluated, eventful_run, logged, started
from timed_log import BEGAN, write

from detronome.report.watch.screen import WatchScreen, print_state
from detronome.report.watch.state import Watcher


def test_a_pipe_gets_plain_lines_each_thing_once(tmp_path: Path) -> None:
    out, now, run = io.StringIO(), BEGAN, tmp_path / "run"
    watch = Watcher(run, clock=lambda: now)
    with WatchScreen(out) as screen:
        screen.show(watch.look())
        now = write(run, [started(), logged(1)])
        screen.show(watch.look())
        now = write(run, [logged(2)], at=now + 1)
        screen.show(watch.look())  # too soon for another line
        now = write(run, [logged(3), evaluated(3, 0.25), bad_image(3)], at=now + 12)
        screen.show(watch.look())
        screen.show(watch.look())
        write(run, [ended(100)], at=now)
        screen.show(watch.look())
    lines = out.getvalue().splitlines()
    assert all(char.isprintable() for line in lines for char in line)
    assert lines[0].endswith("run: waiting for its first word")
    assert sum("evaluated" in line for line in lines) == 1 and sum("image 17" in line for line in lines) == 1
    assert [line.split()[0] for line in lines if "loss" in line and "evaluated" not in line] == [
        "running",
        "running",
        "finished",
    ]
    assert "epoch 0.3/10  step 3/100" in out.getvalue() and "ETA" in out.getvalue()


def test_everything_is_printed_once_without_control_characters(tmp_path: Path) -> None:
    out = io.StringIO()
    write(tmp_path / "run", eventful_run())
    print_state(Watcher(tmp_path / "run", clock=lambda: BEGAN).look(), out)
    text = out.getvalue()
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "what happened" in text and HOSTILE.partition("&")[0] in text
