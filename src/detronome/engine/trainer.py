"""The training run: fit, epochs, steps, evaluation, checkpoints, resume.

Nothing random is carried from step to step: data order, augmentation, dropout and noise follow from (seed, step), so
a resumed run continues bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from detronome.data.loader import LoaderMeter
from detronome.data.prefetch import DeviceStream
from detronome.data.quarantine import Quarantine
from detronome.engine.checkpoint import Checkpoint, CheckpointFolder, TrainingState
from detronome.engine.early_stop import BestMetric
from detronome.engine.evaluator import evaluate
from detronome.engine.events import Evaluated, Event, ImageQuarantined, Observer, RunEnded, StepLogged, StepSkipped
from detronome.engine.optim import load_optimizer_tensors, optimizer_tensors
from detronome.engine.step import StepResult, TrainingStep
from detronome.evaluation.detection import DetectionEvaluator, DetectionMetrics
from detronome.models.detector import Detector
from detronome.runtime.memory import peak_memory_bytes
from detronome.runtime.seeding import seed_torch
from detronome.runtime.signals import StopRequest
from detronome.types import Categories, EffectiveBatch

__all__ = ["FitResult", "RunPlan", "Trainer", "Validation"]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The length and rhythm of a run."""

    seed: int
    steps_per_epoch: int
    total_steps: int
    log_steps: int
    eval_steps: int
    """Steps between evaluations, a whole number of epochs; the last step is always evaluated."""
    checkpoint_s: float
    """Seconds after which a checkpoint is written even without an evaluation."""
    metric: str


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What an evaluation needs."""

    batches: Iterable[EffectiveBatch]
    """All images of the split; iterated once an evaluation."""
    evaluator: DetectionEvaluator
    max_detections: int
    quarantine: Quarantine
    """Counts the images that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a run ended."""

    reason: Literal["finished", "early_stop", "interrupted"]
    state: TrainingState


class Trainer:
    """Trains a model.

    Args:
        step: the training step with model, optimiser, guard and average.
        plan: length and rhythm.
        batches: returns the stream of effective batches from a step on, one a step, to the end of the run.
        quarantine: counts the training images that cannot be used.
        validation: how to evaluate, or None to train without.
        categories: what the labels mean; travels with the weights.
        config: the resolved configuration as plain data; travels with the weights.
        checkpoints: where checkpoints go.
        data_fingerprint: of the training annotations.
        best: follows the metric.
        observers: are told everything.
    """

    def __init__(
        self,
        *,
        step: TrainingStep,
        plan: RunPlan,
        batches: Callable[[int], DeviceStream],
        quarantine: Quarantine,
        validation: Validation | None,
        categories: Categories,
        config: Mapping[str, Any],
        checkpoints: CheckpointFolder,
        data_fingerprint: str,
        best: BestMetric,
        observers: Sequence[Observer],
    ) -> None:
        self.training_step = step
        self.model = step.model
        self.plan = plan
        self.batches = batches
        self.quarantine = quarantine
        self.validation = validation
        self.categories = categories
        self.config = dict(config)
        self.checkpoints = checkpoints
        self.data_fingerprint = data_fingerprint
        self.best = best
        self.observers = observers
        self.step = 0
        self.training_s = 0.0
        self.eval_s = 0.0
        self.best_metrics: dict[str, float] = {}

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run."""
        state = checkpoint.state
        self.model.load_state_dict(checkpoint.training or checkpoint.model)
        if self.training_step.ema is not None:
            self.training_step.ema.model.load_state_dict(checkpoint.model)
        load_optimizer_tensors(self.training_step.optimizer, self.model, checkpoint.optimizer or {})
        if state.scaler:
            self.training_step.scaler.load_state_dict(state.scaler)
        self.training_step.guard.num_skipped = state.num_skipped
        self.training_step.guard.num_consecutive = state.num_consecutive_skips
        self.quarantine.restore(state.quarantined)
        self.best.restore(state.best)
        self.best_metrics = {n: math.nan if v is None else v for n, v in state.best_metrics.items()}
        self.step, self.training_s, self.eval_s = state.step, state.training_s, state.eval_s

    def fit(self) -> FitResult:
        """Train to the end of the plan, to an early stop, or to the user's interruption."""
        started = time.perf_counter()
        window = _Window(self)
        last_saved = time.perf_counter()
        validation_batches = self.validation.batches if self.validation is not None else ()
        with StopRequest() as stop, _closing(validation_batches), _closing(self.batches(self.step)) as batches:
            self.model.train()
            if self.step == 0:
                self._save()  # A run killed before its first evaluation can be resumed too.
            is_stopping = False
            while self.step < self.plan.total_steps and not self.best.should_stop and not is_stopping:
                batch = window.fetch(batches)
                result = self._train_one(batch)
                window.add(result, len(batch))

                is_stopping = stop.is_set
                is_evaluated = self._is_evaluation_step()
                is_saved = is_evaluated or is_stopping or time.perf_counter() - last_saved > self.plan.checkpoint_s
                if is_saved or self.step % self.plan.log_steps == 0:
                    self._report_skips()
                    self._report_bad_images(self.quarantine)
                    self._tell(window.close(batches.meter))
                if is_evaluated and self.validation is not None:
                    self._evaluate(self.validation)
                    window.restart()
                if is_saved:
                    self._save()
                    last_saved = time.perf_counter()
                    window.restart()
        reason: Literal["finished", "early_stop", "interrupted"] = "finished"
        if self.step < self.plan.total_steps:
            reason = "early_stop" if self.best.should_stop else "interrupted"
        self._tell(
            RunEnded(
                step=self.step,
                epoch=self.epoch,
                reason=reason,
                best_step=self.best.step,
                best_metrics=self.best_metrics,
                training_s=self.training_s,
                eval_s=self.eval_s,
                wall_s=time.perf_counter() - started,
            )
        )
        return FitResult(reason=reason, state=self._state())

    @property
    def epoch(self) -> float:
        return self.step / self.plan.steps_per_epoch

    @property
    def evaluated_model(self) -> Detector:
        """The average where there is one, else the model itself."""
        return self.model if self.training_step.ema is None else self.training_step.ema.model

    def _train_one(self, batch: EffectiveBatch) -> StepResult:
        seed_torch("step", self.plan.seed, self.step)
        result = self.training_step(batch, step=self.step, progress=self.step / self.plan.total_steps)
        self.step += 1
        return result

    def _is_evaluation_step(self) -> bool:
        return self.step % self.plan.eval_steps == 0 or self.step == self.plan.total_steps

    def _evaluate(self, validation: Validation) -> DetectionMetrics:
        started = time.perf_counter()
        metrics = evaluate(
            self.evaluated_model,
            validation.batches,
            validation.evaluator,
            categories=self.categories,
            max_detections=validation.max_detections,
            precision=self.training_step.precision,
            device=self.training_step.device,
        )
        seconds = time.perf_counter() - started
        self.eval_s += seconds
        self._report_bad_images(validation.quarantine)
        is_best = self.best.update(metrics.numbers[self.plan.metric], step=self.step)
        if is_best:
            self.best_metrics = dict(metrics.numbers)
        self._tell(
            Evaluated(
                step=self.step,
                epoch=self.epoch,
                metrics=metrics.numbers,
                per_class_ap=metrics.per_class_ap,
                is_best=is_best,
                eval_s=seconds,
                training_s=self.training_s,
            )
        )
        return metrics

    def _state(self) -> TrainingState:
        guard = self.training_step.guard
        return TrainingState(
            step=self.step,
            training_s=self.training_s,
            eval_s=self.eval_s,
            num_skipped=guard.num_skipped,
            num_consecutive_skips=guard.num_consecutive,
            scaler=self.training_step.scaler.state_dict(),
            best=self.best.state(),
            best_metrics={n: None if math.isnan(v) else v for n, v in self.best_metrics.items()},
            data_fingerprint=self.data_fingerprint,
            quarantined=self.quarantine.image_ids,
        )

    def _save(self) -> None:
        has_ema = self.training_step.ema is not None
        self.checkpoints.save(
            Checkpoint(
                config=self.config,
                categories=self.categories,
                state=self._state(),
                model=self.evaluated_model.state_dict(),
                training=self.model.state_dict() if has_ema else None,
                optimizer=optimizer_tensors(self.training_step.optimizer, self.model),
            ),
            is_best=self.step > 0 and self.best.step == self.step,
        )

    def _report_skips(self) -> None:
        guard = self.training_step.guard
        for skipped in guard.drain():
            self._tell(
                StepSkipped(
                    step=skipped.step,
                    epoch=skipped.step / self.plan.steps_per_epoch,
                    reason=skipped.reason,
                    image_ids=skipped.image_ids,
                )
            )
        guard.check()

    def _report_bad_images(self, quarantine: Quarantine) -> None:
        for image in quarantine.drain():
            self._tell(
                ImageQuarantined(
                    step=self.step,
                    epoch=self.epoch,
                    split=quarantine.split,
                    image_id=image.image_id,
                    file=image.where,
                    reason=image.what,
                    action=image.action,
                )
            )

    def _tell(self, event: Event | None) -> None:
        if event is not None:
            for observer in self.observers:
                observer(event)


_T = TypeVar("_T")


@contextmanager
def _closing(batches: _T) -> Iterator[_T]:
    """End loader workers also when the run ends with an error."""
    try:
        yield batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


class _Window:
    """Times and sums between two log records; tensors are read once, at the end of the window."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.restart()

    def restart(self) -> None:
        self.started = time.perf_counter()
        self.wait_s = 0.0
        self.num_steps = 0
        self.num_images = 0
        self.sums: dict[str, Tensor] = {}

    def fetch(self, batches: Iterator[EffectiveBatch]) -> EffectiveBatch:
        started = time.perf_counter()
        batch = next(batches)
        self.wait_s += time.perf_counter() - started
        return batch

    def add(self, result: StepResult, num_images: int) -> None:
        shown = {"loss": result.loss, "grad_norm": result.grad_norm} | {
            name: value for name, value in result.losses.items() if name.count("_") == 1
        }
        for name, value in shown.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.num_steps += 1
        self.num_images += num_images

    def close(self, meter: LoaderMeter) -> StepLogged | None:
        """Return the record of the window and begin the next; None when it is empty."""
        if self.num_steps == 0:
            return None
        trainer = self.trainer
        names = list(self.sums)
        means = dict(zip(names, (torch.stack([self.sums[n] for n in names]) / self.num_steps).tolist(), strict=True))
        seconds = time.perf_counter() - self.started
        trainer.training_s += seconds
        record = StepLogged(
            step=trainer.step,
            epoch=trainer.epoch,
            loss=means.pop("loss"),
            grad_norm=means.pop("grad_norm"),
            losses=means,
            learning_rates={
                g["name"]: g["lr"]
                for g in trainer.training_step.optimizer.param_groups
                if not g["name"].endswith("_no_decay")
            },
            images_per_s=self.num_images / seconds,
            step_s=seconds / self.num_steps,
            data_wait_s=self.wait_s / self.num_steps,
            memory_bytes=peak_memory_bytes(trainer.training_step.device),
            training_s=trainer.training_s,
            skipped_steps=trainer.training_step.guard.num_skipped,
            data_stages_s=meter.image_stage_s,
            batches_ready=meter.batches_ready,
        )
        meter.reset()
        self.restart()
        return record
