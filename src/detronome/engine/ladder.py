"""What becomes of a run after steps that the guard refused: the ladder, one rung after some skips in a row.

    skip  →  a module that overflowed in bf16 or fp16 computes in fp32  →  back to the last checkpoint at a lower rate
          →  stop with a report

A spike is skipped, or the run is rewound: it goes on from the last checkpoint as the run that never had those batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from detronome.engine.diagnosis import Diagnosis
from detronome.errors import TrainingError

__all__ = ["Ladder", "RollBack", "Skip"]

_STEPS_OF_A_ROW = 100
"""Rewinds no farther apart are one row: at most `max_rollbacks` of them, as each does steps again."""


@dataclass(frozen=True)
class Skip:
    """Go on with the next step."""

    action: str = "skipped"
    """What was done, for people."""
    fp32_module: str = ""
    """A module that shall compute in fp32 from now on."""


class RollBack(Exception):  # noqa: N818
    """Go back to a checkpoint before the excluded steps, else to the last. Raised through the step under way, which so
    remains undone.

    Attributes:
        reason: for people.
        lr_scale: factor on every rate from then on.
        excluded: steps to pass over from then on.
    """

    def __init__(self, reason: str, *, lr_scale: float, excluded: Sequence[int] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lr_scale = lr_scale
        self.excluded = list(excluded)


@dataclass
class Ladder:
    """Decides what to do about a refused step. Every rank feeds it the same facts, so all decide alike."""

    on_spike: Literal["skip", "rewind"]
    rewind_steps: int
    max_skipped_steps: int
    max_rollbacks: int
    rollback_lr_factor: float
    num_skipped: int = 0
    num_consecutive: int = 0
    """Refused steps since the last one that was applied, or since the last rung."""
    num_rollbacks: int = 0
    last_rewind: int = -1
    """The step whose spike was rewound last."""
    rewinds_in_row: int = 0
    lr_scale: float = 1.0
    fp32_modules: list[str] = field(default_factory=list)

    def applied(self) -> None:
        """A step was applied: the row is over."""
        self.num_consecutive = 0

    def spike(self, step: int, reason: str) -> Skip:
        """Decide about a spike.

        Raises:
            RollBack: to go on without the batches around the spike.
        """
        self.num_skipped += 1
        if self.on_spike == "skip":
            return Skip()
        is_in_row = 0 <= step - self.last_rewind <= _STEPS_OF_A_ROW
        self.rewinds_in_row = self.rewinds_in_row + 1 if is_in_row else 1
        self.last_rewind = step
        if self.rewinds_in_row > self.max_rollbacks:  # no batch is to blame; it may be a new level
            return Skip()
        excluded = range(max(0, step - self.rewind_steps), step + 1)
        raise RollBack(f"step {step}: {reason}", lr_scale=self.lr_scale, excluded=excluded)

    def not_finite(self, step: int, reason: str, diagnosis: Diagnosis | None, *, is_loss_scale: bool = False) -> Skip:
        """Decide about a loss or gradient that is not finite; one that only the loss scale is to blame for is no fault.

        Raises:
            RollBack: to go on from the last checkpoint at a lower rate.
            TrainingError: everything has been tried.
        """
        self.num_skipped += 1
        if is_loss_scale:
            return Skip("loss scale lowered")
        self.num_consecutive += 1
        if self.num_consecutive < self.max_skipped_steps:
            return Skip()
        in_a_row, self.num_consecutive = self.num_consecutive, 0
        if diagnosis is not None and diagnosis.is_finite_in_fp32 and diagnosis.module not in ("", *self.fp32_modules):
            self.fp32_modules.append(diagnosis.module)
            return Skip(f"{diagnosis.module} computes in fp32 from now on", fp32_module=diagnosis.module)
        if self.num_rollbacks < self.max_rollbacks:
            self.num_rollbacks += 1
            self.lr_scale *= self.rollback_lr_factor
            raise RollBack(f"step {step}: {in_a_row} steps in a row were skipped; {reason}", lr_scale=self.lr_scale)
        found = f"; {diagnosis.describe()}" if diagnosis is not None else ""
        raise TrainingError(
            f"{in_a_row} steps in a row had a loss or gradient that is not finite ({reason}){found}",
            where=f"step {step}, after {self.num_rollbacks} rollbacks to the last checkpoint",
            fix="lower optim.lr, train in fp32 (--set train.precision=fp32), or check the images that the log names "
            "(detronome data check DATA)",
        )
