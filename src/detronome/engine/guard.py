"""The step guard: a step whose loss or gradient is not finite, or a spike, changes nothing, and is told.

The verdict stays on the device and steers the update there (`found_inf` of the fused optimiser). Its copy to the host
is read one step later, just before the next update: by then the matcher has waited for the device once, so reading
costs no sync of its own; and the weights are still those with which the judged step ran, so it can be run again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Judgement", "StepGuard", "Verdict"]

K = TypeVar("K")

_WARMUP_STEPS = 100
"""Good steps before a spike can be told from the first, steep part of training."""
_DECAY = 0.98
"""Of the running means: about the last 50 steps count."""
_MOST_SPIKES_IN_A_ROW = 5
"""After so many it is no spike but a new level, and training goes on while the running means come up to it."""
_MEANS = ("log_loss", "log_grad_norm", "num_good", "high_in_row")
_TINIEST = 1e-30


@dataclass(frozen=True)
class Verdict(Generic[K]):
    """What the guard found about one step, on the host."""

    step: int
    kept: K
    """What the caller kept of the step, to run it again."""
    is_applied: bool
    is_finite: bool
    loss: float
    grad_norm: float
    usual_loss: float
    """Running mean before the step; nan in the first steps."""
    usual_grad_norm: float

    @property
    def reason(self) -> str:
        """Why the step was not applied, for people."""
        if not self.is_finite:
            return f"loss {self.loss:g}, gradient norm {self.grad_norm:g}"
        return (
            f"spike: loss {self.loss:.3g} (usually {self.usual_loss:.3g}), "
            f"gradient norm {self.grad_norm:.3g} (usually {self.usual_grad_norm:.3g})"
        )


@dataclass(frozen=True)
class Judgement:
    """Both 1.0 or 0.0, on the device, never read there."""

    is_applied: Tensor
    is_finite: Tensor


@dataclass(frozen=True)
class _Pending(Generic[K]):
    step: int
    kept: K
    numbers: Tensor
    copied: torch.cuda.Event | None


class StepGuard(Generic[K]):
    """Judges steps.

    Args:
        model: its BatchNorm statistics are put back when a step is not applied: the forward pass has spoilt them.
        device: of the model.
        loss_spike_factor: a loss above this many times its running mean is a spike; 0 for no such check.
        gradient_spike_factor: the same for the gradient's norm.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        loss_spike_factor: float = 0.0,
        gradient_spike_factor: float = 0.0,
    ) -> None:
        self._pending: _Pending[K] | None = None
        factors = [math.log(f) if f > 0 else math.inf for f in (loss_spike_factor, gradient_spike_factor)]
        self._log_factors = torch.tensor(factors, device=device)
        self._means = torch.zeros(2, device=device)
        self._num_good = torch.zeros((), device=device)
        self._high_in_row = torch.zeros((), device=device)
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

    def put_back(self) -> None:
        """Undo what the forward passes since `remember` have done to the statistics."""
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._saved)

    def judge(self, *, loss: Tensor, grad_norm: Tensor, step: int, kept: K) -> Judgement:
        """Return whether the step may be applied; undo its effect on the statistics where not.

        Args:
            loss: of the whole effective batch, over all ranks.
            grad_norm: of the whole gradient, over all ranks.
            step: its number.
            kept: what it takes to run the step again; held until `read`.
        """
        numbers = torch.stack((loss, grad_norm)).float()
        is_finite = numbers.isfinite().all()
        logs = numbers.clamp(min=_TINIEST).log()
        is_high = (self._num_good >= _WARMUP_STEPS) & (logs - self._means > self._log_factors).any()
        is_spike = is_finite & is_high & (self._high_in_row < _MOST_SPIKES_IN_A_ROW)
        is_applied = (is_finite & ~is_spike).float()
        for buffer, saved in zip(self._statistics, self._saved, strict=True):
            buffer.copy_(torch.where(is_applied > 0, buffer, saved))
        verdict = torch.cat((torch.stack((is_applied, is_finite.float())), numbers, self._means, self._num_good[None]))

        share = (1 - torch.clamp(self._num_good / (self._num_good + 1), max=_DECAY)) * is_applied
        self._means = torch.where(is_applied > 0, self._means + share * (logs - self._means), self._means)
        self._num_good = self._num_good + is_applied
        in_row = torch.where(is_high, self._high_in_row + 1, torch.zeros_like(self._high_in_row))
        self._high_in_row = torch.where(is_finite, in_row, self._high_in_row)
        self._keep(step, kept, verdict)
        return Judgement(is_applied, is_finite.float())

    def read(self) -> Verdict[K] | None:
        """Return the verdict about the step judged last, once; None if there is none that was not read.

        Waits for that step where nothing has since; the trainer calls it where something has, or must.
        """
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        if pending.copied is not None:
            pending.copied.synchronize()
        is_applied, is_finite, loss, norm, log_loss, log_norm, num_good = pending.numbers.tolist()
        usual = [math.exp(log) if num_good else math.nan for log in (log_loss, log_norm)]
        return Verdict(pending.step, pending.kept, bool(is_applied), bool(is_finite), loss, norm, *usual)

    def state(self) -> dict[str, float]:
        """Return what a resume needs. Costs a host sync."""
        values = torch.cat((self._means, torch.stack((self._num_good, self._high_in_row)))).tolist()
        return dict(zip(_MEANS, values, strict=True))

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a saved state; forget a verdict that was not read."""
        self._pending = None
        log_loss, log_norm, num_good, spikes = (state.get(name, 0.0) for name in _MEANS)
        self._means.copy_(torch.tensor([log_loss, log_norm]))
        self._num_good.fill_(num_good)
        self._high_in_row.fill_(spikes)

    def _keep(self, step: int, kept: K, verdict: Tensor) -> None:
        if verdict.device.type != "cuda":
            self._pending = _Pending(step, kept, verdict, None)
            return
        host = torch.empty(verdict.shape, pin_memory=True).copy_(verdict, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._pending = _Pending(step, kept, host, copied)
