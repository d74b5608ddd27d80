"""Put a training run together from its resolved configuration: the only file of the engine that reads one,
beside `resolve.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from detronome.config.convert import to_dict
from detronome.config.schema import DetrConfig, RunConfig, ScheduleConfig
from detronome.data.build import build_eval_batches, build_quarantine, build_train_batches
from detronome.data.prefetch import DeviceStream
from detronome.data.sampler import steps_per_epoch
from detronome.data.split import DataSplit
from detronome.engine import schedule as schedules
from detronome.engine.checkpoint import Checkpoint, CheckpointFolder
from detronome.engine.early_stop import BestMetric
from detronome.engine.ema import ModelEma
from detronome.engine.events import Observer, RunStarted
from detronome.engine.guard import StepGuard
from detronome.engine.optim import build_optimizer
from detronome.engine.resolve import Resolved
from detronome.engine.schedule import Schedule
from detronome.engine.step import TrainingStep
from detronome.engine.trainer import RunPlan, Trainer, Validation
from detronome.errors import CheckpointError
from detronome.evaluation.detection import DetectionEvaluator
from detronome.losses.build import build_criterion
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.runtime.device import describe_environment
from detronome.runtime.precision import Precision
from detronome.runtime.seeding import seed_torch
from detronome.types import Categories

__all__ = ["build_schedule", "build_trainer"]


def build_trainer(
    resolved: Resolved,
    *,
    train: DataSplit,
    val: DataSplit | None,
    run_dir: Path,
    observers: Sequence[Observer],
    start_from: Checkpoint | None = None,
    resume_from: Checkpoint | None = None,
) -> Trainer:
    """Return a trainer at its first step, or where a checkpoint left it.

    Args:
        resolved: configuration, device and reasons.
        train: the split to learn from.
        val: the split to evaluate on, if any.
        run_dir: checkpoints go into its `checkpoints`.
        observers: are told how the run goes, beginning with what it is.
        start_from: weights to fine-tune.
        resume_from: the checkpoint of this same run to go on from.

    Raises:
        CheckpointError: the checkpoint's classes or data differ from the run's.
    """
    config, device = resolved.config, resolved.device
    source = resume_from or start_from
    categories = source.categories if source else train.index.categories
    assert config.train.epochs != "auto" and config.train.eval_epochs != "auto"
    assert config.batch.micro_batch_size != "auto" and config.data.workers != "auto"
    num_steps = steps_per_epoch(len(train.index), config.batch.global_batch_size)
    plan = RunPlan(
        seed=config.train.seed,
        steps_per_epoch=num_steps,
        total_steps=config.train.epochs * num_steps,
        log_steps=config.train.log_steps,
        eval_steps=config.train.eval_epochs * num_steps,
        checkpoint_s=config.train.checkpoint_minutes * 60,
        metric=config.train.metric,
    )
    model = _model(config, categories, source).to(device)
    workers = config.data.workers
    quarantine = build_quarantine(config, train)
    trainer = Trainer(
        step=_training_step(resolved, model, plan),
        plan=plan,
        batches=lambda start_step: DeviceStream(
            build_train_batches(
                config,
                train,
                categories,
                start_step=start_step,
                total_steps=plan.total_steps,
                workers=workers,
                device=device,
                quarantine=quarantine,
            ),
            device,
        ),
        quarantine=quarantine,
        validation=_validation(config, val, categories, workers, device) if val else None,
        categories=categories,
        config=to_dict(config),
        checkpoints=CheckpointFolder(run_dir / "checkpoints"),
        data_fingerprint=train.index.fingerprint,
        best=BestMetric(patience=config.train.early_stop_patience, min_delta=config.train.early_stop_min_delta),
        observers=observers,
    )
    if resume_from is not None:
        _check_same_data(resume_from, train)
        trainer.resume(resume_from)
    started = RunStarted(
        step=trainer.step,
        epoch=trainer.epoch,
        preset=config.preset,
        total_steps=plan.total_steps,
        total_epochs=config.train.epochs,
        steps_per_epoch=num_steps,
        global_batch_size=config.batch.global_batch_size,
        num_train_images=len(train.index),
        num_val_images=len(val.index) if val else 0,
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        resolved=resolved.reasons,
        environment=describe_environment(device),
    )
    for observer in observers:
        observer(started)
    return trainer


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
    if source is not None and isinstance(model_config, DetrConfig):
        # The checkpoint holds all the weights: nothing to download.
        model_config = replace(model_config, backbone_weights="none")
    model = build_model(model_config, len(categories))
    if source is not None:
        try:
            model.load_state_dict(source.model)
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint's weights do not fit the model that the settings describe: {error}",
                where="model",
                fix="leave the model.* settings as the checkpoint has them, or train from a preset",
            ) from error
    return model


def _training_step(resolved: Resolved, model: Detector, plan: RunPlan) -> TrainingStep:
    config = resolved.config
    assert config.batch.micro_batch_size != "auto"
    precision: Precision = "fp32" if config.train.precision == "auto" else config.train.precision
    return TrainingStep(
        model=model,
        criterion=build_criterion(config.loss),
        optimizer=build_optimizer(
            model,
            lr=config.optim.lr,
            backbone_lr=config.optim.backbone_lr,
            weight_decay=config.optim.weight_decay,
            decay_one_dimensional=config.optim.decay_one_dimensional,
        ),
        schedule=build_schedule(config.schedule, steps_per_epoch=plan.steps_per_epoch, total_steps=plan.total_steps),
        guard=StepGuard(model, max_consecutive=config.train.max_skipped_steps),
        ema=ModelEma(model, decay=config.train.ema_decay) if config.train.ema_decay else None,
        micro_batch_size=config.batch.micro_batch_size,
        clip_norm=config.optim.clip_norm,
        precision=precision,
        device=resolved.device,
    )


def _validation(
    config: RunConfig, val: DataSplit, categories: Categories, workers: int, device: torch.device
) -> Validation:
    assert config.eval.batch_size != "auto"
    quarantine = build_quarantine(config, val)
    return Validation(
        batches=build_eval_batches(
            config,
            val,
            categories,
            batch_size=config.eval.batch_size,
            workers=workers,
            device=device,
            quarantine=quarantine,
        ),
        evaluator=DetectionEvaluator(val.files.annotation_file, unknown_categories="drop"),
        max_detections=config.eval.max_detections,
        quarantine=quarantine,
    )


def _check_same_data(checkpoint: Checkpoint, train: DataSplit) -> None:
    if checkpoint.state.data_fingerprint != train.index.fingerprint:
        raise CheckpointError(
            "the training annotations have changed since the checkpoint was written",
            where=str(train.files.annotation_file),
            fix="restore the annotations to resume exactly, or start a new run from the checkpoint: "
            "detronome train DATA --model RUN",
        )
