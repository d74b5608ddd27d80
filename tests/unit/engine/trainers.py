"""Real trainers, small enough to train in a fraction of a second, and all that they have learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detronome.config.convert import apply_overrides
from detronome.config.presets import preset
from detronome.data.split import open_split
from detronome.engine.build import build_trainer
from detronome.engine.checkpoint import Checkpoint
from detronome.engine.events import Event, Observer
from detronome.engine.optim import optimizer_tensors
from detronome.engine.resolve import resolve
from detronome.engine.trainer import Trainer
from detronome.runtime.distributed import ALONE, World
from detronome.runtime.precision import Precision

__all__ = ["CLASSIC", "Crash", "crash_when", "differing", "learnt", "multiply_loss", "tiny_trainer"]

CLASSIC: Mapping[str, Any] = {
    "model.backbone_weights": "none",
    "model.backbone_norm": "trainable",
    "model.frozen_stages": 4,
    "model.hidden_dim": 16,
    "model.num_heads": 2,
    "model.ffn_dim": 16,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 2,
    "model.num_queries": 10,
    "augment.sizes": [32],
    "augment.max_size": 48,
    "augment.crop": "none",
    "augment.eval_size": 32,
    "augment.eval_max_size": 48,
    "train.log_steps": 1,
    "train.eval_epochs": 1,
    "train.ema_decay": 0.9,
    "train.device": "cpu",
    "data.workers": 0,
}
"""Classic DETR on ResNet-18, of which the last stage is trained; with dropout, an average and BatchNorm statistics."""


def tiny_trainer(
    data: Path,
    run_dir: Path,
    settings: Mapping[str, Any],
    *,
    model: str = "nano",
    epochs: int = 1,
    precision: Precision = "fp32",
    validate: bool = True,
    world: World = ALONE,
    observers: Sequence[Observer] = (),
    resume_from: Checkpoint | None = None,
) -> Trainer:
    """Return a trainer as the api builds it; 6 steps an epoch on the blocks.

    Args:
        data: the data folder.
        run_dir: for its checkpoints.
        settings: dotted settings on top of the preset.
        model: the preset.
        epochs: length of the run.
        precision: fp16 too, which a run on a CPU would refuse.
        validate: with a validation split.
        world: the ranks.
        observers: hear the events.
        resume_from: a checkpoint of the same run.
    """
    short = {"batch.global_batch_size": 4, "batch.micro_batch_size": 4, "train.epochs": epochs, "data.root": str(data)}
    config = apply_overrides(preset(model), {**short, **settings})
    train = open_split(data, "train")
    resolved = resolve(config, train, world)
    resolved.config = replace(resolved.config, train=replace(resolved.config.train, precision=precision))
    return build_trainer(
        resolved,
        train=train,
        val=open_split(data, "val") if validate else None,
        run_dir=run_dir,
        observers=observers,
        world=world,
        resume_from=resume_from,
    )


def learnt(trainer: Trainer) -> dict[str, Tensor]:
    """Return copies of all that training changes: weights and statistics, moments, average, the guard's means."""
    step = trainer.training_step
    tensors = {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
    tensors |= {f"optimizer/{n}": value for n, value in optimizer_tensors(step.optimizer, trainer.model).items()}
    if step.ema is not None:
        tensors |= {f"average/{name}": value for name, value in step.ema.model.state_dict().items()}
    tensors |= {f"guard/{name}": torch.tensor(value) for name, value in step.guard.state().items()}
    return {name: value.detach().clone() for name, value in tensors.items()}


def differing(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that are not equal bit for bit, or not finite."""
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not torch.equal(value, theirs[name]) or not value.isfinite().all()]


def multiply_loss(trainer: Trainer, factor: Callable[[int], float]) -> None:
    """Multiply the loss of each step by a factor, given the step's number; 1 leaves it as it is, bit for bit."""
    criterion = trainer.training_step.criterion
    total = criterion.total
    criterion.total = lambda losses: total(losses) * factor(trainer.step)  # type: ignore[method-assign]


class Crash(Exception):  # noqa: N818 - it is no error
    """The end of a process, as far as a trainer can tell."""


def crash_when(is_time: Callable[[Event], bool]) -> Observer:
    """Return an observer that raises at the first event for which it is time."""

    def observer(event: Event) -> None:
        if is_time(event):
            raise Crash

    return observer
