"""A download on the console: two live lines for the file at hand and the whole, and a line for each stage that is done.

In a pipe or a log the same comes as plain lines now and then, without a control character. All goes to stderr.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from detronome.data.download.events import DownloadEvent, Noticed, Planned, Progressed
from detronome.report.formats import clean_text, format_bytes, format_duration
from detronome.report.terminal import is_live, speaks_unicode

__all__ = ["DownloadConsole"]

_RATE_WINDOW_S = 10.0
_LIVE_INTERVAL_S = 0.1
_DONE = {"download": "downloaded", "verify": "verified", "unpack": "unpacked"}
_MAX_BAR_CELLS = 28
_MIN_BAR_CELLS = 8
_OTHER_CHARS = 64
"""What stands beside the label and the bar, at most."""
_DOING = {"download": "downloading", "verify": "verifying", "unpack": "unpacking"}
_DOING_CHARS = max(map(len, _DOING.values()))


class DownloadConsole:
    """A listener that shows a download on stderr, as a context manager that gives the terminal back.

    Args:
        file: where to write; None is stderr.
        plain_interval_s: seconds between plain lines where the output is no terminal.
        clock: seconds from any origin; given in tests.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        plain_interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file if file is not None else sys.stderr
        self._clock = clock
        self._console = Console(file=self._file, highlight=False, markup=False, emoji=False)
        self._is_live = is_live(self._console, self._file)
        self._interval_s = _LIVE_INTERVAL_S if self._is_live else plain_interval_s
        self._is_unicode = speaks_unicode(self._file)
        self._live: Live | None = None
        self._sizes: dict[str, int] = {}
        self._downloaded: dict[str, int] = {}
        self._stage: _StageWatch | None = None
        self._shown_at = -math.inf

    def __enter__(self) -> DownloadConsole:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, event: DownloadEvent) -> None:
        if isinstance(event, Planned):
            self._on_plan(event)
        elif isinstance(event, Noticed):
            self._write(Text(f"{clean_text(event.name)}: {clean_text(event.text)}", style="yellow"))
        else:
            self._on_progress(event)

    def close(self) -> None:
        """Take the live lines away; more events may follow."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _on_plan(self, event: Planned) -> None:
        self._sizes = event.sizes_bytes
        if event.sizes_bytes:
            total = format_bytes(sum(event.sizes_bytes.values()))
            names = ", ".join(clean_text(name) for name in event.sizes_bytes)
            self._write(Text(f"to download: {names} ({total})"))
        if event.needed_bytes:
            room = f"up to {format_bytes(event.needed_bytes)} of {format_bytes(event.free_bytes)} free"
            self._write(Text(f"disk: {room}", style="dim"))

    def _on_progress(self, event: Progressed) -> None:
        now = self._clock()
        if self._stage is None or (self._stage.name, self._stage.stage) != (event.name, event.stage):
            self._stage = _StageWatch(event, now)
            self._shown_at = -math.inf if self._is_live else now
        if self._stage.is_told:
            return
        self._stage.add(event, now)
        if event.stage == "download":
            self._downloaded[event.name] = event.done_bytes
        if event.done_bytes >= event.total_bytes:
            self._stage.is_told = True
            self._write(self._done_line(self._stage, now))
        elif now - self._shown_at >= self._interval_s:
            self._shown_at = now
            self._show(self._stage)

    def _show(self, stage: _StageWatch) -> None:
        if not self._is_live:
            self._write(self._plain_line(stage))
            return
        if self._live is None:
            # stdout is left alone: results may be piped from it while stderr is a terminal.
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=True
            )
            self._live.start()
        self._live.update(Group(*self._live_lines(stage)), refresh=True)

    def _live_lines(self, stage: _StageWatch) -> list[Text]:
        """Return the line of the file at hand and, where there are several, one of all downloads below it."""
        name, whole = clean_text(stage.name), "all downloads"
        label = max(len(name), len(whole) if len(self._sizes) > 1 else 0)
        doing = f"{_DOING[stage.stage]:<{_DOING_CHARS}}"
        cells = min(self._console.width - label - _OTHER_CHARS, _MAX_BAR_CELLS)
        line = Text(no_wrap=True, overflow="ellipsis").append(f"{name:<{label}}  ", style="bold").append(f"{doing}  ")
        line.append_text(self._bar(stage.done_bytes, stage.total_bytes, cells))
        if cells >= 0:  # a narrow terminal rather shows when it will end
            line.append(f"  {_of(stage.done_bytes, stage.total_bytes)}")
        line.append(_speed(stage.bytes_per_s, stage.eta_s), style="cyan")
        if len(self._sizes) < 2:
            return [line]
        done, total = sum(self._downloaded.values()), sum(self._sizes.values())
        total_line = Text(no_wrap=True, overflow="ellipsis").append(
            f"{whole:<{label}}  {'':<{_DOING_CHARS}}  ", style="dim"
        )
        total_line.append_text(self._bar(done, total, cells)).append(f"  {_of(done, total)}")
        if stage.stage == "download" and stage.bytes_per_s:
            total_line.append(f"  ETA {format_duration((total - done) / stage.bytes_per_s)}", style="cyan")
        return [line, total_line]

    def _bar(self, done: int, total: int, cells: int) -> Text:
        """Return a bar of so many cells, left out where it would be too short to tell anything, and the percentage."""
        share = min(done / total, 1.0) if total else 1.0
        text = Text()
        if cells >= _MIN_BAR_CELLS:
            filled = int(share * cells)
            full, empty = ("━", "━") if self._is_unicode else ("#", "-")
            if self._console.no_color and self._is_unicode:  # colour alone would tell the parts apart
                empty = " "
            text.append(full * filled, style="green").append(empty * (cells - filled), style="bright_black")
        return text.append(f" {math.floor(100 * share):3d}%", style="green")

    def _plain_line(self, stage: _StageWatch) -> Text:
        share = math.floor(100 * stage.done_bytes / stage.total_bytes)
        return Text(
            f"{clean_text(stage.name)}: {_DOING[stage.stage]} {share}%  {_of(stage.done_bytes, stage.total_bytes)}"
            f"{_speed(stage.bytes_per_s, stage.eta_s)}"
        )

    def _done_line(self, stage: _StageWatch, now: float) -> Text:
        elapsed_s = now - stage.started_at
        parts = [format_bytes(stage.total_bytes)]
        if stage.resumed_bytes:
            parts.append(f"{format_bytes(stage.resumed_bytes)} of it earlier")
        if elapsed_s >= 1:
            mean = (stage.done_bytes - stage.resumed_bytes) / elapsed_s
            parts.append(f"{format_duration(elapsed_s)} at {format_bytes(mean)}/s")
        text = Text("✓ " if self._is_unicode else "done: ", style="green")
        return text.append(f"{clean_text(stage.name)} {_DONE[stage.stage]}: {', '.join(parts)}", style="default")

    def _write(self, line: Text) -> None:
        """Write a line, above the live lines where there are any."""
        self._console.print(line, soft_wrap=True)


class _StageWatch:
    """How fast one stage of one file goes."""

    def __init__(self, event: Progressed, now: float) -> None:
        self.name = event.name
        self.stage = event.stage
        self.total_bytes = event.total_bytes
        self.resumed_bytes = event.done_bytes if event.stage == "download" else 0
        self.done_bytes = self.resumed_bytes
        self.started_at = now
        self.is_told = False
        self._samples = deque([(now, self.done_bytes)])

    def add(self, event: Progressed, now: float) -> None:
        """Note how far it is; going back, after a new start, begins the measurement anew."""
        if event.done_bytes < self.done_bytes:
            self._samples.clear()
            self.resumed_bytes = min(self.resumed_bytes, event.done_bytes)
        self.done_bytes = event.done_bytes
        self._samples.append((now, event.done_bytes))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW_S:
            self._samples.popleft()

    @property
    def bytes_per_s(self) -> float | None:
        """Over the last ten seconds; None before there is anything to say."""
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - start) if end - start > 0.2 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds until the stage is done."""
        rate = self.bytes_per_s
        return (self.total_bytes - self.done_bytes) / rate if rate else None


def _of(done: int, total: int) -> str:
    return f"{format_bytes(done)} of {format_bytes(total)}"


def _speed(bytes_per_s: float | None, eta_s: float | None) -> str:
    """Return rate and remaining time, or nothing as long as they are unknown."""
    return f"  {format_bytes(bytes_per_s)}/s  ETA {format_duration(eta_s)}" if bytes_per_s else ""
