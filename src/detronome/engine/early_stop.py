"""Which evaluation is the best, and when waiting for a better one has become pointless."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["NO_AP", "BestMetric"]

NO_AP = 0.005
"""Up to here an AP is chance: a detection transformer's stays there for hundreds of steps, and then jumps."""


class BestMetric:
    """Follows a metric where more is better.

    Args:
        patience: evaluations without a gain after which training should stop; 0 never stops. It begins with the first
            value above `NO_AP`.
        min_delta: a gain counts for patience only when it is larger than this.
    """

    def __init__(self, *, patience: int = 0, min_delta: float = 0.0) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.value = -math.inf
        self.step = 0
        self.num_without_gain = 0
        self._patience_value = -math.inf

    def update(self, value: float, *, step: int) -> bool:
        """Take an evaluation into account; return whether it is the best so far. nan (no truth) never is."""
        if value > self._patience_value + self.min_delta:
            self._patience_value = value
            self.num_without_gain = 0
        elif self._patience_value > NO_AP:
            self.num_without_gain += 1
        if value > self.value:
            self.value = value
            self.step = step
            return True
        return False

    @property
    def should_stop(self) -> bool:
        return self.patience > 0 and self.num_without_gain >= self.patience

    def state(self) -> dict[str, float | None]:
        """Return what a resume needs, ready for JSON: None stands for "nothing yet"."""
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "step": self.step,
            "num_without_gain": self.num_without_gain,
            "patience_value": self._patience_value if math.isfinite(self._patience_value) else None,
        }

    def restore(self, state: Mapping[str, float | None]) -> None:
        """Go on from a saved state; an empty one is that of a run without an evaluation."""
        value, patience_value = state.get("value"), state.get("patience_value")
        self.value = -math.inf if value is None else value
        self.step = int(state.get("step") or 0)
        self.num_without_gain = int(state.get("num_without_gain") or 0)
        self._patience_value = -math.inf if patience_value is None else patience_value
