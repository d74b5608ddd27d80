"""Changes that may make a run faster, each with what it changes in the numbers.

None touches the effective batch, the rates or the recipe. Those that change what is computed by more than rounding are
marked, and are tried only when asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from detronome.config.schema import DetrConfig, RunConfig

__all__ = ["Effect", "Proposal", "TuningFacts", "propose"]

Part = Literal["training", "evaluation"]

_WAITS = 0.1
"""Part of a step from which on the wait for data is what should be looked at first."""
_CACHE_ROOM = 2.5
"""Two caches exist while one configuration is measured beside another."""
_DEEP = 4


class Effect(StrEnum):
    """What a change does to the numbers of a run."""

    NONE = "none"
    ROUNDING = "rounding"
    INEXACT = "inexact"
    """What is computed differs by more than rounding; accuracy may change."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One setting with another value."""

    setting: str
    value: Any
    """As plain data, as `--set` takes it."""
    effect: Effect
    changes: str
    """What it changes in the numbers, in words."""
    why: str
    """What it is meant to save."""
    part: Part = "training"
    """Which part of a run it is measured on."""


@dataclass(frozen=True, kw_only=True)
class TuningFacts:
    """What decides which changes make sense."""

    device_type: str
    num_processors: int
    likely_workers: int
    """How many worker processes are likely to be right: tried first."""
    cache_bytes: int
    """All training images, decoded."""
    free_ram_bytes: int
    data_wait: float
    """Part of a step spent waiting for data, 0-1."""


def propose(config: RunConfig, facts: TuningFacts, *, first: Sequence[str] = ()) -> list[Proposal]:
    """Return the changes to try on a configuration, the most promising first.

    Args:
        config: resolved.
        facts: of machine and data.
        first: settings that a verdict names, which come first in its order; without it, the data's go first where a
            step waits for them, and the model's otherwise.
    """
    data, model = list(_of_the_data(config, facts)), list(_of_the_model(config, facts))
    ordered = data + model if facts.data_wait >= _WAITS else model + data
    # A cache must be filled, and a compiler run, whenever one of its kind is measured: what follows would be slow.
    ordered.sort(key=lambda proposal: proposal.setting in ("data.cache", "train.compile"))
    ordered.sort(key=lambda proposal: first.index(proposal.setting) if proposal.setting in first else len(first))
    return ordered + list(_of_the_evaluation(config))


def _of_the_data(config: RunConfig, facts: TuningFacts) -> Iterator[Proposal]:
    data = config.data
    assert data.workers != "auto"
    wanted = (facts.likely_workers, max(1, 2 * data.workers), data.workers // 2)
    for workers in dict.fromkeys(wanted):
        if workers != data.workers and workers <= max(facts.num_processors, facts.likely_workers):
            more = workers > data.workers
            yield Proposal(
                setting="data.workers",
                value=workers,
                effect=Effect.NONE,
                changes="nothing: order and augmentation do not depend on it",
                why="batches are prepared beside the model's work" if more else "processors are left to the model",
            )
    if data.workers > 0 and data.prefetch < _DEEP:
        yield Proposal(
            setting="data.prefetch",
            value=_DEEP,
            effect=Effect.NONE,
            changes="nothing",
            why="a slow image is made up for by batches that were prepared earlier",
        )
    if data.decode == "exact":
        yield Proposal(
            setting="data.decode",
            value="fast",
            effect=Effect.INEXACT,
            changes="pixels differ by some levels",
            why="large photos are decoded at a fraction of their size",
        )
    if facts.device_type != "cpu":
        elsewhere = "device" if data.augment_on == "cpu" else "cpu"
        yield Proposal(
            setting="data.augment_on",
            value=elsewhere,
            effect=Effect.INEXACT,
            changes="pixels differ by some levels; the same is drawn",
            why="processors only decode" if elsewhere == "device" else "the device only trains",
        )
    if data.cache == "none":
        holds_all = facts.cache_bytes <= data.cache_gib * 2**30
        if holds_all and _CACHE_ROOM * facts.cache_bytes < facts.free_ram_bytes:
            yield _cache("ram")
        if holds_all:
            yield _cache("disk")


def _cache(kind: Literal["ram", "disk"]) -> Proposal:
    return Proposal(
        setting="data.cache",
        value=kind,
        effect=Effect.NONE,
        changes="nothing: the cache holds the pixels as they are decoded",
        why="an image is decoded once, not in every epoch; the first epoch gains nothing",
    )


def _of_the_model(config: RunConfig, facts: TuningFacts) -> Iterator[Proposal]:
    yield from _micro_batches(config)
    train = config.train
    if train.checkpoint_activations != "none":
        yield Proposal(
            setting="train.checkpoint_activations",
            value="none",
            effect=Effect.NONE,
            changes="nothing",
            why="nothing is computed twice; needs more memory",
        )
    if train.precision in ("fp32", "bf16"):
        other = "bf16" if train.precision == "fp32" else "fp32"
        yield Proposal(
            setting="train.precision",
            value=other,
            effect=Effect.INEXACT,
            changes="matrix products in bf16 have three digits" if other == "bf16" else "matrix products in fp32",
            why="half the bytes, faster units" if other == "bf16" else "not every machine computes in bf16 quickly",
        )
    yield Proposal(
        setting="train.channels_last",
        value=not train.channels_last,
        effect=Effect.ROUNDING,
        changes="sums are rounded differently",
        why="another memory layout of the convolutions",
    )
    if not config.data.buckets and not _learns_batch_norm(config):
        yield Proposal(
            setting="data.buckets",
            value="auto",
            effect=Effect.INEXACT,
            changes="images are padded differently",
            why="less padding, and shapes that repeat",
        )
    has_dropout = isinstance(config.model, DetrConfig) and config.model.dropout > 0
    yield Proposal(
        setting="train.compile",
        value=not train.compile,
        effect=Effect.ROUNDING,
        changes="sums are rounded differently" + (", dropout draws other numbers" if has_dropout else ""),
        why="kernels made for this model, after minutes at the start" if not train.compile else "nothing is compiled",
    )


def _micro_batches(config: RunConfig) -> Iterator[Proposal]:
    now = config.batch.micro_batch_size
    assert now != "auto"
    whole = config.batch.global_batch_size
    shuffled = "denoising noise and dropout are drawn for other groups of images"
    for size in dict.fromkeys((whole, min(whole, 2 * now), max(1, now // 2))):
        if size != now:
            yield Proposal(
                setting="batch.micro_batch_size",
                value=size,
                effect=Effect.INEXACT if _learns_batch_norm(config) else Effect.ROUNDING,
                changes="BatchNorm sees other groups of images"
                if _learns_batch_norm(config)
                else f"sums are rounded differently; {shuffled}",
                why="fewer, larger pieces of the same effective batch" if size > now else "smaller pieces",
            )


def _of_the_evaluation(config: RunConfig) -> Iterator[Proposal]:
    now = config.eval.batch_size
    assert now != "auto"
    for size in dict.fromkeys((2 * now, now // 2)):
        if size >= 1:
            yield Proposal(
                setting="eval.batch_size",
                value=size,
                effect=Effect.ROUNDING,
                changes="metrics may differ in the last digits",
                why="fewer, larger batches" if size > now else "smaller batches",
                part="evaluation",
            )


def _learns_batch_norm(config: RunConfig) -> bool:
    return not isinstance(config.model, DetrConfig) or config.model.backbone_norm == "trainable"
