"""How far a command has come, on stderr: a bar in a terminal, elsewhere a line now and then, no control characters."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from detronome.report.formats import format_bytes
from detronome.report.terminal import is_live

__all__ = ["show_progress"]

_LINE_EVERY_S = 10.0


@contextmanager
def show_progress(
    *, is_bytes: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows (what is done, how much of it, how much in all; 0 if that is not known).

    Args:
        is_bytes: whether bytes are counted.
        clock: seconds from any origin; given in tests.
    """
    console = Console(stderr=True, highlight=False)
    if not is_live(console, sys.stderr):
        yield _Lines(console, is_bytes=is_bytes, clock=clock)
        return
    counted: tuple[ProgressColumn, ...] = (
        (DownloadColumn(), TransferSpeedColumn()) if is_bytes else (MofNCompleteColumn(),)
    )
    columns = (TextColumn("{task.description}"), BarColumn(), *counted, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:

        def show(what: str, done: int, total: int) -> None:
            for task in bar.tasks:
                if task.description != what:
                    bar.remove_task(task.id)
            if not bar.tasks:
                bar.add_task(what, total=None)
            bar.update(bar.tasks[0].id, completed=done, total=total or None)

        yield show


class _Lines:
    """A line every ten seconds at most; work that is done sooner has none."""

    def __init__(self, console: Console, *, is_bytes: bool, clock: Callable[[], float]) -> None:
        self._console, self._is_bytes, self._clock = console, is_bytes, clock
        self._told_at = clock()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._clock() - self._told_at < _LINE_EVERY_S:
            return
        self._told_at = self._clock()
        share = f", {math.floor(100 * done / total)} %" if total else ""
        write = format_bytes if self._is_bytes else "{:,}".format
        in_all = f" of {write(total)}" if total else ""
        self._console.print(f"{what}: {write(done)}{in_all}{share}", markup=False, soft_wrap=True)
