"""Events of a small run, for the tests of everything that listens."""

from __future__ import annotations

import math
from collections.abc import Iterator

from detronome.engine.events import (
    CheckpointFailed,
    Evaluated,
    Event,
    ImageQuarantined,
    MemorySplit,
    RolledBack,
    RunEnded,
    RunStarted,
    RunWarned,
    StepLogged,
    StepSkipped,
)

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
        loss=10 / (1 + abs(step)) if loss is None else loss,
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
        losses={"loss_bbox": 0.2 - ap / 4, "loss_giou": math.nan},
        eval_s=1.0,
        training_s=0.2 * step,
    )


def skipped(step: int, reason: str = f"loss is not finite {HOSTILE}") -> StepSkipped:
    return StepSkipped(step=step, epoch=step / 10, reason=reason, image_ids=list(range(12)))


def diagnosed(step: int) -> StepSkipped:
    module = "model.decoder.layers.2.cross_attention"
    return StepSkipped(
        step=step,
        epoch=step / 10,
        reason=f"loss nan, gradient norm inf: {module} gave a value that is not finite (bfloat16, image {step})",
        image_ids=[step],
        rank=3,
        module=module,
        dtype="bfloat16",
        loss_term="loss_bbox",
        is_reproducible=True,
        action=f"{module} computes in fp32 from now on",
    )


def rolled_back(step: int, from_step: int) -> RolledBack:
    reason = f"step {from_step - 1}: 2 steps in a row were skipped; loss nan {HOSTILE}"
    return RolledBack(step=step, epoch=step / 10, from_step=from_step, reason=reason, lr_scale=0.5, excluded=[])


def split(step: int) -> MemorySplit:
    return MemorySplit(step=step, epoch=step / 10, shape="800x1344", old_size=4, new_size=2, rank=1)


def checkpoint_failed(step: int) -> CheckpointFailed:
    return CheckpointFailed(step=step, epoch=step / 10, reason=f"no space left on device {HOSTILE}")


def warned(step: int, subject: str = "overfitting") -> RunWarned:
    return RunWarned(step=step, epoch=step / 10, subject=subject, what=f"it is {HOSTILE}", fix=f"stop early {HOSTILE}")


def bad_image(step: int, image_id: int = 17) -> ImageQuarantined:
    return ImageQuarantined(
        step=step,
        epoch=step / 10,
        split="train",
        image_id=image_id,
        file=f"images/{HOSTILE}.jpg",
        reason="the file ends before the picture does",
        action="replaced by image id 18",
    )


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
        seconds={"forward": 17.0, "update": 2.0, "data_wait": 1.0, "evaluation": 10.0, "redone": 1.0},
        goodput=19 / 31,
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


def eventful_run() -> Iterator[Event]:
    """A run in which everything happens: at step 46 it goes back to 40."""
    yield started()
    yield warned(0, "too_few_images")
    for step in range(1, 46):
        if step in (22, 33):
            yield skipped(step - 1)
        if step == 12:
            yield split(11)
        yield from _after(step)
    yield diagnosed(44)
    yield skipped(45, "loss nan, gradient norm nan")
    yield rolled_back(40, 46)
    for step in range(41, 101):
        yield from _after(step)
    yield ended()


def _after(step: int) -> Iterator[Event]:
    if step in (15, 38):
        yield bad_image(step, image_id=step)
    yield logged(step)
    if step % 10 == 0:
        yield evaluated(step, step / 250)
    if step in (20, 70):
        yield checkpoint_failed(step - 10)
    if step == 80:
        yield warned(80)
