"""Put a training run together from its resolved configuration: the only file of the engine that reads one,
beside `resolve.py`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from detronome.config.convert import to_dict
from detronome.config.schema import DetrConfig, ModelConfig, RunConfig, ScheduleConfig, WithPretrainedBackbone
from detronome.data.build import (
    augment_policy,
    build_eval_batches,
    build_quarantine,
    build_train_batches,
    padded_shapes,
)
from detronome.data.largest_shapes import largest_eval_shape, largest_training_shape
from detronome.data.prefetch import DeviceStream
from detronome.data.quarantine import Quarantine
from detronome.data.sampler import Share, steps_per_epoch
from detronome.data.split import DataSplit
from detronome.engine import schedule as schedules
from detronome.engine.checkpoint import Checkpoint, CheckpointFolder
from detronome.engine.checkpoint_writer import CheckpointWriter
from detronome.engine.compilation import compile_detectors, compiler_warning
from detronome.engine.convergence import ConvergenceWatch
from detronome.engine.early_stop import BestMetric
from detronome.engine.ema import ModelEma
from detronome.engine.evaluator import detect_batch, detect_in_pieces
from detronome.engine.events import Evaluated, Observer, RunStarted
from detronome.engine.fine_tune import fine_tuned_categories, new_classes, with_new_head
from detronome.engine.guard import StepGuard
from detronome.engine.ladder import Ladder
from detronome.engine.micro_batches import MicroBatchSizes
from detronome.engine.optim import build_optimizer, freeze_backbone
from detronome.engine.panoptic_meter import PanopticMeter
from detronome.engine.parallel import Parallel, Replicated, Sharded
from detronome.engine.prospects import DataFacts, RunFacts
from detronome.engine.resolve import Resolved
from detronome.engine.schedule import Schedule
from detronome.engine.state import TrainingState
from detronome.engine.step import TrainingStep
from detronome.engine.trainer import RunPlan, Trainer, Validation
from detronome.engine.worst_case import WorstCase, try_worst_cases, worst_eval_batch, worst_training_batch
from detronome.errors import CheckpointError, ConfigError, first_few
from detronome.evaluation.detection import DetectionEvaluator
from detronome.losses.build import build_criterion
from detronome.losses.terms import BatchTotals
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.models.dfine.model import DFINE
from detronome.models.panoptic.model import PanopticDETR
from detronome.runtime.device import describe_environment
from detronome.runtime.device_clock import DeviceClock
from detronome.runtime.distributed import ALONE, World
from detronome.runtime.precision import Precision
from detronome.runtime.progress import Progress
from detronome.runtime.seeding import seed_torch
from detronome.types import Categories

__all__ = ["build_panoptic_meter", "build_plan", "build_schedule", "build_step", "build_stream", "build_trainer"]

_MOST_CHARS = 200
"""Of a line of an error that is not ours."""


def build_trainer(
    resolved: Resolved,
    *,
    train: DataSplit,
    val: DataSplit | None,
    run_dir: Path,
    observers: Sequence[Observer],
    world: World = ALONE,
    start_from: Checkpoint | None = None,
    resume_from: Checkpoint | None = None,
    stop_when: Callable[[Evaluated], bool] = lambda _: False,
) -> Trainer:
    """Return a trainer at its first step, or where a checkpoint left it.

    Args:
        resolved: configuration, device and reasons.
        train: the split to learn from.
        val: the split to evaluate on, if any.
        run_dir: checkpoints go into its `checkpoints`.
        observers: are told how the run goes, beginning with what it is, on the main rank.
        world: the ranks; all build the same. Alone by default.
        start_from: weights to fine-tune.
        resume_from: the checkpoint of this same run to go on from.
        stop_when: given an evaluation, says whether training on is pointless.

    Raises:
        CheckpointError: the checkpoint's classes or data differ from the run's.
    """
    config, device = resolved.config, resolved.device
    source = resume_from or start_from
    categories = _categories(train.index.categories, start_from=start_from, resume_from=resume_from)
    plan = build_plan(config, len(train.index))
    state = resume_from.state if resume_from else TrainingState()
    device_clock = DeviceClock(device) if device.type == "cuda" else None
    marker = device_clock.mark if device_clock is not None else None
    activity = Progress(state.seconds, saved_at=state.saved_at, marker=marker)

    def warn_of_compiler(reason: str) -> None:
        warned = compiler_warning(reason, step=trainer.step, epoch=trainer.epoch)
        for observer in trainer.observers:
            observer(warned)

    step = build_step(
        resolved,
        categories,
        plan,
        world=world,
        source=source,
        activity=activity,
        on_compiler_failure=warn_of_compiler,
    )
    model = step.model
    quarantine = build_quarantine(config, train)
    trainer = Trainer(
        step=step,
        plan=plan,
        batches=lambda start_step, excluded: build_stream(
            resolved,
            train,
            categories,
            start_step=start_step,
            total_steps=plan.total_steps,
            world=world,
            quarantine=quarantine,
            excluded=excluded,
        ),
        quarantine=quarantine,
        validation=_validation(config, val, categories, device, Share(world.rank, world.size)) if val else None,
        categories=categories,
        config=to_dict(config),
        checkpoints=CheckpointWriter(
            # A rewind goes back to before the batches that it leaves out, and the last checkpoint may lie among them.
            CheckpointFolder(
                run_dir / "checkpoints",
                max(config.train.keep_checkpoints, 2 if config.guard.on_spike == "rewind" else 1),
            ),
            parameters=[name for name, _ in model.named_parameters()],
        ),
        data_fingerprint=train.index.fingerprint,
        best=BestMetric(patience=config.train.early_stop_patience, min_delta=config.train.early_stop_min_delta),
        watch=ConvergenceWatch(_facts(config, train, step, plan, is_fine_tuned=start_from is not None)),
        ladder=Ladder(
            on_spike=config.guard.on_spike,
            rewind_steps=config.guard.rewind_steps,
            max_skipped_steps=config.guard.max_skipped_steps,
            max_rollbacks=config.guard.max_rollbacks,
            rollback_lr_factor=config.guard.rollback_lr_factor,
        ),
        activity=activity,
        device_clock=device_clock,
        observers=observers,
        stop_when=stop_when,
    )
    if config.train.worst_case_first:
        trainer.worst_case = _worst_case(config, train, val, categories, trainer)
    if resume_from is not None:
        _check_same_data(resume_from, train)
        trainer.resume(resume_from)
    started = RunStarted(
        step=trainer.step,
        epoch=trainer.epoch,
        preset=config.preset,
        total_steps=plan.total_steps,
        total_epochs=plan.total_steps // plan.steps_per_epoch,
        steps_per_epoch=plan.steps_per_epoch,
        global_batch_size=config.batch.global_batch_size,
        num_train_images=len(train.index),
        num_val_images=len(val.index) if val else 0,
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        resolved=resolved.reasons,
        environment=describe_environment(device),
        num_ranks=trainer.world.size,
    )
    for observer in trainer.observers:
        observer(started)
    return trainer


def build_plan(config: RunConfig, num_images: int) -> RunPlan:
    """Return the length and rhythm of a run over so many training images; the configuration is resolved."""
    assert config.train.epochs != "auto" and config.train.eval_epochs != "auto"
    num_steps = steps_per_epoch(num_images, config.batch.global_batch_size)
    return RunPlan(
        steps_per_epoch=num_steps,
        total_steps=config.train.epochs * num_steps,
        log_steps=config.train.log_steps,
        eval_steps=config.train.eval_epochs * num_steps,
        checkpoint_s=config.train.checkpoint_minutes * 60,
        metric=config.train.metric,
    )


def build_step(
    resolved: Resolved,
    categories: Categories,
    plan: RunPlan,
    *,
    world: World = ALONE,
    source: Checkpoint | None = None,
    activity: Progress | None = None,
    on_compiler_failure: Callable[[str], None] = warnings.warn,
) -> TrainingStep:
    """Return a run's training step, with a new model on its device.

    Args:
        resolved: configuration, device and reasons.
        categories: of the model.
        plan: the learning rate follows its length.
        world: the ranks; all build the same.
        source: weights for the model.
        activity: is told what is being done.
        on_compiler_failure: is told why the model is not compiled although that was asked for.

    Raises:
        CheckpointError: the weights do not fit the model.
    """
    model = _model(resolved.config, categories, source).to(resolved.device)
    step = _training_step(resolved, model, plan, world, activity or Progress())
    if resolved.config.train.compile:
        averages = [step.ema.model] if step.ema else []
        compile_detectors([step.model, *averages], on_failure=on_compiler_failure)
    return step


def build_stream(
    resolved: Resolved,
    train: DataSplit,
    categories: Categories,
    *,
    start_step: int,
    total_steps: int,
    world: World = ALONE,
    quarantine: Quarantine | None = None,
    excluded: Collection[int] = (),
) -> DeviceStream:
    """Return this rank's effective batches on the device, one a step from `start_step` to `total_steps`; close it.

    Args:
        resolved: configuration, device and reasons.
        train: the split to learn from.
        categories: of the model.
        start_step: first step, counted from 0.
        total_steps: end of the run.
        world: the ranks.
        quarantine: counts the images that cannot be used.
        excluded: steps that are passed over.
    """
    assert resolved.config.data.workers != "auto"
    batches = build_train_batches(
        resolved.config,
        train,
        categories,
        start_step=start_step,
        total_steps=total_steps,
        workers=resolved.config.data.workers,
        device=resolved.device,
        quarantine=quarantine,
        share=Share(world.rank, world.size),
        excluded=excluded,
        local_size=world.local_size,
    )
    return DeviceStream(batches, resolved.device)


def build_schedule(config: ScheduleConfig, *, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Return the learning-rate factor as a function of the step."""
    match config.kind:
        case "constant":
            schedule = schedules.constant()
        case "step":
            schedule = schedules.step_drops(period_steps=config.drop_epochs[0] * steps_per_epoch, gamma=config.gamma)
        case "multistep":
            milestones = [epoch * steps_per_epoch for epoch in config.drop_epochs]
            schedule = schedules.multistep(milestone_steps=milestones, gamma=config.gamma)
        case "exponential":
            schedule = schedules.exponential(gamma=config.gamma, steps_per_epoch=steps_per_epoch)
        case "cyclical":
            cycle_steps = round(config.cycle_epochs * steps_per_epoch)
            schedule = schedules.cyclical(cycle_steps=cycle_steps, min_factor=config.min_factor)
        case "cosine":
            schedule = schedules.cosine(total_steps=total_steps, min_factor=config.min_factor)
        case "one_cycle":
            schedule = schedules.one_cycle(
                total_steps=total_steps, peak_fraction=config.peak_fraction, min_factor=config.min_factor
            )
    return schedules.with_warmup(schedule, warmup_steps=config.warmup_steps)


def _model(config: RunConfig, categories: Categories, source: Checkpoint | None) -> Detector:
    seed_torch("init", config.train.seed)
    model_config = config.model
    if source is not None and isinstance(model_config, WithPretrainedBackbone):
        # The checkpoint holds all the weights: nothing to download.
        model_config = replace(model_config, backbone_weights="none")
    model = build_model(
        model_config,
        len(categories),
        checkpoint_activations=config.train.checkpoint_activations,
        channels_last=config.train.channels_last,
    )
    if source is not None:
        part, weights = _part_of(model, source.model), source.model
        try:
            if source.categories != categories:
                head = _head_of(model_config, len(categories), weights)
                _check_new_head_learns(model, part, head, config.train.freeze, source.categories, categories)
                weights = with_new_head(weights, part.state_dict(), head=head, held=source.categories, data=categories)
            part.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint's weights do not fit the model that the settings describe: {_in_short(error)}",
                where="model",
                fix="leave the model.* settings as the checkpoint has them, or train from a preset",
            ) from error
    return model


def _in_short(error: RuntimeError) -> str:
    """Return what torch says of weights that do not fit, which has a line for each tensor."""
    lines = [line.strip()[:_MOST_CHARS] for line in str(error).splitlines()]
    return first_few(lines[1:] or lines, most=3, separator="; ")


def _categories(data: Categories, *, start_from: Checkpoint | None, resume_from: Checkpoint | None) -> Categories:
    """Return what the model's labels mean."""
    if resume_from is not None:
        return resume_from.categories
    return data if start_from is None else fine_tuned_categories(start_from.categories, data)


def _head_of(config: ModelConfig, num_classes: int, weights: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the tensors that have another shape in a model of one class more, by their names in `weights`."""
    with torch.device("meta"):
        these, more = (_part_of(build_model(config, n), weights).state_dict() for n in (num_classes, num_classes + 1))
    return frozenset(name for name, value in these.items() if value.shape != more[name].shape)


def _check_new_head_learns(
    model: Detector, part: nn.Module, head: frozenset[str], frozen: Sequence[str], held: Categories, data: Categories
) -> None:
    prefix = "" if part is model else "detr."
    keeping = [name for name in frozen if any(f"{prefix}{tensor}".startswith(f"{name}.") for tensor in head)]
    new = new_classes(held, data)
    if keeping and new:
        raise ConfigError(
            f"the weights do not know {first_few(new)}, and with {first_few(keeping)} frozen the model cannot learn "
            "them",
            where="train.freeze",
            fix="train on this data without freezing first, or freeze parts without the classification head",
        )


def _part_of(model: Detector, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return what the weights are for: the detector in a model with masks, where they are those of a run without; its
    mask head begins anew then."""
    is_without_masks = not any(name.startswith("mask_head.") for name in weights)
    return model.detr if isinstance(model, PanopticDETR) and is_without_masks else model


def _training_step(
    resolved: Resolved, model: Detector, plan: RunPlan, world: World, activity: Progress
) -> TrainingStep:
    config, device = resolved.config, resolved.device
    assert config.batch.micro_batch_size != "auto"
    precision: Precision = "fp32" if config.train.precision == "auto" else config.train.precision
    if config.optim.backbone_lr == 0:
        freeze_backbone(model)
    model.freeze(config.train.freeze)
    # Before the model is cut into parts that cannot be copied.
    ema = ModelEma(model, decay=config.train.ema_decay) if config.train.ema_decay else None
    parallel = _parallel(config, model, ema, world, device)
    return TrainingStep(
        parallel=parallel,
        criterion=build_criterion(
            config.loss, with_masks=isinstance(model, PanopticDETR), with_edges=isinstance(model, DFINE)
        ),
        optimizer=build_optimizer(
            model,
            lr=config.optim.lr,
            backbone_lr=config.optim.backbone_lr,
            weight_decay=config.optim.weight_decay,
            decay_one_dimensional=config.optim.decay_one_dimensional,
        ),
        schedule=build_schedule(config.schedule, steps_per_epoch=plan.steps_per_epoch, total_steps=plan.total_steps),
        guard=StepGuard(
            model,
            device,
            loss_spike_factor=config.guard.loss_spike_factor,
            gradient_spike_factor=config.guard.gradient_spike_factor,
        ),
        ema=ema,
        sizes=MicroBatchSizes(config.batch.micro_batch_size),
        clip_norm=config.optim.clip_norm,
        precision=precision,
        device=device,
        seed=config.train.seed,
        activity=activity,
    )


def _parallel(config: RunConfig, model: Detector, ema: ModelEma | None, world: World, device: torch.device) -> Parallel:
    if world.size == 1:
        return Parallel(model, world)
    if config.train.parallel != "fsdp":
        return Replicated(model, world)
    parallel = Sharded(model, world, device.type)
    if ema is not None:
        parallel.shard(ema.model)
    return parallel


def _facts(config: RunConfig, train: DataSplit, step: TrainingStep, plan: RunPlan, *, is_fine_tuned: bool) -> RunFacts:
    """Return what is known before the run of whether it can converge."""
    model = config.model
    return RunFacts(
        data=DataFacts.of(train.index, num_queries=step.model.num_queries),
        family=model.family,
        is_fine_tuned=is_fine_tuned,
        is_backbone_pretrained=isinstance(model, WithPretrainedBackbone) and model.backbone_weights != "none",
        is_backbone_fixed=isinstance(model, WithPretrainedBackbone)
        and (model.backbone_norm == "frozen" or model.frozen_stages > 0),
        num_queries=step.model.num_queries,
        total_steps=plan.total_steps,
        warmup_steps=config.schedule.warmup_steps,
        lr=config.optim.lr,
        loss_weights=step.criterion.evaluation_weights,
    )


def _validation(
    config: RunConfig, val: DataSplit, categories: Categories, device: torch.device, share: Share
) -> Validation:
    assert config.eval.batch_size != "auto" and config.data.workers != "auto"
    quarantine = build_quarantine(config, val)
    return Validation(
        batches=build_eval_batches(
            config,
            val,
            categories,
            batch_size=config.eval.batch_size,
            workers=config.data.workers,
            device=device,
            quarantine=quarantine,
            share=share,
        ),
        evaluator=DetectionEvaluator(val.box_truth(), unknown_categories="drop"),
        max_detections=config.eval.max_detections,
        quarantine=quarantine,
        sizes=MicroBatchSizes(config.eval.batch_size, purpose="evaluation"),
        panoptic=build_panoptic_meter(config, val, categories),
    )


def build_panoptic_meter(config: RunConfig, split: DataSplit, categories: Categories) -> PanopticMeter | None:
    """Return what measures panoptic quality on a split; None for models without masks and splits without maps."""
    if split.maps is None or not isinstance(config.model, DetrConfig) or not config.model.mask_head:
        return None
    return PanopticMeter(split, categories, min_score=config.eval.panoptic_score)


def _worst_case(
    config: RunConfig, train: DataSplit, val: DataSplit | None, categories: Categories, trainer: Trainer
) -> Callable[[Detector], None]:
    """Return what runs the largest shapes with the most objects through the step and the evaluation."""
    policy, buckets = augment_policy(config.augment), padded_shapes(config)
    step, world = trainer.training_step, trainer.world
    share = math.ceil(config.batch.global_batch_size / world.size)

    def run(evaluated: Detector) -> None:
        cases = []
        shape_hw = largest_training_shape(policy, train.index.sizes_hw, buckets, num_images=share)
        if shape_hw is not None:
            batch = worst_training_batch(
                shape_hw=shape_hw,
                num_images=share,
                objects_per_image=train.index.num_objects_per_image,
                num_classes=len(categories),
                with_masks=train.maps is not None,
            )
            totals = BatchTotals.of(batch.targets, step.model.num_queries)
            gradients = partial(step.gradients, totals=totals, step=trainer.step, progress=0.0)
            cases.append(WorstCase(phase="training", model=step.model, batch=batch, run=gradients))
        shape_hw = largest_eval_shape(policy, val.index.sizes_hw, buckets) if val is not None else None
        if shape_hw is not None and trainer.validation is not None:
            sizes = trainer.validation.sizes
            detect = partial(
                detect_batch,
                evaluated,
                categories=categories,
                max_detections=config.eval.max_detections,
                precision=step.precision,
                device=step.device,
            )
            cases.append(
                WorstCase(
                    phase="evaluation",
                    model=evaluated,
                    batch=worst_eval_batch(shape_hw=shape_hw, num_images=sizes.size),
                    run=lambda batch: detect_in_pieces(
                        batch, detect, sizes, device=step.device, on_split=step.on_split, rank=world.rank
                    ),
                )
            )
        step.activity = Progress()  # a trial is no step: it belongs to the start
        try:
            try_worst_cases(cases, optimizer=step.optimizer, device=step.device)
        finally:
            step.activity = trainer.activity

    return run


def _check_same_data(checkpoint: Checkpoint, train: DataSplit) -> None:
    if checkpoint.state.data_fingerprint != train.index.fingerprint:
        raise CheckpointError(
            "the training annotations have changed since the checkpoint was written",
            where=str(train.files.annotation_file),
            fix="restore the annotations to resume exactly, or start a new run from the checkpoint: "
            "detronome train DATA --model RUN",
        )
