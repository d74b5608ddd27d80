"""Counters and histograms in Prometheus' text format, version 0.0.4. All are changed on the event loop alone."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

__all__ = ["CONTENT_TYPE", "Counter", "Gauge", "Histogram", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

Labels = Mapping[str, str]


class Counter:
    """A number that only grows, one for each set of labels."""

    def __init__(self, name: str, what: str) -> None:
        self._name, self._what = name, what
        self._values: dict[tuple[tuple[str, str], ...], float] = {}

    def add(self, amount: float = 1, **labels: str) -> None:
        key = tuple(sorted(labels.items()))
        self._values[key] = self._values.get(key, 0) + amount

    def lines(self) -> list[str]:
        values = self._values or {(): 0}
        return [
            *_head(self._name, self._what, "counter"),
            *(f"{self._name}{_labels(dict(key))} {_number(value)}" for key, value in sorted(values.items())),
        ]


class Gauge:
    """A number that is looked up when somebody asks."""

    def __init__(self, name: str, what: str, value: Callable[[], float]) -> None:
        self._name, self._what, self._value = name, what, value

    def lines(self) -> list[str]:
        return [*_head(self._name, self._what, "gauge"), f"{self._name} {_number(self._value())}"]


class Histogram:
    """How many values were at most as large as each of some bounds, and their sum."""

    def __init__(self, name: str, what: str, bounds: Sequence[float] = _SECONDS) -> None:
        self._name, self._what = name, what
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self) -> list[str]:
        total = 0
        lines = _head(self._name, self._what, "histogram")
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            lines.append(f"{self._name}_bucket{_labels({'le': _number(bound)})} {total}")
        return [*lines, f"{self._name}_sum {_number(self._sum)}", f"{self._name}_count {total}"]


class Metrics:
    """All that a server counts."""

    def __init__(self, gauges: Sequence[Gauge], *, max_batch: int) -> None:
        self.requests = Counter("detronome_requests_total", "Answered requests, by path and status.")
        self.refused = Counter("detronome_refused_total", "Predictions that were refused, by reason.")
        self.restarts = Counter("detronome_model_restarts_total", "Starts of the model's process after the first.")
        self.request_s = Histogram(
            "detronome_request_seconds", "From a prediction's head to the end of its answer, where it was 200."
        )
        self.queue_s = Histogram("detronome_queue_seconds", "What images waited for the model.")
        self.decode_s = Histogram("detronome_decode_seconds", "What decoding images took.")
        self.model_s = Histogram("detronome_model_seconds", "What batches took in the model.")
        sizes = [float(2**power) for power in range(max(1, max_batch - 1).bit_length() + 1)]
        self.batch_images = Histogram("detronome_batch_images", "Images of a batch.", sizes)
        self._gauges = tuple(gauges)

    def text(self) -> str:
        families: tuple[Counter | Gauge | Histogram, ...] = (
            self.requests, self.refused, self.restarts, self.request_s, self.queue_s, self.decode_s, self.model_s,
            self.batch_images, *self._gauges,
        )  # fmt: skip
        return "\n".join(line for family in families for line in family.lines()) + "\n"


def _head(name: str, what: str, kind: str) -> list[str]:
    return [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return "+Inf" if value == math.inf else f"{value:.9g}"
