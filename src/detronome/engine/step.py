"""One optimiser update over one effective batch, however it is cut into micro-batches.

Every loss term is divided by totals of the whole effective batch, so the gradients of the micro-batches add up to
the gradient of the whole (BatchNorm and dropout apart, which see each micro-batch alone).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detronome.engine.ema import ModelEma
from detronome.engine.guard import StepGuard
from detronome.engine.schedule import Schedule
from detronome.losses.set_criterion import SetCriterion
from detronome.losses.terms import BatchTotals
from detronome.models.detector import Detector
from detronome.runtime.precision import Precision, autocast
from detronome.types import EffectiveBatch

__all__ = ["StepResult", "TrainingStep"]


@dataclass(frozen=True)
class StepResult:
    """What a step measured; tensors stay on the device until somebody logs them."""

    loss: Tensor
    losses: dict[str, Tensor]
    grad_norm: Tensor


class TrainingStep:
    """Prepare, forward and backward, clip, judge, update, average.

    Args:
        model: in training mode.
        criterion: the losses.
        optimizer: fused, so that the guard's verdict can stop an update on the device.
        schedule: factor on each group's `base_lr`.
        guard: judges each step.
        ema: average to update, if any.
        micro_batch_size: images in one forward pass.
        clip_norm: largest gradient norm; 0 for no clipping.
        precision: of the forward pass.
        device: where the model is.
    """

    def __init__(
        self,
        *,
        model: Detector,
        criterion: SetCriterion,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        guard: StepGuard,
        ema: ModelEma | None,
        micro_batch_size: int,
        clip_norm: float,
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.schedule = schedule
        self.guard = guard
        self.ema = ema
        self.micro_batch_size = micro_batch_size
        self.clip_norm = clip_norm
        self.precision = precision
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batch: EffectiveBatch, *, step: int, progress: float) -> StepResult:
        """Do update number `step` (from 0). `progress` is the part of the training done, 0-1."""
        self.guard.remember()
        loss, losses = self._accumulate(batch, progress)
        grad_norm = self._clip()
        is_applied = self.guard.judge(loss=loss, grad_norm=grad_norm, step=step, image_ids=batch.image_ids)
        self._update(step, is_applied)
        if self.ema is not None:
            self.ema.update(self.model, num_updates=step, is_applied=is_applied)
        return StepResult(loss, losses, grad_norm)

    def _accumulate(self, batch: EffectiveBatch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Add up the gradients of all micro-batches; return the loss and its terms over the whole batch."""
        totals = BatchTotals.of(batch.targets, self.model.num_queries)
        loss = torch.zeros((), device=self.device)
        losses: dict[str, Tensor] = {}
        for micro_batch in batch.split(self.micro_batch_size):
            micro_batch = micro_batch.to(self.device)
            with autocast(self.precision, self.device):
                output = self.model(micro_batch.images, micro_batch.padding_mask, micro_batch.targets)
            terms = self.criterion(output, micro_batch.targets, totals=totals, progress=progress)
            micro_loss = self.criterion.total(terms)
            self.scaler.scale(micro_loss).backward()
            loss += micro_loss.detach()
            for name, value in terms.items():
                losses[name] = losses[name] + value.detach() if name in losses else value.detach()
        return loss, losses

    def _clip(self) -> Tensor:
        """Scale the gradients down to `clip_norm`; return their norm before."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if self.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip_norm, norm, foreach=True)
        return norm

    def _update(self, step: int, is_applied: Tensor) -> None:
        factor = self.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        # A fused optimiser leaves weights, moments and its step count alone where this is 1.
        self.optimizer.found_inf = 1 - is_applied  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
