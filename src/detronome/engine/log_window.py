"""What the steps between two log records have measured; tensors are read once, at the end of the window."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from detronome.data.loader import LoaderMeter
from detronome.engine.events import StepLogged
from detronome.engine.step import StepResult
from detronome.runtime.device_clock import DeviceClock
from detronome.runtime.memory import peak_memory_bytes
from detronome.runtime.monitor import SystemMonitor
from detronome.runtime.progress import Progress

__all__ = ["LogWindow"]

_NUM_APPLIED = "num_applied"


class LogWindow:
    """Times and sums since the last record.

    Args:
        device: of the model.
        activity: knows the seconds of every section.
        device_clock: knows those of the device, where it is another's.
        monitor: watches the machine.
    """

    def __init__(
        self,
        device: torch.device,
        activity: Progress,
        *,
        device_clock: DeviceClock | None = None,
        monitor: SystemMonitor | None = None,
    ) -> None:
        self._device = device
        self._activity = activity
        self._device_clock = device_clock
        self._monitor = monitor
        self.restart()

    def restart(self) -> None:
        """Begin anew: what was added is forgotten."""
        self._seconds_before = self._activity.seconds
        if self._device_clock is not None:
            self._device_clock.read()
        if self._monitor is not None:
            self._monitor.take()
        self._wait_s = 0.0
        self._num_steps = 0
        self._num_images = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, result: StepResult, *, num_images: int, wait_s: float) -> None:
        """Add a step: its images over all ranks, and the seconds that this rank waited for its own."""
        shown = {_NUM_APPLIED: result.is_applied, "loss": result.loss, "grad_norm": result.grad_norm, **result.losses}
        for name, value in shown.items():
            value = torch.where(result.is_applied > 0, value, torch.zeros_like(value))
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._num_steps += 1
        self._num_images += num_images
        self._wait_s += wait_s

    def close(
        self,
        meter: LoaderMeter,
        *,
        step: int,
        epoch: float,
        learning_rates: Mapping[str, float],
        training_s: float,
        skipped_steps: int,
    ) -> StepLogged | None:
        """Return the record of the window and begin the next; None when it is empty. Costs a host sync.

        Args:
            meter: of the loader; it is reset.
            step: steps passed.
            epoch: the same in epochs.
            learning_rates: by parameter group.
            training_s: before this window.
            skipped_steps: so far.
        """
        if self._num_steps == 0:
            return None
        means = self._means()
        spent = self._spent()
        seconds = sum(spent.values())
        record = StepLogged(
            step=step,
            epoch=epoch,
            loss=means.pop("loss"),
            grad_norm=means.pop("grad_norm"),
            losses=means,
            learning_rates=learning_rates,
            images_per_s=self._num_images / seconds,
            step_s=seconds / self._num_steps,
            data_wait_s=self._wait_s / self._num_steps,
            memory_bytes=peak_memory_bytes(self._device),
            training_s=training_s + seconds,
            skipped_steps=skipped_steps,
            data_stages_s=meter.image_stage_s,
            batches_ready=meter.batches_ready,
            sections_s=self._per_step({section: section_s for section, section_s in spent.items() if section_s > 0}),
            device_s=self._per_step(self._device_clock.read() if self._device_clock is not None else {}),
            system=self._monitor.take() if self._monitor is not None else {},
        )
        meter.reset()
        self.restart()
        return record

    def _spent(self) -> dict[str, float]:
        """Return the seconds since the window began, by section."""
        before = self._seconds_before
        return {section: seconds - before.get(section, 0.0) for section, seconds in self._activity.seconds.items()}

    def _per_step(self, seconds: Mapping[str, float]) -> dict[str, float]:
        return {str(section): value / self._num_steps for section, value in seconds.items()}

    def _means(self) -> dict[str, float]:
        """Return the means over the steps that were applied; nan if none was."""
        sums = dict(zip(self._sums, torch.stack(list(self._sums.values())).tolist(), strict=True))
        num_applied = sums.pop(_NUM_APPLIED)
        return {name: value / num_applied if num_applied else math.nan for name, value in sums.items()}
