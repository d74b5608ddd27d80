"""What a run's logs and evaluations have come to: smoothed curves, small enough for a checkpoint's state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields

from detronome.engine.events import Evaluated, StepLogged

__all__ = ["Curve", "Evaluation", "History"]

_START_STEPS = 50
"""Steps whose mean is where a curve starts: fewer would make it a matter of chance."""
_HORIZON_STEPS, _HORIZON_RECORDS = 100, 4
"""Steps, and log records, over which curves are smoothed: the noise of batches is gone, one spike is no trend."""
_OUTLIER = 2.0
"""Times the trend that one log record counts for at most: a spike is no trend, and what goes on rising still shows."""
_FELL = 0.8
"""A curve above this part of its start has not fallen."""
_RISE = 1.5
"""Times its lowest that is far outside the noise which smoothing leaves."""
_ABOVE_START = 1.3
"""Times its start at which a loss is worse than that of the untrained model."""
_LOST_GAIN = 0.5
"""And part of the fall that must be lost again: losses near 0 double by chance."""


@dataclass
class Curve:
    """A noisy curve: where it started, where it is, and the lowest it has been; all smoothed."""

    num_steps: float = 0.0
    start: float = 0.0
    now: float = 0.0
    lowest: float = 0.0

    def add(self, value: float, num_steps: float) -> None:
        """Add the mean of some steps; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        is_start = self.num_steps < _START_STEPS
        if not is_start and self.now > 0:
            value = min(value, _OUTLIER * self.now)
        self.num_steps += num_steps
        share = num_steps / self.num_steps
        weight = min(1 - math.exp(-num_steps / _HORIZON_STEPS), 1 / _HORIZON_RECORDS)
        self.now += max(share, weight) * (value - self.now)
        if is_start:
            self.start += share * (value - self.start)
        self.lowest = self.now if is_start else min(self.lowest, self.now)

    @property
    def has_fallen(self) -> bool:
        return self.now < _FELL * self.start

    @property
    def is_above_start(self) -> bool:
        return self.now > _ABOVE_START * self.start

    @property
    def has_risen(self) -> bool:
        """Whether it is clearly above its lowest, or above its start: a rise within the first steps leaves no low."""
        lost_gain = self.lowest + _LOST_GAIN * (self.start - self.lowest)
        return self.is_above_start or self.now > max(_RISE * self.lowest, lost_gain)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, and where training stood."""

    step: float
    ap: float
    loss: float
    """Weighted sum of the last decoder layer's terms on the validation split."""
    training_loss: float
    """The same in training, smoothed."""


class History:
    """Adds up a run's logs and evaluations.

    Args:
        loss_weights: of the terms of the last decoder layer, by name.
        class_names: the classes to follow.
    """

    def __init__(self, *, loss_weights: Mapping[str, float], class_names: Sequence[str]) -> None:
        self.step = 0.0
        self.risen_since: float | None = None
        """Step at which the loss rose clearly above its lowest, where it still is."""
        self.evaluations: list[Evaluation] = []
        self.class_ap = dict.fromkeys(class_names, 0.0)
        """Highest AP of each class so far."""
        self._curves: dict[str, Curve] = {}
        self._num_skipped = 0.0
        self._loss_weights = loss_weights

    def curve(self, name: str) -> Curve:
        """Return the curve of `loss`, `grad_norm`, `skipped` (part of the steps), `last_layer` (the weighted sum of its
        terms), or of a term such as `loss_ce`; one without a step where nothing has been logged."""
        return self._curves.get(name, Curve())

    def add_log(self, log: StepLogged) -> None:
        """Add a log record."""
        num_steps = log.step - self.step
        num_skipped = log.skipped_steps - self._num_skipped
        self.step, self._num_skipped = log.step, log.skipped_steps
        if num_steps <= 0:
            return
        values = {"loss": log.loss, "grad_norm": log.grad_norm, "skipped": max(num_skipped, 0.0) / num_steps}
        values |= {"last_layer": self._weighted(log.losses), **log.losses}
        for name, value in values.items():
            self._curves.setdefault(name, Curve()).add(value, num_steps)
        if not self.curve("loss").has_risen:
            self.risen_since = None
        elif self.risen_since is None:
            self.risen_since = log.step

    def add_evaluation(self, evaluated: Evaluated) -> None:
        """Add an evaluation that measured both AP and losses."""
        for name, ap in evaluated.per_class_ap.items():
            if name in self.class_ap and math.isfinite(ap):
                self.class_ap[name] = max(self.class_ap[name], ap)
        ap, loss = evaluated.metrics["AP"], self._weighted(evaluated.losses)
        if math.isfinite(ap) and math.isfinite(loss):
            self.evaluations.append(Evaluation(evaluated.step, ap, loss, self.curve("last_layer").now))

    def state(self) -> dict[str, list[float]]:
        """Return what a resume needs, ready for JSON."""
        return {
            "run": [self.step, self._num_skipped, *([] if self.risen_since is None else [self.risen_since])],
            "class_ap": list(self.class_ap.values()),
            "evaluations": [number for evaluation in self.evaluations for number in astuple(evaluation)],
            **{f"curve.{name}": list(astuple(curve)) for name, curve in self._curves.items()},
        }

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from a saved state."""
        self.step, self._num_skipped, *risen_since = state["run"]
        self.risen_since = risen_since[0] if risen_since else None
        self.class_ap = dict(zip(self.class_ap, state["class_ap"], strict=True))
        numbers, width = state["evaluations"], len(fields(Evaluation))
        self.evaluations = [Evaluation(*numbers[i : i + width]) for i in range(0, len(numbers), width)]
        self._curves = {
            name.removeprefix("curve."): Curve(*values) for name, values in state.items() if name.startswith("curve.")
        }

    def count_skipped_from(self, num_skipped: int) -> None:
        """Take this for the run's count of skipped steps at the last log record, which does not go back as steps do."""
        self._num_skipped = num_skipped

    def _weighted(self, losses: Mapping[str, float]) -> float:
        """Return the weighted sum of the terms; nan where one is missing."""
        return sum(weight * losses.get(name, math.nan) for name, weight in self._loss_weights.items())
