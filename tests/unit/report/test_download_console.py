"""What a person sees of a download, in a terminal and in a log."""

from __future__ import annotations

import io
import re

import pytest

from detronome.data.download.events import DownloadEvent, Noticed, Planned, Progressed, Stage
from detronome.report.download_console import DownloadConsole

MIB = 2**20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass only when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def at(done_mib: int, total_mib: int = 100, name: str = "a.zip", stage: Stage = "download") -> Progressed:
    return Progressed(name=name, stage=stage, done_bytes=done_mib * MIB, total_bytes=total_mib * MIB)


PLAN = Planned(sizes_bytes={"a.zip": 100 * MIB, "b.zip": 300 * MIB}, needed_bytes=800 * MIB, free_bytes=10**12)


def log_of(*events: tuple[float, DownloadEvent]) -> list[str]:
    """The lines in a pipe, from events that come after so many seconds each."""
    file, clock = io.StringIO(), Clock()
    with DownloadConsole(file, clock=clock) as console:
        for seconds, event in events:
            clock.now += seconds
            console(event)
    return file.getvalue().splitlines()


def test_nothing_to_download_says_nothing() -> None:
    assert log_of((0, Planned(sizes_bytes={}, needed_bytes=0, free_bytes=1))) == []


def test_a_log_has_the_plan_a_line_now_and_then_and_the_ends() -> None:
    lines = log_of(
        (0, PLAN),
        (0, at(0)),
        *[(1, at(mib)) for mib in range(2, 50, 2)],
        (0, Noticed(name="a.zip", text="the connection\x1b[2J broke")),
        (1, at(100)),
        (1, at(100)),
        (0, at(0, stage="verify")),
        (0, at(100, stage="verify")),
    )
    assert lines == [
        "to download: a.zip, b.zip (400 MiB)",
        "disk: up to 800 MiB of 931.3 GiB free",
        "a.zip: downloading 20%  20 MiB of 100 MiB  2.0 MiB/s  ETA 0:40",
        "a.zip: downloading 40%  40 MiB of 100 MiB  2.0 MiB/s  ETA 0:30",
        "a.zip: the connection [2J broke",
        "✓ a.zip downloaded: 100 MiB, 0:25 at 4.0 MiB/s",
        "✓ a.zip verified: 100 MiB",
    ]


def test_what_an_earlier_run_received_is_not_counted_as_speed() -> None:
    lines = log_of((0, at(60)), (10, at(70)), (10, at(100)))
    assert lines == [
        "a.zip: downloading 70%  70 MiB of 100 MiB  1.0 MiB/s  ETA 0:30",
        "✓ a.zip downloaded: 100 MiB, 60 MiB of it earlier, 0:20 at 2.0 MiB/s",
    ]


def test_a_new_start_is_measured_anew() -> None:
    lines = log_of((0, at(50)), (10, at(60)), (1, at(0)), (10, at(20)))
    assert lines[-1] == "a.zip: downloading 20%  20 MiB of 100 MiB  2.0 MiB/s  ETA 0:40"


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_a_terminal_has_two_lines_that_fit(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    file, clock = Terminal(), Clock()
    with DownloadConsole(file, clock=clock) as console:
        console(PLAN)
        for mib in range(0, 60, 5):
            clock.now += 1
            console(at(mib))
    frame = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue().split("disk:")[1])
    shown = [line for line in frame.replace("\r", "\n").split("\n") if "downloading" in line or "all" in line]
    assert all(len(line) <= columns for line in shown)
    assert any("55%" in line for line in shown) or columns == 40
    if columns >= 120:
        assert "━━━" in shown[-1]
        assert "55 MiB of 100 MiB  5.0 MiB/s  ETA 0:09" in frame
        assert "55 MiB of 400 MiB  ETA 1:09" in frame
    assert "\x1b[?25h" in file.getvalue()[-40:]  # the cursor is given back
