"""The step guard: a step whose loss or gradient is not finite changes nothing, and is told.

The verdict stays on the device and steers the update there (`found_inf` of the fused optimiser), so watching every
step costs no host sync; the host reads the verdicts at log steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detronome.errors import TrainingError

__all__ = ["SkippedStep", "StepGuard"]


@dataclass(frozen=True)
class SkippedStep:
    """A step that was not applied."""

    step: int
    image_ids: list[int]
    reason: str


@dataclass(frozen=True)
class _Verdict:
    step: int
    image_ids: list[int]
    loss: Tensor
    grad_norm: Tensor
    is_applied: Tensor


class StepGuard:
    """Judges steps and keeps the account.

    Args:
        model: its BatchNorm statistics are put back when a step is skipped: the forward pass has spoilt them.
        max_consecutive: skipped steps in a row after which the run stops.
    """

    def __init__(self, model: nn.Module, *, max_consecutive: int) -> None:
        self.num_skipped = 0
        self.num_consecutive = 0
        self._max_consecutive = max_consecutive
        self._pending: list[_Verdict] = []
        self._last: SkippedStep | None = None
        self._statistics = [
            buffer
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for buffer in module.buffers(recurse=False)
        ]
        self._saved = [buffer.clone() for buffer in self._statistics]

    def remember(self) -> None:
        """Keep what a bad forward pass would spoil."""
        if self._statistics:
            torch._foreach_copy_(self._saved, self._statistics)

    def judge(self, *, loss: Tensor, grad_norm: Tensor, step: int, image_ids: Sequence[int]) -> Tensor:
        """Return 1.0 when the step may be applied, else 0.0, on the device; undo its effect on the statistics."""
        is_applied = (loss.isfinite() & grad_norm.isfinite()).float()
        for buffer, saved in zip(self._statistics, self._saved, strict=True):
            buffer.copy_(torch.where(is_applied > 0, buffer, saved))
        self._pending.append(_Verdict(step, list(image_ids), loss, grad_norm, is_applied))
        return is_applied

    def drain(self) -> list[SkippedStep]:
        """Read the verdicts since the last call: one host sync."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        rows = torch.stack([torch.stack((v.is_applied, v.loss.float(), v.grad_norm.float())) for v in pending])
        skipped = []
        for verdict, (is_applied, loss, grad_norm) in zip(pending, rows.tolist(), strict=True):
            if is_applied:
                self.num_consecutive = 0
                continue
            self.num_skipped += 1
            self.num_consecutive += 1
            skipped.append(SkippedStep(verdict.step, verdict.image_ids, f"loss {loss:g}, gradient norm {grad_norm:g}"))
        if skipped:
            self._last = skipped[-1]
        return skipped

    def check(self) -> None:
        """Stop a run that only skips.

        Raises:
            TrainingError: more than `max_consecutive` steps in a row were skipped, as far as `drain` has read.
        """
        if self.num_consecutive > self._max_consecutive and self._last is not None:
            raise TrainingError(
                f"{self.num_consecutive} steps in a row had a loss or gradient that is not finite "
                f"({self._last.reason})",
                where=f"step {self._last.step}, images {self._last.image_ids}",
                fix="lower optim.lr, train in fp32 (--set train.precision=fp32), or check these images' boxes",
            )
