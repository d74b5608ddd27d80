"""How long a GPU works on each section of a step, without waiting for it."""

from __future__ import annotations

from collections import deque

import torch

__all__ = ["DeviceClock"]

_MOST_MARKS = 2**14
"""Marks that wait to be read: a run that logs seldom loses the oldest."""


class DeviceClock:
    """Puts an event into the current stream wherever a section begins, and adds up the time between events when asked.

    A mark takes some microseconds of the host and none of the device. Reading gives the sections whose end the device
    has passed; it waits for nothing.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda", device
        self._device = device
        self._marks: deque[tuple[str, torch.cuda.Event]] = deque()
        self._unused: list[torch.cuda.Event] = []
        self._seconds: dict[str, float] = {}

    def mark(self, section: str) -> None:
        """Begin a section: what the stream is given from here on belongs to it."""
        event = self._unused.pop() if self._unused else torch.cuda.Event(enable_timing=True)
        try:
            event.record(torch.cuda.current_stream(self._device))
        except RuntimeError:
            # The device has failed. The work on it says so; what ends the run in order goes through here too.
            return
        self._marks.append((str(section), event))
        if len(self._marks) > _MOST_MARKS:
            self._unused.append(self._marks.popleft()[1])

    def read(self) -> dict[str, float]:
        """Return the device's seconds by section since the last reading."""
        while len(self._marks) > 1 and self._marks[1][1].query():
            section, event = self._marks.popleft()
            milliseconds = event.elapsed_time(self._marks[0][1])
            self._seconds[section] = self._seconds.get(section, 0.0) + milliseconds / 1e3
            self._unused.append(event)
        seconds, self._seconds = self._seconds, {}
        return seconds
