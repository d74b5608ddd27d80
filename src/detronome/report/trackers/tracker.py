"""What a tracker does, and the thread that keeps it from holding up the training."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from detronome.engine.events import Event, RolledBack, RunEnded, RunStarted
from detronome.report.happenings import Happening, happening
from detronome.report.run_folder import Picture, read_pictures
from detronome.report.trackers.scalars import scalars

__all__ = ["Results", "Tracker", "Trackers"]

_logger = logging.getLogger(__name__)

_MOST_WAITING = 20_000
"""Events kept for a tracker that cannot take them; the oldest go first."""

_PATIENCE_AWAY_S = 5.0
"""At the end, with a tracker that could not be opened so far."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a run that has ended leaves to look at."""

    report: Path | None = None
    pictures: Sequence[Picture] = ()


class Tracker(Protocol):
    """Writes a run to one place. Any method may raise and may take long: a thread calls them, one after the other."""

    label: str
    """What people call it."""

    def open(self, start: RunStarted) -> None:
        """Begin, or, at a step above 0, go on with what the run has written so far; called again after it failed."""

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Write numbers, all of them finite."""

    def tell(self, happened: Happening) -> None:
        """Write what happened besides training."""

    def go_back(self, step: int) -> None:
        """Go on from an earlier step: what was written after it is undone, where the tracker can do that."""

    def close(self, end: RunEnded | None, results: Results) -> None:
        """Write what is pending and end; without `end` the run failed."""


class Trackers:
    """An observer that tells several trackers, each in a thread of its own, and ends them on leaving the context.

    A tracker that fails never stops the run, nor does a slow one hold it up: events wait for it. One that cannot be
    opened is tried again. A failure is told once.

    Args:
        trackers: to be told.
        run_dir: where the results of the run are found when it has ended.
        retry_s: between two attempts to open a tracker.
        patience_s: how long to wait at the end for what is still to be written.
    """

    def __init__(
        self, trackers: Sequence[Tracker], run_dir: Path, *, retry_s: float = 60.0, patience_s: float = 60.0
    ) -> None:
        self._feeds = [_Feed(tracker, run_dir, retry_s=retry_s) for tracker in trackers]
        self._patience_s = patience_s

    def __call__(self, event: Event) -> None:
        for feed in self._feeds:
            feed.put(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + self._patience_s
        for feed in self._feeds:
            feed.finish()
        for feed in self._feeds:
            feed.wait(max(0.0, deadline - time.monotonic()))


class _Feed:
    """Hands events to one tracker, in order, in a thread that begins with the first event."""

    def __init__(self, tracker: Tracker, run_dir: Path, *, retry_s: float) -> None:
        self._tracker = tracker
        self._run_dir = run_dir
        self._retry_s = retry_s
        self._waiting: deque[Event] = deque(maxlen=_MOST_WAITING)
        self._changed = threading.Condition()
        self._is_finishing = False
        self._is_open = False
        self._has_failed = False
        self._end: RunEnded | None = None
        self._thread: threading.Thread | None = None

    def put(self, event: Event) -> None:
        with self._changed:
            self._waiting.append(event)
            self._changed.notify()
        if self._thread is None:
            # A daemon: a tracker that hangs must not keep the process from ending.
            self._thread = threading.Thread(target=self._work, name=f"{self._tracker.label} tracker", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        with self._changed:
            self._is_finishing = True
            self._changed.notify()

    def wait(self, patience_s: float) -> None:
        if self._thread is None:
            return
        is_away = self._has_failed and not self._is_open
        self._thread.join(min(patience_s, _PATIENCE_AWAY_S) if is_away else patience_s)
        if self._thread.is_alive():
            _logger.warning("%s has not taken the whole run in time; the run log has it", self._tracker.label)

    def _work(self) -> None:
        while (event := self._next()) is not None:
            if isinstance(event, RunStarted) and not self._open(event):
                return
            if isinstance(event, RunEnded):
                self._end = event
            if self._is_open:
                self._try(partial(self._pass_on, event))
        if self._is_open:
            self._try(self._close)

    def _next(self) -> Event | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_finishing)
            return self._waiting.popleft() if self._waiting else None

    def _open(self, start: RunStarted) -> bool:
        """Open the tracker, and return False if the run has ended before that."""
        while not self._try(partial(self._tracker.open, start)):
            with self._changed:
                if self._changed.wait_for(lambda: self._is_finishing, self._retry_s):
                    return False
        self._is_open = True
        return True

    def _pass_on(self, event: Event) -> None:
        if isinstance(event, RolledBack):
            self._tracker.go_back(event.step)
        if numbers := scalars(event):
            self._tracker.write(numbers, event.step)
        if happened := happening(event.to_record()):
            self._tracker.tell(happened)

    def _close(self) -> None:
        has_ended = self._end is not None and self._end.reason != "interrupted"
        self._tracker.close(self._end, _results(self._run_dir) if has_ended else Results())

    def _try(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:  # other people's packages and servers: whatever it is, the run goes on
            if not self._has_failed:
                reason = " ".join(str(error).split()) or type(error).__name__
                _logger.warning("%s cannot follow the run, training goes on: %s", self._tracker.label, reason)
            self._has_failed = True
            return False
        self._has_failed = False
        return True


def _results(run_dir: Path) -> Results:
    page = run_dir / "report.html"
    return Results(report=page if page.is_file() else None, pictures=read_pictures(run_dir / "pictures"))
