"""The numbers of a run under the names that every tracker shows them by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from detronome.engine.events import Evaluated, Event, RunEnded, StepLogged, StepSkipped

__all__ = ["scalars"]


def scalars(event: Event) -> dict[str, float]:
    """Return what an event contributes, by name: a group, a slash, what it is. Numbers that are not finite are left
    out."""
    return {name: float(value) for name, value in _scalars(event) if math.isfinite(value)}


def _scalars(event: Event) -> Iterator[tuple[str, float]]:
    if isinstance(event, StepLogged):
        yield from _of_steps(event)
    elif isinstance(event, StepSkipped):
        yield "guard/skip", 1.0
    elif isinstance(event, Evaluated):
        yield from _group("metrics", event.metrics)
        yield from _group("class_AP", event.per_class_ap)
        yield from _group("validation_loss", event.losses)
        yield "speed/evaluation_s", event.eval_s
        if event.is_best:
            yield from _group("best", event.metrics)
            yield "best/step", event.step
    elif isinstance(event, RunEnded) and event.seconds:
        yield "goodput/goodput", event.goodput
        for section, seconds in event.seconds.items():
            yield f"goodput/{section}_s", seconds


def _of_steps(event: StepLogged) -> Iterator[tuple[str, float]]:
    yield "epoch", event.epoch
    yield "loss/total", event.loss
    yield from _group("loss", event.losses)
    yield from _group("learning_rate", event.learning_rates)
    yield "gradient/norm", event.grad_norm
    yield "speed/images_per_s", event.images_per_s
    yield "speed/step_s", event.step_s
    if event.step_s > 0:
        yield "speed/data_wait_share", event.data_wait_s / event.step_s
    yield "speed/batches_ready", event.batches_ready
    yield from _group("step_s", event.sections_s)
    yield from _group("device_step_s", event.device_s)
    yield from _group("image_s", event.data_stages_s)
    yield from _group("system", event.system)
    yield "memory/GiB", event.memory_bytes / 2**30
    yield "guard/skipped_steps", event.skipped_steps


def _group(name: str, numbers: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    for key, value in numbers.items():
        yield f"{name}/{key}", value
