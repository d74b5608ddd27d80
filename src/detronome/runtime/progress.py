"""What a run is doing at this moment, and where its time went: the sections of a run and its goodput.

Seconds are the host's. A GPU works behind the host, so its time shows where the host waits for it: in the matcher's
transfer (`matcher`), and where metrics are read (`log`). A `marker` can measure the device's own time by section.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple

__all__ = ["Moment", "Progress", "Section", "explain", "goodput"]


class Section(StrEnum):
    """What a run can be doing. Within a step, sections follow one another in this order, and those from `copy` to
    `backward` again for each micro-batch."""

    START = "start"
    """Everything before the first step: loading, building, the worst case."""
    RECOVERY = "recovery"
    """Diagnosis of a bad step, and going back to a checkpoint."""
    DATA_WAIT = "data_wait"
    COPY = "copy"
    """Of a batch to the device."""
    FORWARD = "forward"
    MATCHER = "matcher"
    """Costs, their transfer to the host, and the assignment."""
    LOSS = "loss"
    BACKWARD = "backward"
    AGREE = "agree"
    """Waiting for other ranks on the host."""
    REDUCE = "reduce"
    """Adding up gradients over the ranks."""
    UPDATE = "update"
    LOG = "log"
    EVALUATION = "evaluation"
    EVALUATION_MERGE = "evaluation_merge"
    """Waiting for other ranks' detections; computing the metrics is `evaluation`."""
    CHECKPOINT = "checkpoint"

    SKIPPED = "skipped"
    """Booked only: steps that were not applied."""
    REDONE = "redone"
    """Booked only: steps that a rollback undid."""
    STOPPED = "stopped"
    """Booked only: from the checkpoint that a run was resumed from to its resume, work lost and nobody at work."""


_STEPS_REMEMBERED = 2**14
"""More than are ever undone, in some megabytes."""
_USEFUL = (
    Section.COPY,
    Section.FORWARD,
    Section.MATCHER,
    Section.LOSS,
    Section.BACKWARD,
    Section.REDUCE,
    Section.UPDATE,
)

_WORDS: Mapping[str, str] = {
    Section.DATA_WAIT: "data wait",
    Section.AGREE: "waiting for other ranks",
    Section.LOG: "logging",
    Section.EVALUATION_MERGE: "merging evaluations",
    Section.CHECKPOINT: "checkpoints",
    Section.SKIPPED: "skipped steps",
    Section.REDONE: "steps undone by a rollback",
    Section.STOPPED: "stopped or lost",
}


class Moment(NamedTuple):
    """What a run is doing, and since when."""

    section: Section
    step: int
    """-1 before the first step."""
    images: Sequence[int]
    """Ids of the images that the section works on, where it works on any."""
    since: float
    """Seconds on `time.perf_counter`."""


class Progress:
    """Knows which section of a run is under way, and adds up wall time: every moment belongs to exactly one section.

    One thread enters sections, about a microsecond each; any thread may read `now`.

    Args:
        previous: seconds by section of the run that this one continues.
        saved_at: when they were taken, in seconds since 1970; the time since is booked as `stopped`. 0: a new run.
        marker: is told of every section that begins, e.g. `DeviceClock.mark`.
    """

    def __init__(
        self,
        previous: Mapping[str, float] | None = None,
        *,
        saved_at: float = 0.0,
        marker: Callable[[Section], None] | None = None,
    ) -> None:
        self._marker = marker
        self._seconds: dict[str, float] = dict(previous or {})
        self._useful_at: dict[int, Sequence[float]] = {}
        """Seconds of the useful sections when a step began."""
        if saved_at > 0:
            self._book(Section.STOPPED, max(0.0, time.time() - saved_at))  # a clock may have been set back
        self.now = Moment(Section.START, -1, (), time.perf_counter())
        """Replaced whole, never changed: a reader in another thread needs no lock."""

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time so far by section; the sum is the wall time since this object was made, and what it took over."""
        seconds = dict(self._seconds)
        section = self.now.section
        seconds[section] = seconds.get(section, 0.0) + time.perf_counter() - self.now.since
        return seconds

    def enter(self, section: Section, *, step: int | None = None, images: Sequence[int] = ()) -> None:
        """End the section under way and begin the next; the same one again begins anew, e.g. with each batch.

        Args:
            section: what begins now.
            step: None keeps the present one.
            images: ids of the images that the section works on.
        """
        before, now = self.now, time.perf_counter()
        self._book(before.section, now - before.since)
        self.now = Moment(section, before.step if step is None else step, images, now)
        if self._marker is not None:
            self._marker(section)

    @contextmanager
    def within(self, section: Section, *, step: int | None = None, images: Sequence[int] = ()) -> Iterator[None]:
        """Spend a block of code in a section, and go back to the one before, also when the block raises."""
        before = self.now
        self.enter(section, step=step, images=images)
        try:
            yield
        finally:
            self.enter(before.section, step=before.step, images=before.images)

    def begin_step(self, step: int) -> None:
        """Note where the useful time of a step begins; forgotten after many steps."""
        self._useful_at[step] = self._useful_now()
        if len(self._useful_at) > _STEPS_REMEMBERED:
            del self._useful_at[next(iter(self._useful_at))]

    def void_step(self, step: int) -> None:
        """Book the useful time of a step as `skipped`; the sum stays what it was. No later step but one has begun."""
        if step not in self._useful_at:
            return
        began = self._useful_at[step]
        following = min((later for later in self._useful_at if later > step), default=None)
        self._void(began, self._useful_now() if following is None else self._useful_at[following], Section.SKIPPED)
        if following is not None:
            self._useful_at[following] = began

    def void_since(self, step: int) -> None:
        """Book the useful time of a step and of all after it as `redone`; the sum stays what it was."""
        undone = [later for later in self._useful_at if later >= step]
        if undone:
            self._void(self._useful_at[min(undone)], self._useful_now(), Section.REDONE)
        for later in undone:
            del self._useful_at[later]

    def _useful_now(self) -> Sequence[float]:
        seconds = self.seconds
        return tuple(seconds.get(section, 0.0) for section in _USEFUL)

    def _void(self, began: Sequence[float], ended: Sequence[float], as_: Section) -> None:
        for section, start_s, end_s in zip(_USEFUL, began, ended, strict=True):
            if end_s > start_s:
                self._book(section, start_s - end_s)
                self._book(as_, end_s - start_s)

    def _book(self, section: str, seconds: float) -> None:
        self._seconds[section] = self._seconds.get(section, 0.0) + seconds


def goodput(seconds: Mapping[str, float]) -> float:
    """Return the part of the wall time, 0-1, that was spent on steps that count; 0 where no time has passed.

    Useful are forward and backward passes, the sum of gradients over ranks, and updates. Waiting for data or for a
    slower rank is not, nor is what a skipped or undone step took.
    """
    total = sum(seconds.values())
    return _useful(seconds) / total if total > 0 else 0.0


def explain(seconds: Mapping[str, float], *, top: int = 4) -> str:
    """Return the goodput and what ate the rest, largest first, e.g. `goodput 91.3 %; the rest: evaluation 8.7 %`."""
    total = sum(seconds.values())
    if total <= 0:
        return "goodput: no time has passed"
    parts = {name: s / total for name, s in seconds.items() if name not in _USEFUL and s / total >= 0.0005}
    largest = sorted(parts, key=lambda name: -parts[name])[:top]
    shown = [f"{_WORDS.get(name, name)} {parts[name]:.1%}" for name in largest]
    other = 1 - goodput(seconds) - sum(parts[name] for name in largest)
    if other >= 0.0005:
        shown.append(f"other {other:.1%}")
    text = f"goodput {goodput(seconds):.1%}" + (f"; the rest: {', '.join(shown)}" if shown else "")
    return text.replace("%", " %")


def _useful(seconds: Mapping[str, float]) -> float:
    return sum(seconds.get(section, 0.0) for section in _USEFUL)
