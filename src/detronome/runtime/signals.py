"""Turning signals into a request to stop after the current step: Ctrl-C, SIGTERM, and SIGUSR1, which SLURM sends
before the time is over."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

__all__ = ["STOP_SIGNALS", "Interrupted", "StopRequest", "ended_in_order", "exit_code"]

STOP_SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Windows has no SIGUSR1."""

_SAME_REQUEST_S = 1.0
"""Launchers pass on the signal that the terminal has sent to the whole process group: what follows within so many
seconds is no second request."""


class Interrupted(KeyboardInterrupt):
    """A signal came that is not to wait for the end of a step, or a second one: end at once.

    Args:
        name: of the signal, e.g. `SIGTERM`.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"interrupted by {name}")
        self.exit_code = exit_code(name)


class StopRequest:
    """While active, the first signal asks for a stop, a second one raises `Interrupted`, a third ends the process.

    Outside the main thread signals cannot be caught, and the request simply never comes.

    Attributes:
        signal: name of the signal that asked, e.g. `SIGTERM`; empty until then.
    """

    def __init__(self) -> None:
        self.signal = ""
        self._asked_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self.signal)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self.is_set:
            self.signal, self._asked_at = name, time.monotonic()
        elif time.monotonic() - self._asked_at >= _SAME_REQUEST_S:
            # What cleans up on the way out may hang: a third signal must get through.
            for stop in self._previous:
                signal.signal(stop, signal.SIG_DFL)
            raise Interrupted(name)


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Let SIGTERM raise `Interrupted`, so that what is half done is cleaned up, as after Ctrl-C; a second one ends the
    process."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Interrupted(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(name: str) -> int:
    """Return what a process ends with that a signal has stopped, as shells count: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + signal.Signals[name]
