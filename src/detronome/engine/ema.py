"""Exponential moving average of the weights, evaluated instead of them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from detronome.models.detector import Detector

__all__ = ["ModelEma"]


class ModelEma:
    """Keeps `average = decay * average + (1 - decay) * weights` in the weights' precision.

    Early in training the decay is (1 + n) / (10 + n) for the n-th update, so that the start is soon forgotten.
    Buffers (BatchNorm statistics) are copied: they are averages already.
    """

    def __init__(self, model: Detector, *, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Detector, *, num_updates: int, is_applied: Tensor) -> None:
        """Move towards the model's weights.

        Args:
            model: the model just updated.
            num_updates: updates before this one.
            is_applied: 1 when the update was applied, 0 when the step was skipped; on the device, never read.
        """
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        current: list[Tensor] = [parameter.detach() for parameter in model.parameters()]
        averaged: list[Tensor] = list(self.model.parameters())
        # Not `_foreach_lerp_`: its weight is a host number, and reading `is_applied` would sync the device.
        change = list(torch._foreach_sub(current, averaged))
        torch._foreach_mul_(change, (1 - decay) * is_applied)
        torch._foreach_add_(averaged, change)
        torch._foreach_copy_(list(self.model.buffers()), list(model.buffers()))
