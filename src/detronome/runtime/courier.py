"""What ranks tell each other about themselves while they hang, through a store that may hang too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import msgspec

from detronome.runtime.hang import HangReport, Heard, RankRecord

__all__ = ["AwakeClock", "Courier", "Store"]


class Store(Protocol):
    """What the watchdog needs of a `torch.distributed.Store`. A call may block for ever, or raise RuntimeError."""

    def set(self, key: str, value: str, /) -> None: ...
    def check(self, keys: list[str], /) -> bool: ...
    def multi_get(self, keys: list[str], /) -> list[bytes]: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...
    def add(self, key: str, amount: int, /) -> int: ...


class AwakeClock:
    """Seconds in which this process could run: a suspended machine, a debugger or Ctrl-Z is no hang."""

    def __init__(self, longest_gap_s: float) -> None:
        self._longest_gap_s = longest_gap_s
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._asleep_s = 0.0

    def __call__(self) -> float:
        with self._lock:
            now = time.monotonic()
            if now - self._last > self._longest_gap_s:  # several threads ask several times as often
                self._asleep_s += now - self._last
            self._last = now
            return now - self._asleep_s


class Courier(threading.Thread):
    """Takes this rank's record to the store and brings the others', in a thread that the store may block.

    Of several alarms raised at once the store keeps one, so that all ranks tell the same.
    """

    def __init__(
        self,
        store: Store,
        *,
        size: int,
        record: Callable[[], RankRecord],
        clock: AwakeClock,
        interval_s: float,
        on_alarm: Callable[[], None],
    ) -> None:
        super().__init__(name="detronome-courier", daemon=True)
        self.heard: dict[int, Heard] = {}
        """Replaced whole at each exchange."""
        self.alarm: HangReport | None = None
        self.num_told = 0
        """Ranks that have written their part of the report."""
        self.answered_at = clock()
        """When the store answered last."""
        self._store = store
        self._size = size
        self._record = record
        self._clock = clock
        self._interval_s = interval_s
        self._on_alarm = on_alarm
        self._raw: dict[int, bytes] = {}
        self._raised: HangReport | None = None
        self._has_told = self._is_counted = False
        self._num_alarms = 0
        self._is_leaving = False
        self._wake = threading.Event()
        self._publish()

    def raise_alarm(self, report: HangReport) -> None:
        self._raised = report
        self._wake.set()

    def mark_told(self) -> None:
        """Let the others know that this rank has written its part."""
        self._has_told = True

    def clear_alarm(self) -> None:
        """Forget an alarm that was told, and listen for the next."""
        self._num_alarms += 1
        self._has_told = self._is_counted = False
        self._raised = self.alarm = None

    def leave(self) -> None:
        """Tell the others that this rank has ended."""
        self._is_leaving = True
        self._wake.set()
        self.join(timeout=self._interval_s)

    def run(self) -> None:
        try:
            while not self._is_leaving:
                self._exchange()
                self._wake.wait(0.05 if self.alarm else self._interval_s)
                self._wake.clear()
            self._publish()
        except RuntimeError:
            pass  # who kept the store is gone; the watchdog sees that nothing arrives any more

    def _publish(self) -> None:
        record = replace(self._record(), has_ended=self._is_leaving)
        self._store.set(f"rank{record.rank}", msgspec.json.encode(record).decode())

    def _exchange(self) -> None:
        self._publish()
        ranks = [r for r in range(self._size) if r in self._raw or self._store.check([f"rank{r}"])]
        raw = dict(zip(ranks, self._store.multi_get([f"rank{r}" for r in ranks]), strict=True))
        now = self._clock()
        self.heard = self.heard | {
            rank: Heard(msgspec.json.decode(data, type=RankRecord), now)
            for rank, data in raw.items()
            if data != self._raw.get(rank)
        }
        self._raw = raw
        self._exchange_alarms()
        self.answered_at = self._clock()

    def _exchange_alarms(self) -> None:
        key, told = f"alarm{self._num_alarms}", f"told{self._num_alarms}"
        if self.alarm is not None:
            self.num_told = self._store.add(told, int(self._has_told and not self._is_counted))
            self._is_counted = self._has_told
        elif self._raised is not None or self._store.check([key]):
            mine = msgspec.json.encode(self._raised).decode()
            kept = self._store.compare_set(key, "", mine) if self._raised else self._store.multi_get([key])[0]
            self.alarm = msgspec.json.decode(kept, type=HangReport)
            self._on_alarm()
