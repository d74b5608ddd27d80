"""Going on with a run under other settings: which may change, what that costs, and which would make it another run.

    free     the result stays what it would have been, bit for bit
    inexact  the run goes on, but no longer bit for bit; this is told
    fixed    it would be another run: refused

Settings that were never written down here have no judgement, and a test asks for one.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from detronome.config.convert import apply_overrides, to_dict
from detronome.config.presets import PRESETS
from detronome.config.schema import RunConfig
from detronome.errors import ConfigError, Problem

__all__ = ["Change", "Judgement", "for_another_run", "judge", "reconcile", "resume_command"]

Judgement = Literal["free", "inexact", "fixed"]

_FREE = frozenset(
    {
        "model.backbone_weights",  # the checkpoint holds all weights
        "data.workers",
        "data.prefetch",
        "data.cache",
        "data.cache_gib",
        "data.shard_cache_gib",
        "data.bad_image_budget",
        "train.log_steps",
        "train.checkpoint_activations",  # bit for bit: `tests/unit/models/test_activation_checkpointing.py`
        "train.checkpoint_minutes",
        "train.keep_checkpoints",
        "train.worst_case_first",
        "train.hang_minutes",
        "guard.max_skipped_steps",
        "guard.max_rollbacks",
    }
)

_ROUNDING = "sums are rounded differently"
_PIXELS = "pixels differ by some levels from those of the steps so far"
_SPIKES = "the steps so far were judged by the other value"

_INEXACT: Mapping[str, str] = {
    "data.root": "its annotations must be the same, which is checked; its images are taken to be",
    "data.buckets": "images are padded differently",
    "data.decode": _PIXELS,
    "data.augment_on": _PIXELS,
    "data.cache_reduced": _PIXELS,
    "data.on_bad_image": "bad images were treated differently in the steps so far",
    "batch.micro_batch_size": f"{_ROUNDING}; dropout, denoising and trainable BatchNorm see other groups of images",
    "train.device": f"another device computes, and {_ROUNDING}",
    "train.precision": _ROUNDING,
    "train.parallel": _ROUNDING,
    "train.compile": f"{_ROUNDING}, and dropout draws other numbers",
    "train.channels_last": _ROUNDING,
    "train.eval_epochs": "the weights stay the same; best checkpoint and early stopping follow other evaluations",
    "train.early_stop_patience": "the weights stay the same; the run may end at another step",
    "train.early_stop_min_delta": "the weights stay the same; the run may end at another step",
    "guard.loss_spike_factor": _SPIKES,
    "guard.gradient_spike_factor": _SPIKES,
    "guard.on_spike": _SPIKES,
    "guard.rewind_steps": _SPIKES,
    "guard.rollback_lr_factor": "a step back made so far used the other value",
    "eval.batch_size": "metrics may differ in the last digits: images are padded with other neighbours",
}

_OTHER_METRICS = "its evaluations could not be compared with those so far, and the best checkpoint would be chance"

_LONGER = "the weights stay those of a run of this length; one that had ended keeps the evaluation at its old end"

_FIXED: Mapping[str, str] = {
    "preset": "another model and recipe",
    "data.train_split": "the steps so far learnt from other images",
    "data.val_split": _OTHER_METRICS,
    "data.annotations": "the steps so far learnt other objects",
    "data.shard_window": "the images would come in another order: some twice in this epoch, some never",
    "batch.global_batch_size": "steps and epochs would be counted differently, and the rates belong to the old size",
    "train.seed": "order, augmentation and noise would be those of another run",
    "train.ema_decay": "the average so far was taken with another decay, or there is none",
    "train.metric": _OTHER_METRICS,
    "train.freeze": "other parts have learnt in the steps so far",
    "eval.max_detections": _OTHER_METRICS,
    "eval.panoptic_score": _OTHER_METRICS,
    "augment.eval_size": _OTHER_METRICS,
    "augment.eval_max_size": _OTHER_METRICS,
}

_FIXED_SECTIONS: Mapping[str, str] = {
    "model": "the weights belong to the old architecture",
    "loss": "the steps so far were driven by another loss",
    "augment": "the steps so far saw other images",
    "optim": "weights and moments come from other updates",
    "schedule": "the steps so far had other rates",
}
"""Sections of which every setting is fixed, unless it stands above: a new one is refused until it is judged."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting that is asked for with another value than the checkpoint has."""

    key: str
    held: Any
    """The checkpoint's value, as plain data."""
    asked: Any
    judgement: Judgement
    cost: str
    """What becomes of the run; empty where nothing does."""

    @property
    def told(self) -> str:
        """The new value and what it costs, ready to print."""
        cost = f"; no longer bit for bit: {self.cost}" if self.cost else ""
        return f"{_shown(self.asked)} (was {_shown(self.held)} until now{cost})"


def judge(key: str, held: RunConfig, asked: RunConfig) -> tuple[Judgement, str]:
    """Return whether a setting may change from one configuration to the other, and what it would cost.

    Raises:
        KeyError: nobody has judged this setting yet.
    """
    if key == "train.epochs":
        return _judge_epochs(held, asked)
    if key in _FREE:
        return "free", ""
    if key in _INEXACT:
        return "inexact", _INEXACT[key]
    return "fixed", _FIXED[key] if key in _FIXED else _FIXED_SECTIONS[key.partition(".")[0]]


def reconcile(held: RunConfig, asked: RunConfig, *, run: Path) -> tuple[RunConfig, list[Change]]:
    """Return the configuration to go on with, and the settings in which it differs from the checkpoint's.

    Args:
        held: the checkpoint's configuration, resolved.
        asked: what is asked for now; where it says `auto`, the checkpoint's value stays.
        run: the run folder, for messages.

    Raises:
        ConfigError: settings that would make it another run, all of them at once.
    """
    asked = _with_held_for_auto(held, asked)
    changes = _changes(held, asked)
    fixed = [change for change in changes if change.judgement == "fixed"]
    if fixed:
        raise ConfigError([_problem(change, asked, run) for change in _without_what_the_preset_brings(fixed, asked)])
    return asked, changes


def for_another_run(config: RunConfig) -> RunConfig:
    """Return a run's configuration with what fitted its machine and its images to be decided anew."""
    machine = ("train.device", "train.worst_case_first", "data.workers", "data.buckets")
    return apply_overrides(config, dict.fromkeys(machine, "auto"))


def resume_command(run: Path) -> str:
    """Return the command line that goes on with a run, ready to paste into a shell."""
    return f"detronome train --resume {_quoted_path(run)}"


def _judge_epochs(held: RunConfig, asked: RunConfig) -> tuple[Judgement, str]:
    depends = []
    if held.schedule.kind in ("cosine", "one_cycle"):
        depends.append(f"the rates of the schedule {held.schedule.kind!r} are spread over the whole length")
    if held.loss.classification == "quality":
        depends.append("the loss's targets harden over a part of the length (loss.quality_ramp)")
    if depends:
        return "fixed", f"{' and '.join(depends)}, so the steps so far belong to the old length"
    assert held.train.epochs != "auto" and asked.train.epochs != "auto"
    if asked.train.epochs < held.train.epochs:
        return "fixed", "the run may be past its new end; Ctrl-C ends it where it is, and its checkpoints can be used"
    return "inexact", _LONGER


def _changes(held: RunConfig, asked: RunConfig) -> list[Change]:
    old, new = _flat(held), _flat(asked)
    keys = [key for key in old if key in new and old[key] != new[key]]
    if "model.family" in keys:  # its settings have no counterpart
        keys = [key for key in keys if key == "model.family" or not key.startswith("model.")]
    changes = []
    for key in keys:
        judgement, cost = judge(key, held, asked)
        changes.append(Change(key=key, held=old[key], asked=new[key], judgement=judgement, cost=cost))
    return changes


def _with_held_for_auto(held: RunConfig, asked: RunConfig) -> RunConfig:
    old = _flat(held)
    autos = {key: old[key] for key, value in _flat(asked).items() if value == "auto" and key in old}
    return apply_overrides(asked, autos)


def _without_what_the_preset_brings(fixed: list[Change], asked: RunConfig) -> list[Change]:
    """Leave out what differs only because another preset was named: one cause, not fifty symptoms."""
    if asked.preset not in PRESETS or all(change.key != "preset" for change in fixed):
        return fixed
    brought = _flat(PRESETS[asked.preset]())
    return [change for change in fixed if change.key == "preset" or brought.get(change.key) != change.asked]


def _problem(change: Change, asked: RunConfig, run: Path) -> Problem:
    again = f"leave it out ({resume_command(run)} goes on as it was)"
    new_run = f"detronome train {shlex.quote(asked.data.root) if asked.data.root else 'DATA'} --model"
    if change.key == "preset" or change.key.startswith("model."):
        fix = f"{again}, or start a new run in another folder: {new_run} {asked.preset}"
    else:
        setting = shlex.quote(f"{change.key}={_as_setting(change.asked)}")
        fix = f"{again}, or start a new run from these weights: {new_run} {_quoted_path(run)} --set {setting}"
    return Problem(
        what=f"{change.key} is {_shown(change.held)} in the checkpoint, and {_shown(change.asked)} is asked for: "
        f"{change.cost}",
        where=str(run),
        fix=fix,
    )


def _flat(config: RunConfig) -> dict[str, Any]:
    """Return the settings by dotted key, as plain data."""
    flat: dict[str, Any] = {}
    for section, values in to_dict(config).items():
        if isinstance(values, dict):
            flat |= {f"{section}.{name}": value for name, value in values.items()}
        else:
            flat[section] = values
    return flat


def _shown(value: object) -> str:
    return str(value) if value not in ("", []) else "nothing"


def _as_setting(value: object) -> str:
    """Return a value as `--set` reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def _quoted_path(path: Path) -> str:
    text = str(path)
    return shlex.quote(os.path.join(".", text) if text.startswith("-") else text)
