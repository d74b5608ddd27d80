"""What a live view remembers of a log: everything that is shown, and little of what is not."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from detronome.report.curve import NOISY_POINTS, smooth, thin
from detronome.report.happenings import Happening, happenings

__all__ = ["RunHistory", "Series", "number"]

Record = Mapping[str, Any]
Series = Mapping[str, list[float]]
"""`x` (epochs) and `y`, and `smooth_x`, `smooth_y` where the points are many."""

_RECENT = 240
"""Step records kept whole."""
_AVERAGED = 10
"""Step records that times and sections are averaged over."""
_LEAST_SILENCE_S = 120.0
_START_S = 900.0
"""Loading, building and running the worst case may take so long without a word."""
_USUAL_GAPS = 4
"""A run is silent after so many times its longest recent gap between records, or its longest evaluation."""
_POINTS = 240
_CURVES = ("loss", "images_per_s", "grad_norm", "memory_bytes", "data_wait_share", "learning_rate")


class RunHistory:
    """Takes in records one by one, and answers what a view asks."""

    def __init__(self) -> None:
        self.start: Record = {}
        self.end: Record | None = None
        self.recent: deque[Record] = deque(maxlen=_RECENT)
        """The last step records."""
        self.eventful: list[Record] = []
        self._evaluations: dict[int, Record] = {}
        self._curves: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in _CURVES}
        self._last: Record = {}
        self._gaps_s: deque[float] = deque(maxlen=40)
        self._eval_s = 0.0
        self._longest_eval_s: float | None = None
        self._has_stepped = False

    def add(self, record: Record) -> None:
        """Take in the next record of the log."""
        kind = record["kind"]
        self._note_time(record)
        match kind:
            case "start":
                self.start, self.end, self._eval_s, self._has_stepped = record, None, 0.0, False
            case "step":
                self._has_stepped = True
                self.recent.append(record)
                self._draw(record)
            case "eval":
                self._evaluations[record["step"]] = record
                eval_s = number(record.get("eval_s")) or 0.0
                self._eval_s += eval_s
                self._longest_eval_s = max(self._longest_eval_s or 0.0, eval_s)
            case "end":
                self.end = record
            case _:
                self.eventful.append(record)

    @property
    def step(self) -> int:
        return max((r["step"] for r in (self._last, self.latest, self.start) if r), default=0)

    @property
    def latest(self) -> Record:
        """The last step record, or an empty one."""
        return self.recent[-1] if self.recent else {}

    @property
    def evaluations(self) -> list[Record]:
        """One record a step, oldest first."""
        return list(self._evaluations.values())

    @property
    def happenings(self) -> list[Happening]:
        return happenings(self.eventful)

    @property
    def last_heard(self) -> float | None:
        """When the last record was written, in seconds since 1970."""
        return _seconds(self._last)

    @property
    def patience_s(self) -> float:
        """How long a run as this one may be without a word."""
        if not self._has_stepped:
            return _START_S
        return max(_LEAST_SILENCE_S, _USUAL_GAPS * max(self._evaluation_s, *self._gaps_s, 0.0))

    @property
    def _evaluation_s(self) -> float:
        """The longest evaluation, of which nothing is told while it lasts; before the first one, as the speed of
        training has it."""
        if self._longest_eval_s is not None:
            return self._longest_eval_s
        images, images_per_s = number(self.start.get("num_val_images")), number(self.latest.get("images_per_s"))
        return images / images_per_s if images and images_per_s else 0.0

    @property
    def step_s(self) -> float | None:
        """Median seconds of a recent step."""
        values = [s for record in list(self.recent)[-_AVERAGED:] if (s := number(record.get("step_s")))]
        return statistics.median(values) if values else None

    @property
    def eta_s(self) -> float | None:
        """Seconds left, evaluations at their present share of the time included."""
        total, step_s = number(self.start.get("total_steps")), self.step_s
        if total is None or step_s is None or self.end is not None:
            return None
        left_s = max(total - self.step, 0.0) * step_s
        spent_s = (self.step - self.start["step"]) * step_s
        return left_s * (1 + self._eval_s / spent_s) if spent_s > 0 else left_s

    def mean(self, group: str) -> dict[str, float]:
        """Return the means of a group of numbers, e.g. `sections_s`, over the last step records."""
        groups = [record.get(group) for record in list(self.recent)[-_AVERAGED:]]
        known = [numbers for numbers in groups if isinstance(numbers, Mapping)]
        names = dict.fromkeys(name for numbers in known for name in numbers)
        columns = {name: [v for n in known if (v := number(n.get(name))) is not None] for name in names}
        # A section that a window never entered took no time in it; a sensor that was silent has said nothing.
        counts = {name: len(known) if group == "sections_s" else len(values) for name, values in columns.items()}
        return {name: sum(values) / counts[name] for name, values in columns.items() if values}

    def series(self) -> dict[str, Series]:
        """Return the curves by name, thinned; those without a point are left out."""
        drawn = {name: _series(x, y, is_noisy=True) for name, (x, y) in self._curves.items() if x}
        for name in ("AP", "AP50", "AP75"):
            points = [
                (epoch, ap)
                for record in self._evaluations.values()
                if (epoch := number(record.get("epoch"))) is not None
                and (ap := number((record.get("metrics") or {}).get(name))) is not None
            ]
            if points:
                drawn[name] = _series(*map(list, zip(*points, strict=True)), is_noisy=False)
        return drawn

    def _draw(self, record: Record) -> None:
        epoch = number(record.get("epoch"))
        if epoch is None:
            return
        rates = [rate for value in (record.get("learning_rates") or {}).values() if (rate := number(value)) is not None]
        wait_s, step_s = number(record.get("data_wait_s")), number(record.get("step_s"))
        values = {name: number(record.get(name)) for name in _CURVES[:4]}
        values["data_wait_share"] = wait_s / step_s if wait_s is not None and step_s else None
        values["learning_rate"] = max(rates, default=None)
        for name, value in values.items():
            if value is not None:
                x, y = self._curves[name]
                x.append(epoch)
                y.append(value)

    def _note_time(self, record: Record) -> None:
        now, before = _seconds(record), _seconds(self._last)
        if now is not None and before is not None and record["kind"] != "start":
            self._gaps_s.append(now - before)
        self._last = record


def number(value: object) -> float | None:
    """Return a finite number as it is, and anything else as None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def _series(x: Sequence[float], y: Sequence[float], *, is_noisy: bool) -> Series:
    x_all, y_all = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    few_x, few_y = thin(x_all, y_all, _POINTS)
    series = {"x": few_x.tolist(), "y": few_y.tolist()}
    if is_noisy and len(x) >= NOISY_POINTS:
        smooth_x, smooth_y = thin(*smooth(x_all, y_all), _POINTS)
        series |= {"smooth_x": smooth_x.tolist(), "smooth_y": smooth_y.tolist()}
    return series


def _seconds(record: Record) -> float | None:
    try:
        return datetime.fromisoformat(str(record.get("time"))).timestamp()
    except ValueError:
        return None
