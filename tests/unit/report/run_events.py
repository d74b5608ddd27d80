"""Events of a small run, for the tests of everything that listens."""

from __future__ import annotations

import math
from collections.abc import Iterator

from detronome.engine.events import Evaluated, Event, RunEnded, RunStarted, StepLogged, StepSkipped

HOSTILE = "<script>alert('x')</script>&\x1b[31m$\\frac$"


def started(step: int = 0) -> RunStarted:
    return RunStarted(
        step=step,
        epoch=step / 10,
        preset="tiny",
        total_steps=100,
        total_epochs=10,
        steps_per_epoch=10,
        global_batch_size=4,
        num_train_images=40,
        num_val_images=8,
        num_parameters=1_500_000,
        num_trainable_parameters=1_400_000,
        resolved={"data.workers": f"2 (two cores) {HOSTILE}"},
        environment={"torch": "2.11", "machine": HOSTILE},
    )


def logged(step: int, loss: float | None = None) -> StepLogged:
    return StepLogged(
        step=step,
        epoch=step / 10,
        loss=10 / (1 + step) if loss is None else loss,
        losses={"loss_bbox": 0.1, "loss_giou": math.nan},
        grad_norm=3.0,
        learning_rates={"model": 1e-4, "backbone": 1e-5},
        images_per_s=20.0,
        step_s=0.2,
        data_wait_s=0.05,
        memory_bytes=3 * 2**30,
        training_s=0.2 * step,
        skipped_steps=1,
    )


def evaluated(step: int, ap: float, *, is_best: bool = True) -> Evaluated:
    return Evaluated(
        step=step,
        epoch=step / 10,
        metrics={"AP": ap, "AP50": min(1.0, 1.5 * ap), "AP75": ap, "AP_small": math.nan},
        per_class_ap={"cell": ap, HOSTILE: math.nan},
        is_best=is_best,
        eval_s=1.0,
        training_s=0.2 * step,
    )


def skipped(step: int) -> StepSkipped:
    return StepSkipped(step=step, epoch=step / 10, reason=f"loss is not finite {HOSTILE}", image_ids=list(range(12)))


def ended(step: int = 100, reason: str = "finished") -> RunEnded:
    return RunEnded(
        step=step,
        epoch=step / 10,
        reason=reason,
        best_step=90,
        best_metrics={"AP": 0.4},
        training_s=20.0,
        eval_s=10.0,
        wall_s=31.0,
    )


def whole_run() -> Iterator[Event]:
    yield started()
    for step in range(1, 101):
        if step == 33:
            yield skipped(step)
        yield logged(step)
        if step % 10 == 0:
            yield evaluated(step, step / 250)
    yield ended()
