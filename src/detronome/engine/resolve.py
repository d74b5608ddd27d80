"""Turning every `auto` setting into a value, with the reason, before anything is built.

The result is what `config.toml` and every checkpoint hold, so a resumed run never decides again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch

from detronome.config.schema import TIMM_PREFIX, DetrConfig, DFineConfig, NanoConfig, RtDetrConfig, RunConfig
from detronome.data.buckets import parse_buckets
from detronome.data.build import augment_policy, cached_bytes, resolve_buckets, resolve_workers
from detronome.data.sampler import steps_per_epoch
from detronome.data.split import DataSplit
from detronome.engine.worst_case import resolve_worst_case_first
from detronome.errors import ConfigError, Problem
from detronome.runtime.device import resolve_device
from detronome.runtime.distributed import ALONE, World
from detronome.runtime.precision import resolve_precision

__all__ = ["BatchPlanner", "Resolved", "check_consistency", "resolve"]

_STEPS_TO_LEARN = 2500
"""Updates after which small detectors trained from scratch had levelled off on the data sets measured."""
_FEWEST_QUERIES = 25


class Resolved:
    """A configuration without any `auto`.

    Attributes:
        config: the configuration.
        device: where the run computes.
        reasons: for each setting that was `auto`, its value and why, ready to print.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.device = torch.device("cpu")
        self.reasons: dict[str, str] = {}

    def _take(self, key: str, value: object, reason: str) -> None:
        section, name = key.split(".")
        record = replace(getattr(self.config, section), **{name: value})
        self.config = replace(self.config, **{section: record})
        shown = ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else value
        self.reasons[key] = f"{shown} ({reason})"


class BatchPlanner(Protocol):
    """Says how many images go through the model at once, and why; None where it has nothing to say.

    It is asked for training first, once everything else that memory depends on is resolved.
    """

    def training(self, config: RunConfig, device: torch.device) -> tuple[int, str] | None:
        """Return the micro-batch size and the reason for it."""

    def evaluation(self, config: RunConfig, device: torch.device) -> tuple[int, str] | None:
        """Return the batch size of an evaluation and the reason for it."""


def resolve(
    config: RunConfig, train: DataSplit, world: World = ALONE, *, planner: BatchPlanner | None = None
) -> Resolved:
    """Return the configuration with every `auto` replaced.

    Args:
        config: as asked for.
        train: the training split, which decides queries and length.
        world: the ranks that share the work.
        planner: fits the batches to the memory; without one they are as large as they may be.

    Raises:
        ConfigError: settings that cannot work together, all at once; a device that is not there.
    """
    check_consistency(config)
    resolved = Resolved(config)
    resolved.device, device_reason = resolve_device(config.train.device)
    if world.size > 1 and resolved.device.index is not None:
        raise ConfigError(
            f"train.device = {config.train.device!r} puts all {world.size} ranks on one device",
            where="train.device",
            fix=f"use {resolved.device.type}: each rank takes the one of its number",
        )
    if config.train.precision == "fp16" and resolved.device.type == "cpu":
        raise ConfigError("fp16 needs a GPU", where="train.precision", fix="use bf16 or fp32")
    if config.train.device == "auto":
        resolved._take("train.device", str(resolved.device), device_reason)
    num_steps = steps_per_epoch(len(train.index), config.batch.global_batch_size)
    autos: dict[str, Callable[[RunConfig], tuple[object, str]]] = {}
    if isinstance(config.model, NanoConfig):
        autos["model.num_queries"] = lambda _: _num_queries(train.index.max_objects_per_image)
    autos |= {
        "train.precision": lambda c: resolve_precision(c.train.precision, resolved.device),
        "data.buckets": lambda c: resolve_buckets(c, train),
        "data.workers": lambda c: resolve_workers(c, resolved.device.type, train.index.sizes_hw, world.local_size),
        "train.epochs": lambda _: _epochs(num_steps),
        "train.eval_epochs": _eval_epochs,
        "batch.micro_batch_size": lambda c: (
            (planner and planner.training(c, resolved.device)) or _micro_batch_size(c, world.size)
        ),
        "eval.batch_size": lambda c: (planner and planner.evaluation(c, resolved.device)) or _eval_batch_size(c),
        "train.worst_case_first": lambda _: resolve_worst_case_first(resolved.device),
    }
    for key, decide in autos.items():
        section, name = key.split(".")
        if getattr(getattr(resolved.config, section), name) == "auto":
            resolved._take(key, *decide(resolved.config))
    if config.data.cache != "none":
        needed_gib = cached_bytes(config, train) / 2**30
        room = f"all {len(train.index):,} images need {needed_gib:.2g} GiB, it may take {config.data.cache_gib:g}"
        resolved.reasons["data.cache"] = f"{config.data.cache} ({room})"
    return resolved


def check_consistency(config: RunConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: all of them at once.
    """
    wanted = {"detr": "softmax", "nano": "quality", "rtdetr": "vfl", "dfine": "vfl"}[config.model.family]
    masked = config.model if isinstance(config.model, DetrConfig) and config.model.mask_head else None
    checks = [
        (
            config.loss.classification == wanted,
            f"loss.classification = {config.loss.classification!r} does not fit the family {config.model.family!r}",
            f"set loss.classification={wanted}",
        ),
        (
            config.model.num_heads < 1 or config.model.hidden_dim % config.model.num_heads == 0,
            f"model.hidden_dim = {config.model.hidden_dim} is no multiple of num_heads = {config.model.num_heads}",
            "choose a multiple",
        ),
        (
            config.model.family != "detr" or config.model.hidden_dim % 4 == 0,
            f"model.hidden_dim = {config.model.hidden_dim} is no multiple of 4, as the position encoding needs",
            "choose a multiple of 4",
        ),
        (
            masked is None or (masked.hidden_dim % 128 == 0 and masked.num_heads % 8 == 0),
            f"model.mask_head needs a hidden_dim in steps of 128 and num_heads in steps of 8, not "
            f"{config.model.hidden_dim} and {config.model.num_heads}",
            "choose such, or set model.mask_head=false",
        ),
        (
            masked is None or not masked.backbone.startswith(TIMM_PREFIX),
            "model.mask_head needs maps of stride 4, which a backbone of timm does not give",
            "choose a ResNet for model.backbone, or set model.mask_head=false",
        ),
        (
            masked is None or config.data.annotations == "panoptic",
            "model.mask_head learns from panoptic maps, and data.annotations is 'instances'",
            "set data.annotations=panoptic, or model.mask_head=false",
        ),
        (
            config.train.metric != "PQ" or masked is not None,
            "train.metric = 'PQ' needs a model that makes masks",
            "set model.mask_head=true, or another metric",
        ),
        (
            config.model.family not in ("rtdetr", "dfine") or min(config.augment.sizes, default=33) > 32,
            f"augment.sizes = {list(config.augment.sizes)} make a map of a single cell, too few for BatchNorm",
            "give sizes above 32",
        ),
        (config.optim.lr > 0, "optim.lr must be above 0", "give e.g. 1e-4"),
        (0 <= config.train.ema_decay < 1, "train.ema_decay must be from 0 to below 1", "0 turns averaging off"),
        (
            not (config.train.compile and config.train.parallel == "fsdp"),
            "train.compile and train.parallel = 'fsdp' do not work together",
            "set train.compile=false, or train.parallel=ddp",
        ),
        (
            config.schedule.kind != "step" or len(config.schedule.drop_epochs) == 1,
            f"the schedule 'step' takes one period, schedule.drop_epochs has {len(config.schedule.drop_epochs)}",
            "give one number, or set schedule.kind=multistep",
        ),
    ]
    if isinstance(config.model, RtDetrConfig):
        checks += _rtdetr_checks(config.model)
    if isinstance(config.model, DFineConfig):
        checks += _dfine_checks(config.model, aux_loss=config.loss.aux_loss)
    if isinstance(config.model, NanoConfig):
        checks += [
            (
                len(config.model.widths) == len(config.model.depths) >= 2,
                "model.widths and model.depths need one entry for each stage, two stages at least",
                "give lists of equal length",
            ),
            (
                # oneDNN's AVX-512 convolutions write out of bounds for 8 channels and end the process (torch 2.15).
                all(width % 16 == 0 for width in config.model.widths),
                f"model.widths = {list(config.model.widths)} must be multiples of 16, or CPU kernels fail",
                "give multiples of 16",
            ),
        ]
    problems = [Problem(what=what, where="configuration", fix=fix) for is_fine, what, fix in checks if not is_fine]
    problems += _out_of_range(config)
    for check in (
        lambda: augment_policy(config.augment),
        lambda: parse_buckets(() if config.data.buckets == "auto" else config.data.buckets),
    ):
        try:
            check()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def _rtdetr_checks(model: RtDetrConfig) -> list[tuple[bool, str, str]]:
    divisor = max(model.num_heads, 1)
    return [
        (
            model.encoder_dim % divisor == 0 and model.encoder_dim % 4 == 0,
            f"model.encoder_dim = {model.encoder_dim} is no multiple of num_heads = {model.num_heads} and of 4",
            "choose such a multiple",
        ),
        (
            # oneDNN's AVX-512 convolutions, see `widths`.
            model.encoder_dim % 16 == 0
            and model.hidden_dim % 16 == 0
            and model.encoder_dim * model.encoder_expansion % 16 == 0,
            "model.encoder_dim, hidden_dim and encoder_dim x encoder_expansion must be multiples of 16, or CPU kernels "
            f"fail, not {model.encoder_dim}, {model.hidden_dim} and {model.encoder_dim * model.encoder_expansion:g}",
            "give multiples of 16",
        ),
        (
            len(model.num_points) == 3,
            f"model.num_points needs one entry for each of the 3 maps, not {list(model.num_points)}",
            "give three numbers",
        ),
    ]


def _dfine_checks(model: DFineConfig, *, aux_loss: bool) -> list[tuple[bool, str, str]]:
    divisor = max(model.num_heads, 1)
    return [
        (
            # Multiples of 16 for oneDNN's AVX-512 convolutions, see `widths`.
            model.encoder_dim % divisor == 0 and model.encoder_dim % 16 == 0,
            f"model.encoder_dim = {model.encoder_dim} is no multiple of num_heads = {model.num_heads} and of 16",
            "choose such a multiple",
        ),
        (
            model.hidden_dim % divisor == 0 and model.hidden_dim % 16 == 0,
            f"model.hidden_dim = {model.hidden_dim} is no multiple of num_heads = {model.num_heads} and of 16",
            "choose such a multiple",
        ),
        (
            round(model.encoder_dim * model.encoder_expansion // 2) > 0,
            f"model.encoder_expansion = {model.encoder_expansion:g} leaves the encoder's branches no channel",
            "give a larger part",
        ),
        (
            1 <= len(model.num_points) <= 4,
            f"model.num_points needs one entry for each map, of which there can be 4, not {list(model.num_points)}",
            "give one to four numbers",
        ),
        (
            aux_loss,
            "D-FINE cannot be trained without loss.aux_loss: its layers learn from each other",
            "set loss.aux_loss=true",
        ),
    ]


_RANGES: dict[str, tuple[float, float]] = {
    "model.hidden_dim": (1, math.inf),
    "model.num_heads": (1, math.inf),
    "model.ffn_dim": (1, math.inf),
    "model.num_encoder_layers": (0, math.inf),
    "model.num_decoder_layers": (1, math.inf),
    "model.num_queries": (1, math.inf),
    "model.num_points": (1, math.inf),
    "model.num_denoising": (0, math.inf),
    "model.frozen_stages": (0, 5),
    "model.encoder_dim": (1, math.inf),
    "model.encoder_ffn_dim": (1, math.inf),
    "model.encoder_expansion": (0.01, 4),
    "model.encoder_depth": (0.01, 4),
    "model.reg_scale": (0.1, 100),
    "model.widths": (1, math.inf),
    "model.depths": (1, math.inf),
    "model.dropout": (0, 0.99),
    "model.query_size_prior": (0.001, 0.999),
    "model.denoising_groups": (0, math.inf),
    "model.denoising_box_noise": (0, 1),
    "model.denoising_label_noise": (0, 1),
    "loss.cost_class": (0, math.inf),
    "loss.cost_bbox": (0, math.inf),
    "loss.cost_giou": (0, math.inf),
    "loss.weight_class": (0, math.inf),
    "loss.weight_bbox": (0, math.inf),
    "loss.weight_giou": (0, math.inf),
    "loss.weight_mask": (0, math.inf),
    "loss.weight_dice": (0, math.inf),
    "loss.weight_fgl": (0, math.inf),
    "loss.weight_ddf": (0, math.inf),
    "loss.no_object_weight": (1e-6, math.inf),
    "loss.quality_exponent": (0, math.inf),
    "loss.quality_ramp": (0, math.inf),
    "data.workers": (0, math.inf),
    "data.prefetch": (1, math.inf),
    "data.bad_image_budget": (0, 1),
    "data.cache_gib": (0, math.inf),
    "data.shard_window": (1, math.inf),
    "data.shard_cache_gib": (0, math.inf),
    "batch.global_batch_size": (1, math.inf),
    "batch.micro_batch_size": (1, math.inf),
    "optim.backbone_lr": (0, math.inf),
    "optim.weight_decay": (0, math.inf),
    "optim.clip_norm": (0, math.inf),
    "schedule.warmup_steps": (0, math.inf),
    "schedule.drop_epochs": (1, math.inf),
    "schedule.gamma": (0, 1),
    "schedule.min_factor": (0, 1),
    "schedule.cycle_epochs": (1e-6, math.inf),
    "schedule.peak_fraction": (0, 1),
    "train.epochs": (1, math.inf),
    "train.eval_epochs": (1, math.inf),
    "train.log_steps": (1, math.inf),
    "train.checkpoint_minutes": (0, math.inf),
    "train.keep_checkpoints": (1, math.inf),
    "train.early_stop_patience": (0, math.inf),
    "train.early_stop_min_delta": (0, math.inf),
    "train.hang_minutes": (0, 200),
    "guard.loss_spike_factor": (0, math.inf),
    "guard.gradient_spike_factor": (0, math.inf),
    "guard.rewind_steps": (0, math.inf),
    "guard.max_skipped_steps": (1, math.inf),
    "guard.max_rollbacks": (0, math.inf),
    "guard.rollback_lr_factor": (0, 1),
    "eval.batch_size": (1, math.inf),
    "eval.max_detections": (1, math.inf),
    "eval.panoptic_score": (0, 1),
}
"""Smallest and largest value of each number that has bounds of its own, of every entry where it is a list."""


def _out_of_range(config: RunConfig) -> list[Problem]:
    problems = []
    for key, (low, high) in _RANGES.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name, "auto")
        numbers = value if isinstance(value, tuple) else () if value == "auto" else (value,)
        if not all(low <= number <= high for number in numbers):
            bounds = f"{low:g} or more" if high == math.inf else f"a number from {low:g} to {high:g}"
            shown = list(value) if isinstance(value, tuple) else value
            problems.append(
                Problem(what=f"{key} = {shown} is out of range", where="configuration", fix=f"give {bounds}")
            )
    return problems


def _epochs(num_steps: int) -> tuple[int, str]:
    epochs = max(12, math.ceil(_STEPS_TO_LEARN / num_steps))
    return epochs, f"{_STEPS_TO_LEARN} steps at {num_steps} an epoch, and 12 epochs at least"


def _eval_epochs(config: RunConfig) -> tuple[int, str]:
    assert config.train.epochs != "auto"
    return max(1, config.train.epochs // 20), "about 20 evaluations in the run"


def _micro_batch_size(config: RunConfig, num_ranks: int) -> tuple[int, str]:
    size = math.ceil(config.batch.global_batch_size / num_ranks)
    return size, "the whole effective batch at once" if num_ranks == 1 else f"the part of one of {num_ranks} ranks"


def _eval_batch_size(config: RunConfig) -> tuple[int, str]:
    return min(config.batch.global_batch_size, 8), "small, because padding costs time and memory"


def _num_queries(max_objects: int) -> tuple[int, str]:
    reason = f"twice the objects of the fullest training image, {max_objects}, and {_FEWEST_QUERIES} at least"
    return max(_FEWEST_QUERIES, 2 * max_objects), reason
