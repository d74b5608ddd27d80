"""Dynamic loss scaling for fp16: gradients too small for the format are lifted into it; the scale falls on overflow.

torch's GradScaler judges each rank's shard alone; here the guard's verdict, the same on all ranks, moves the scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["LossScale"]

_START = 65536.0
_STEPS_TO_GROW = 2000
_FACTOR = 2.0


class LossScale:
    """A factor on the loss, kept on the device: no host sync.

    Args:
        device: of the model.
        enabled: without, the factor is 1 and nothing is computed.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = torch.full((), _START if enabled else 1.0, device=device)
        self._num_good = torch.zeros((), device=device)

    def apply(self, loss: Tensor) -> Tensor:
        """Return the scaled loss, for backward."""
        return loss * self.scale if self.enabled else loss

    def undo(self, gradients: Iterable[Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        if self.enabled:
            torch._foreach_div_(list(gradients), self.scale)

    def update(self, is_finite: Tensor) -> None:
        """Halve the scale after a step that was not finite (0 on the device), double it after many that were (1)."""
        if not self.enabled:
            return
        self._num_good = (self._num_good + 1) * is_finite
        has_earned = self._num_good >= _STEPS_TO_GROW
        self.scale = torch.where(
            is_finite > 0, torch.where(has_earned, self.scale * _FACTOR, self.scale), self.scale / _FACTOR
        )
        self._num_good = torch.where(has_earned, torch.zeros_like(self._num_good), self._num_good)

    def state(self) -> dict[str, float]:
        """Return what a resume needs. Costs a host sync."""
        return {"scale": self.scale.item(), "num_good": self._num_good.item()} if self.enabled else {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a saved state; one of a run in another precision is ignored."""
        if self.enabled and state:
            self.scale.fill_(state["scale"])
            self._num_good.fill_(state["num_good"])
