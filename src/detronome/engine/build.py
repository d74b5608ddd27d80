"""Build schedule and batch arithmetic from the configuration, resolving every `auto` with its reason."""

from __future__ import annotations

import math

import torch

from detronome.config.schema import RunConfig, ScheduleConfig
from detronome.engine import schedule as schedules
from detronome.engine.schedule import Schedule
from detronome.errors import ConfigError

__all__ = ["build_schedule", "resolve_epochs", "resolve_eval_epochs", "resolve_micro_batch_size"]

_STEPS_TO_LEARN = 3500
"""Updates after which small detectors trained from scratch had levelled off on the data sets measured."""


def build_schedule(config: ScheduleConfig, *, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Return the learning-rate factor as a function of the step."""
    match config.kind:
        case "constant":
            schedule = schedules.constant()
        case "step":
            if len(config.drop_epochs) != 1:
                raise ConfigError(
                    f"the schedule 'step' takes one period, got {config.drop_epochs}",
                    where="schedule.drop_epochs",
                    fix="give one number, or set schedule.kind=multistep",
                )
            schedule = schedules.step_drops(
                period_steps=config.drop_epochs[0] * steps_per_epoch, gamma=config.gamma
            )
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


def resolve_epochs(config: RunConfig, *, steps_per_epoch: int) -> tuple[int, str]:
    """Return the number of epochs and the reason for it."""
    if config.train.epochs != "auto":
        return config.train.epochs, "asked for"
    epochs = max(12, math.ceil(_STEPS_TO_LEARN / steps_per_epoch))
    return epochs, f"{_STEPS_TO_LEARN} steps at {steps_per_epoch} a pass, and 12 passes at least"


def resolve_eval_epochs(config: RunConfig, *, epochs: int) -> tuple[int, str]:
    """Return how many epochs lie between evaluations and the reason for it."""
    if config.train.eval_epochs != "auto":
        return config.train.eval_epochs, "asked for"
    return max(1, epochs // 20), "about 20 evaluations in the run"


def resolve_micro_batch_size(config: RunConfig, device: torch.device) -> tuple[int, str]:
    """Return how many images go through one forward pass and the reason for it."""
    if config.batch.micro_batch_size != "auto":
        return min(config.batch.micro_batch_size, config.batch.global_batch_size), "asked for"
    return config.batch.global_batch_size, "the whole effective batch at once"
