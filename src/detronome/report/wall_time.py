"""Where the wall time of a run went: the parts of a stacked bar, which add up to the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from detronome.runtime.progress import Section

__all__ = ["TimePart", "time_parts"]

_NAMES: Mapping[str, tuple[str, int, bool]] = {
    Section.FORWARD_BACKWARD: ("forward and backward", 2, False),
    Section.REDUCE: ("adding up gradients", 5, False),
    Section.UPDATE: ("updates", 0, False),
    Section.DATA_WAIT: ("waiting for data", 1, False),
    Section.AGREE: ("waiting for other ranks", 5, True),
    Section.EVALUATION: ("evaluation", 3, False),
    Section.EVALUATION_MERGE: ("merging evaluations", 3, True),
    Section.CHECKPOINT: ("checkpoints", 6, False),
    Section.LOG: ("logging", 6, True),
    Section.START: ("start", 7, False),
    Section.RECOVERY: ("diagnosis and rollbacks", 4, False),
    Section.SKIPPED: ("skipped steps", 4, True),
    Section.REDONE: ("steps undone by a rollback", 1, True),
    Section.STOPPED: ("stopped or lost", 7, True),
}
"""Name, series colour and stripes of each section, in the order of the bar: first what counts, then what does not."""

_SMALLEST = 0.001
"""Smaller parts of the whole are shown together."""
_TENTHS = 1000
"""Of a per cent, in the whole."""


@dataclass(frozen=True, kw_only=True)
class TimePart:
    """One part of the bar."""

    name: str
    seconds: float
    tenths: int
    """Of a per cent; those of all parts add up to 1000."""
    color: int
    """Number of the series colour."""
    is_striped: bool

    @property
    def percent(self) -> str:
        return f"{self.tenths / 10:.1f}%"


def time_parts(seconds: Mapping[str, float]) -> list[TimePart]:
    """Return the parts of a run's wall time in a fixed order, tiny ones as `other`; empty where no time is known.

    Args:
        seconds: by section, as the `end` record has it; sections of other versions keep their names.
    """
    known = {name: s for name, s in seconds.items() if math.isfinite(s) and s > 0}
    total = sum(known.values())
    order = [name for name in _NAMES if name in known] + [name for name in known if name not in _NAMES]
    large = [name for name in order if known[name] >= _SMALLEST * total]
    shown = [(*_NAMES.get(name, (name, 7, False)), known[name]) for name in large]
    if other := sum(known[name] for name in order if name not in large):
        shown.append(("other", 7, False, other))
    tenths = _rounded([s / total * _TENTHS for *_, s in shown])
    return [
        TimePart(name=name, seconds=s, tenths=share, color=color, is_striped=is_striped)
        for (name, color, is_striped, s), share in zip(shown, tenths, strict=True)
    ]


def _rounded(values: list[float]) -> list[int]:
    """Return whole numbers with the same sum: the largest fractions are rounded up."""
    floors = [math.floor(value) for value in values]
    missing = round(sum(values)) - sum(floors)
    up = sorted(range(len(values)), key=lambda i: floors[i] - values[i])[:missing]
    return [floor + (index in up) for index, floor in enumerate(floors)]
