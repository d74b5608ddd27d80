"""TensorBoard: an observer that writes a run's numbers as scalars."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from detronome.engine.events import Evaluated, Event, RolledBack, RunEnded, RunStarted, StepLogged, StepSkipped
from detronome.errors import MissingExtraError
from detronome.report.happenings import happening
from detronome.runtime.progress import explain

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardLog"]

_logger = logging.getLogger(__name__)


class TensorBoardLog:
    """An observer that writes losses, metrics, rates, speed, memory and what happened for TensorBoard.

    A run that is resumed, or goes back by itself, continues its curves: what lies after the step that it goes on from
    is hidden (`purge_step`).

    Args:
        folder: where the event files go, e.g. `RUN/tensorboard`.

    Raises:
        MissingExtraError: the package `tensorboard` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("tensorboard", extra="tensorboard", needed_for="the TensorBoard log") from error
        self.folder = folder
        self._writer: SummaryWriter | None = None
        self._has_failed = False

    def __call__(self, event: Event) -> None:
        try:
            if isinstance(event, RolledBack):
                self.close()
            writer = self._open(event)
            for name, value in _scalars(event):
                if math.isfinite(value):
                    writer.add_scalar(name, value, event.step)
            for name, text in _texts(event):
                writer.add_text(name, text, event.step)
            if isinstance(event, (Evaluated, RunEnded)):
                writer.flush()
            if isinstance(event, RunEnded):
                self.close()
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            if not self._has_failed:
                _logger.warning("the TensorBoard log cannot be written, training goes on: %s", error)
            self._has_failed = True

    def close(self) -> None:
        """Write what is pending and close the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, event: Event) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            goes_on = isinstance(event, RolledBack) or (isinstance(event, RunStarted) and event.step > 0)
            purge_step = event.step + 1 if goes_on else None
            self._writer = SummaryWriter(str(self.folder), purge_step=purge_step)
        return self._writer


def _scalars(event: Event) -> Iterator[tuple[str, float]]:
    """Yield the names and values that an event contributes."""
    if isinstance(event, StepLogged):
        yield "loss/total", event.loss
        for name, value in event.losses.items():
            yield f"loss/{name}", value
        for group, rate in event.learning_rates.items():
            yield f"learning_rate/{group}", rate
        yield "gradient/norm", event.grad_norm
        yield "speed/images_per_s", event.images_per_s
        yield "speed/step_s", event.step_s
        if event.step_s > 0:
            yield "speed/data_wait_share", event.data_wait_s / event.step_s
        yield "memory/GiB", event.memory_bytes / 2**30
        yield "guard/skipped_steps", float(event.skipped_steps)
    elif isinstance(event, StepSkipped):
        yield "guard/skip", 1.0
    elif isinstance(event, Evaluated):
        for name, value in event.metrics.items():
            yield f"metrics/{name}", value
        for name, value in event.per_class_ap.items():
            yield f"class_AP/{name}", value
        for name, value in event.losses.items():
            yield f"validation_loss/{name}", value
    elif isinstance(event, RunEnded):
        if event.seconds:
            yield "goodput/goodput", event.goodput
        for section, seconds in event.seconds.items():
            yield f"goodput/{section}_s", seconds


def _texts(event: Event) -> Iterator[tuple[str, str]]:
    """Yield the names and texts (Markdown) that an event contributes."""
    if isinstance(event, RunStarted):
        facts = {"preset": event.preset, **event.resolved, **event.environment}
        yield "run", "\n".join(f"- **{key}**: {value}" for key, value in facts.items())
    elif isinstance(event, RunEnded):
        if event.seconds:
            yield "goodput", explain(event.seconds)
    elif happened := happening(event.to_record()):
        fix = f"  \n**fix:** {happened.fix}" if happened.fix else ""
        yield f"events/{happened.kind}", f"{happened.sentence}{fix}"
