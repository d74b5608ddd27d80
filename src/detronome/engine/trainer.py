"""The training run: fit, epochs, steps, evaluation, checkpoints, resume, and what to do when a step goes wrong.

Nothing random is carried from step to step: data order, augmentation, dropout and noise follow from (seed, step), so
a resumed run continues bit for bit on a CPU. Over several ranks every decision is made from facts that all share.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from numpy.typing import NDArray

from detronome.data.prefetch import DeviceStream
from detronome.data.quarantine import Quarantine
from detronome.engine.checkpoint import Checkpoint
from detronome.engine.checkpoint_writer import CheckpointWriter
from detronome.engine.convergence import ConvergenceWatch
from detronome.engine.early_stop import BestMetric
from detronome.engine.evaluator import LossMeter, evaluate
from detronome.engine.events import (
    CheckpointFailed,
    Evaluated,
    Event,
    ImageQuarantined,
    MemorySplit,
    Observer,
    RolledBack,
    RunEnded,
    RunWarned,
)
from detronome.engine.ladder import Ladder, RollBack
from detronome.engine.log_window import LogWindow
from detronome.engine.micro_batches import MicroBatchSizes, OutOfMemoryAt
from detronome.engine.optim import load_optimizer_tensors, optimizer_tensors
from detronome.engine.panoptic_meter import PanopticMeter
from detronome.engine.prospects import Concern
from detronome.engine.recovery import Recovery
from detronome.engine.state import TrainingState
from detronome.engine.step import TrainingStep
from detronome.evaluation.detection import DetectionEvaluator
from detronome.losses.terms import BatchTotals
from detronome.models.detector import Detector
from detronome.runtime.device_clock import DeviceClock
from detronome.runtime.distributed import World
from detronome.runtime.monitor import SystemMonitor
from detronome.runtime.progress import Progress, Section, goodput
from detronome.runtime.signals import StopRequest
from detronome.types import Categories, EffectiveBatch

__all__ = ["FitResult", "RunPlan", "Trainer", "Validation"]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The length and rhythm of a run."""

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
    """This rank's images of the split; iterated once an evaluation."""
    evaluator: DetectionEvaluator
    max_detections: int
    quarantine: Quarantine
    """Counts the images that cannot be used."""
    sizes: MicroBatchSizes
    """How many images go through the model at once."""
    panoptic: PanopticMeter | None = None
    """Measures panoptic quality, where the model makes masks."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a run ended."""

    reason: Literal["finished", "early_stop", "interrupted"]
    state: TrainingState
    signal: str = ""
    """Name of the signal that interrupted it."""


class Trainer:
    """Trains a model.

    Args:
        step: the training step with model, optimiser, guard and average.
        plan: length and rhythm.
        batches: returns the stream of this rank's effective batches from a step on to the end of the run, one a step,
            without the steps given second.
        quarantine: counts the training images that cannot be used.
        validation: how to evaluate, or None to train without.
        categories: what the labels mean; travels with the weights.
        config: the resolved configuration as plain data; travels with the weights.
        checkpoints: writes them; used by the main rank.
        data_fingerprint: of the training annotations.
        best: follows the metric.
        watch: warns of a run that will not converge.
        ladder: decides about refused steps.
        activity: is told what is being done.
        device_clock: measures the device's part of it, where it works on its own.
        observers: are told everything; on the main rank.
        worst_case: given the model that is evaluated, tries what needs the most memory; runs before the first step.
        stop_when: given an evaluation, says whether training on is pointless: the run then ends as by an early stop.
            Asked on the main rank.
    """

    def __init__(
        self,
        *,
        step: TrainingStep,
        plan: RunPlan,
        batches: Callable[[int, Collection[int]], DeviceStream],
        quarantine: Quarantine,
        validation: Validation | None,
        categories: Categories,
        config: Mapping[str, Any],
        checkpoints: CheckpointWriter,
        data_fingerprint: str,
        best: BestMetric,
        watch: ConvergenceWatch,
        ladder: Ladder,
        activity: Progress,
        device_clock: DeviceClock | None,
        observers: Sequence[Observer],
        worst_case: Callable[[Detector], None] = lambda _: None,
        stop_when: Callable[[Evaluated], bool] = lambda _: False,
    ) -> None:
        self.training_step = step
        self.parallel = step.parallel
        self.world: World = step.parallel.world
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
        self.watch = watch
        self.ladder = ladder
        self.activity = activity
        self.observers = observers if self.world.is_main else ()
        self.recovery = Recovery(step, ladder, activity, steps_per_epoch=plan.steps_per_epoch, tell=self._tell)
        self.worst_case = worst_case
        self.stop_when = stop_when
        self.is_pointless = False
        self.step = 0
        self.evaluated_step = -1
        self.is_stopping = False
        self.excluded: set[int] = set()
        self.training_s = 0.0
        self.eval_s = 0.0
        self.best_metrics: dict[str, float] = {}
        self._best_detections: tuple[int, dict[str, NDArray[Any]]] | None = None
        self._monitor = SystemMonitor(step.device)
        self._window = LogWindow(step.device, activity, device_clock=device_clock, monitor=self._monitor)
        step.on_split = self._on_split

    # --- the run -----------------------------------------------------------------------------------------------------

    def fit(self) -> FitResult:
        """Train to the end of the plan, to an early stop, or to the user's interruption."""
        validation_batches = self.validation.batches if self.validation is not None else ()
        with StopRequest() as stop, self._monitor, _closing(validation_batches), self._writing_checkpoints():
            if self.world.is_main:
                self.checkpoints.folder.tidy()
            self.model.train()
            self.worst_case(self.parallel.for_evaluation(self.evaluated_model))
            if self.step == 0:
                self._save()  # A run killed before its first evaluation can be resumed too.
                self._warn(self.watch.before())
            elif self.world.on_main(self.checkpoints.folder.newest_step) != self.step:
                self._save()  # newer than the steps that are done again
            while not (self.is_stopping or self._is_over):
                try:
                    self._train(stop)
                except RollBack as request:
                    self._roll_back(request)
        reason: Literal["finished", "early_stop", "interrupted"] = "finished"
        if self.is_stopping:
            reason = "interrupted"
        elif self.step < self.plan.total_steps:
            reason = "early_stop"
        seconds = self.activity.seconds
        self._tell(
            RunEnded(
                step=self.step,
                epoch=self.epoch,
                reason=reason,
                best_step=self.best.step,
                best_metrics=self.best_metrics,
                training_s=self.training_s,
                eval_s=self.eval_s,
                wall_s=sum(seconds.values()),
                seconds=seconds,
                goodput=goodput(seconds),
            )
        )
        return FitResult(reason=reason, state=self._state(), signal=stop.signal)

    def _train(self, stop: StopRequest) -> None:
        """Train until the run is over or someone asks it to stop."""
        if self._needs_evaluation:  # it was interrupted
            self._evaluate(stop)
            self._save()
        last_saved = time.perf_counter()
        self._window.restart()
        with _closing(self.batches(self.step, self.excluded)) as batches:
            while not (self.is_stopping or self._is_over):
                if self.step not in self.excluded:
                    self._train_one(batches)
                self.step += 1

                is_due = time.perf_counter() - last_saved > self.plan.checkpoint_s
                self.is_stopping, is_due = self._agree_any(stop.is_set, is_due)
                is_saved = self.is_stopping or is_due or self._is_milestone
                if is_saved or self.step % self.plan.log_steps == 0:
                    self.recovery.examine()
                    self._log(batches)
                if self._needs_evaluation and not self.is_stopping:
                    self._evaluate(stop)
                if is_saved:
                    self._save()
                    last_saved = time.perf_counter()
                    self._window.restart()

    def _train_one(self, batches: DeviceStream) -> None:
        started = time.perf_counter()
        self.activity.begin_step(self.step)
        self.activity.enter(Section.DATA_WAIT, step=self.step, images=batches.next_image_ids)
        batch = next(batches)
        wait_s = time.perf_counter() - started
        totals = self._agree_totals(batch)
        if totals.num_images == 0:  # no image of this step could be used
            return
        result = self.training_step(
            batch,
            step=self.step,
            progress=self.step / self.plan.total_steps,
            totals=totals,
            before_update=self._before_update,
        )
        self._window.add(result, num_images=totals.num_images, wait_s=wait_s)

    @property
    def epoch(self) -> float:
        return self.step / self.plan.steps_per_epoch

    def evaluator_of(self, step: int) -> DetectionEvaluator | None:
        """Return the evaluator with what was found at this step, if that was the best evaluation and made by this
        process: checkpoints hold no detections. On the main rank, after `fit`."""
        if self.validation is None or self._best_detections is None or self._best_detections[0] != step:
            return None
        self.validation.evaluator.reset()
        self.validation.evaluator.add_arrays(self._best_detections[1])
        return self.validation.evaluator

    @property
    def evaluated_model(self) -> Detector:
        """The average where there is one, else the model itself."""
        return self.model if self.training_step.ema is None else self.training_step.ema.model

    @property
    def _is_over(self) -> bool:
        is_trained = self.step >= self.plan.total_steps and not self._needs_evaluation
        return is_trained or self.best.should_stop or self.is_pointless

    @property
    def _needs_evaluation(self) -> bool:
        return self.validation is not None and self._is_milestone and self.evaluated_step != self.step

    @property
    def _is_milestone(self) -> bool:
        return self.step > 0 and (self.step % self.plan.eval_steps == 0 or self.step == self.plan.total_steps)

    @contextmanager
    def _led_by_main(self) -> Iterator[None]:
        """The other ranks wait while the main one works."""
        section = self.activity.now.section if self.world.is_main else Section.AGREE
        with self.activity.within(section):
            yield

    def _agree_any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any rank has raised it."""
        self.activity.enter(Section.AGREE, step=self.step)
        return [bool(flag) for flag in self.world.max([float(flag) for flag in flags])]

    def _agree_totals(self, batch: EffectiveBatch) -> BatchTotals:
        """Return what the losses are divided by: sums over all ranks."""
        mine = BatchTotals.of(batch.targets, self.model.num_queries)
        self.activity.enter(Section.AGREE, step=self.step)
        return BatchTotals(*map(int, self.world.sum([mine.num_images, mine.num_objects, mine.num_matches])))

    # --- steps that went wrong ---------------------------------------------------------------------------------------

    def _before_update(self) -> bool:
        with self.activity.within(Section.CHECKPOINT, step=self.step):
            self.checkpoints.settle()
        return self.recovery.examine()

    def _roll_back(self, request: RollBack) -> None:
        """Go on from the last checkpoint: its steps are done again, what was learnt since then is kept."""
        with self.activity.within(Section.RECOVERY, step=self.step):
            from_step = self.step
            self.training_step.drop_gradients()
            self._report_bad_images(self.quarantine)
            until = min(request.excluded, default=None)
            with self._led_by_main():
                checkpoint = self.world.on_main(lambda: self.checkpoints.load_last(until=until))
            self._restore_training(checkpoint)
            self.watch.rewind(checkpoint.state.convergence, num_skipped=self.ladder.num_skipped)
            self.activity.void_since(self.step)
            self.training_step.lr_scale = request.lr_scale
            self.excluded |= {step for step in request.excluded if step >= self.step}
        self._tell(
            RolledBack(
                step=self.step,
                epoch=self.epoch,
                from_step=from_step,
                reason=request.reason,
                lr_scale=request.lr_scale,
                excluded=sorted(self.excluded),
            )
        )
        self._save()  # with what was learnt, and newer than those of the steps that are done again

    def _on_split(self, failure: OutOfMemoryAt, new_size: int) -> None:
        self._tell(
            MemorySplit(
                step=self.step,
                epoch=self.epoch,
                shape=failure.shape,
                old_size=failure.num_images,
                new_size=new_size,
                rank=failure.rank,
            )
        )

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run, at the beginning of a process. Every rank must be given the same."""
        state = checkpoint.state
        self._restore_training(checkpoint)
        for module in state.fp32_modules:
            self.recovery.compute_in_fp32(module)
        self.ladder.num_skipped = state.num_skipped
        self.ladder.num_consecutive = state.num_consecutive_skips
        self.ladder.num_rollbacks = state.num_rollbacks
        self.ladder.last_rewind, self.ladder.rewinds_in_row = state.last_rewind, state.rewinds_in_row
        self.ladder.fp32_modules = list(state.fp32_modules)
        self.ladder.lr_scale = self.training_step.lr_scale = state.lr_scale
        self.excluded = set(state.excluded)
        self.training_step.sizes.restore(state.micro_batch_sizes)
        self.quarantine.restore(state.quarantined)
        if self.validation is not None:
            self.validation.quarantine.restore(state.val_quarantined)
            self.validation.sizes.restore(state.eval_batch_sizes)
        self.training_step.loss_scale.restore(state.scaler)
        self.watch.restore(state.convergence)
        self.training_s, self.eval_s = state.training_s, state.eval_s

    def _restore_training(self, checkpoint: Checkpoint) -> None:
        """Take over what training changes: weights, average, optimiser, running means, best metric."""
        state, step = checkpoint.state, self.training_step
        self.parallel.load_weights(self.model, checkpoint.training or checkpoint.model)
        if step.ema is not None:
            self.parallel.load_weights(step.ema.model, checkpoint.model)
        load_optimizer_tensors(step.optimizer, self.model, checkpoint.optimizer or {})
        step.guard.restore(state.guard)
        self.best.restore(state.best)
        self.best_metrics = {n: math.nan if v is None else v for n, v in state.best_metrics.items()}
        self.step, self.evaluated_step = state.step, state.evaluated_step

    def _state(self) -> TrainingState:
        step = self.training_step
        return TrainingState(
            step=self.step,
            evaluated_step=self.evaluated_step,
            seconds=self.activity.seconds,
            saved_at=time.time(),
            training_s=self.training_s,
            eval_s=self.eval_s,
            num_skipped=self.ladder.num_skipped,
            num_consecutive_skips=self.ladder.num_consecutive,
            excluded=sorted(self.excluded),
            guard=step.guard.state(),
            lr_scale=step.lr_scale,
            num_rollbacks=self.ladder.num_rollbacks,
            last_rewind=self.ladder.last_rewind,
            rewinds_in_row=self.ladder.rewinds_in_row,
            fp32_modules=list(self.ladder.fp32_modules),
            micro_batch_sizes=step.sizes.state(),
            eval_batch_sizes=self.validation.sizes.state() if self.validation else {},
            scaler=step.loss_scale.state(),
            best=self.best.state(),
            best_metrics={n: None if math.isnan(v) else v for n, v in self.best_metrics.items()},
            convergence=self.watch.state(),
            data_fingerprint=self.data_fingerprint,
            quarantined=self.quarantine.image_ids,
            val_quarantined=self.validation.quarantine.image_ids if self.validation else [],
        )

    def _save(self) -> None:
        """Begin to write a checkpoint. Every rank takes part in gathering what is spread over them."""
        with self.activity.within(Section.CHECKPOINT, step=self.step):
            has_ema = self.training_step.ema is not None
            checkpoint = Checkpoint(
                config=self.config,
                categories=self.categories,
                state=self._state(),
                model=self.parallel.weights(self.evaluated_model),
                training=self.parallel.weights(self.model) if has_ema else None,
                optimizer=optimizer_tensors(self.training_step.optimizer, self.model),
            )
            if self.step == 0:
                with self._led_by_main():
                    self.world.on_main(lambda: self.checkpoints.save_now(checkpoint, is_best=False))
            elif self.world.is_main:
                self.checkpoints.save(checkpoint, is_best=self.best.step == self.step)
        self._report_failed_checkpoints()

    @contextmanager
    def _writing_checkpoints(self) -> Iterator[None]:
        is_sound = False
        try:
            yield
            is_sound = True
        finally:
            try:
                with self.activity.within(Section.CHECKPOINT, step=self.step):
                    self.checkpoints.close(raise_last=is_sound)
            finally:
                self._report_failed_checkpoints()

    def _report_failed_checkpoints(self) -> None:
        for failure in self.checkpoints.drain_failures():
            lost = "; the best weights so far are not on disk" if failure.is_best else ""
            epoch = failure.step / self.plan.steps_per_epoch
            self._tell(CheckpointFailed(step=failure.step, epoch=epoch, reason=failure.reason + lost))

    # --- evaluation and what is told ---------------------------------------------------------------------------------

    def _evaluate(self, stop: StopRequest) -> None:
        """Evaluate, choose the best, tell. A request to stop ends it without a result: it is made anew on resume."""
        validation = self.validation
        assert validation is not None
        started = time.perf_counter()
        with self.activity.within(Section.EVALUATION, step=self.step):
            losses = LossMeter(self.training_step.criterion, progress=self.step / self.plan.total_steps)
            metrics = evaluate(
                self.parallel.for_evaluation(self.evaluated_model),
                _until(stop, validation.batches),
                validation.evaluator,
                categories=self.categories,
                max_detections=validation.max_detections,
                precision=self.training_step.precision,
                device=self.training_step.device,
                losses=losses,
                panoptic=validation.panoptic,
                sizes=validation.sizes,
                on_split=self._on_split,
                world=self.world,
                activity=self.activity,
            )
        (self.is_stopping,) = self._agree_any(stop.is_set)
        if self.is_stopping:
            return
        self.evaluated_step = self.step
        seconds = time.perf_counter() - started
        self.eval_s += seconds
        self._report_bad_images(validation.quarantine)
        is_best = self.best.update(metrics.numbers[self.plan.metric], step=self.step)
        if is_best:
            self.best_metrics = dict(metrics.numbers)
            self._best_detections = (self.step, validation.evaluator.to_arrays())
        evaluated = Evaluated(
            step=self.step,
            epoch=self.epoch,
            metrics=metrics.numbers,
            per_class_ap=metrics.per_class_ap,
            is_best=is_best,
            losses=losses.sums.means(),
            eval_s=seconds,
            training_s=self.training_s,
        )
        self._tell(evaluated)
        with self._led_by_main():
            self.is_pointless = self.world.on_main(lambda: self.stop_when(evaluated))
        self._warn(self.watch.add_evaluation(evaluated))
        self._window.restart()

    def _log(self, batches: DeviceStream) -> None:
        self.activity.enter(Section.LOG, step=self.step)
        self._report_bad_images(self.quarantine)
        record = self._window.close(
            batches.meter,
            step=self.step,
            epoch=self.epoch,
            learning_rates={
                group["name"]: group["lr"]
                for group in self.training_step.optimizer.param_groups
                if not group["name"].endswith("_no_decay")
            },
            training_s=self.training_s,
            skipped_steps=self.ladder.num_skipped,
        )
        if record is None:
            return
        self.training_s = record.training_s
        self._tell(record)
        self._warn(self.watch.add_log(record))

    def _report_bad_images(self, quarantine: Quarantine) -> None:
        """Tell of the images met since the last time, over all ranks.

        Raises:
            DataError: too many, on every rank.
        """
        if self.world.size > 1:
            with self.activity.within(Section.AGREE):
                everywhere = self.world.gather(quarantine.take_new())
            quarantine.merge(image for images in everywhere for image in images)
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

    def _warn(self, concerns: Iterable[Concern]) -> None:
        for concern in concerns:
            self._tell(
                RunWarned(step=self.step, epoch=self.epoch, subject=concern.subject, what=concern.what, fix=concern.fix)
            )

    def _tell(self, event: Event) -> None:
        for observer in self.observers:
            observer(event)


_T = TypeVar("_T")


def _until(stop: StopRequest, batches: Iterable[_T]) -> Iterator[_T]:
    for batch in batches:
        if stop.is_set:
            return
        yield batch


@contextmanager
def _closing(batches: _T) -> Iterator[_T]:
    """End loader workers also when the run ends with an error."""
    try:
        yield batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
