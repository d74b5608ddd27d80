"""The worst case first: the largest shape with the most objects, before the first step, so that memory runs out then
or never.

A run would otherwise meet its largest step by chance, perhaps after hours. The trial goes through the same code as a
step or an evaluation, cuts micro-batches smaller where it must, and leaves no trace but the sizes that it has found.

Shape letters: `I` images of the split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from detronome.data.buckets import Bucket
from detronome.engine.optim import materialise_state
from detronome.runtime.memory import peak_memory_bytes
from detronome.runtime.seeding import generator
from detronome.types import Batch, EffectiveBatch, Target

__all__ = [
    "WorstCase",
    "WorstCaseFound",
    "resolve_worst_case_first",
    "try_worst_cases",
    "worst_eval_batch",
    "worst_training_batch",
]

_NO_IMAGE = -1


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """What to try."""

    phase: Literal["training", "evaluation"]
    """Decides the model's mode."""
    model: nn.Module
    batch: EffectiveBatch
    run: Callable[[EffectiveBatch], object]
    """Forward and backward, or forward and postprocessing, of the batch, in smaller pieces where memory demands it."""


@dataclass(frozen=True, kw_only=True)
class WorstCaseFound:
    """What a trial came to."""

    phase: Literal["training", "evaluation"]
    shape: str
    """Padded `HEIGHTxWIDTH` in pixels."""
    num_images: int
    num_objects: int
    seconds: float
    peak_memory_bytes: int
    """Highest use on a GPU in this trial; on a CPU, of this process so far."""


def worst_training_batch(
    *,
    shape_hw: Bucket,
    num_images: int,
    objects_per_image: Int64[np.ndarray, " I"],
    num_classes: int,
    with_masks: bool = False,
) -> EffectiveBatch:
    """Return a step of the largest images with the most objects, made up from nothing.

    The fullest images come last, where a step holds the most: all gradients are there already.

    Args:
        shape_hw: largest padded height and width in pixels, see `data.largest_shapes`.
        num_images: of one step, on this rank.
        objects_per_image: of the split.
        num_classes: labels go from 0 to below it.
        with_masks: whether objects have masks.
    """
    fullest = np.sort(objects_per_image)[-num_images:]
    # A split with fewer images than a step has repeats them.
    counts = np.concatenate([np.repeat(fullest[-1:], num_images - len(fullest)), fullest])
    return EffectiveBatch((_batch(shape_hw, np.sort(counts).tolist(), num_classes, with_masks=with_masks),))


def worst_eval_batch(*, shape_hw: Bucket, num_images: int) -> EffectiveBatch:
    """Return an evaluation batch of the largest images. Evaluation does not look at objects, so there are none."""
    return EffectiveBatch((_batch(shape_hw, [0] * num_images, num_classes=1),))


def try_worst_cases(
    cases: Sequence[WorstCase], *, optimizer: torch.optim.Optimizer, device: torch.device
) -> list[WorstCaseFound]:
    """Run the cases in turn; a run with and one without this are the same bit for bit.

    Weights, statistics, gradients and random generators are afterwards as before. The optimiser's moments, which take
    memory only from the first update on, are made beforehand, as zeros.

    Args:
        cases: training first, as in the run.
        optimizer: of the run.
        device: where the models are.

    Raises:
        TrainingError: memory has no room for a single image; from the cases' `run`.
    """
    materialise_state(optimizer)
    found = [_try(case, device) for case in cases]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # what the run reports from here on is its own
    return found


def resolve_worst_case_first(device: torch.device) -> tuple[bool, str]:
    """Return whether the worst case goes first where nobody says, and the reason."""
    if device.type == "cpu":
        # Linux promises memory that it does not have and ends the process that uses it: there is no error to catch.
        return False, "a CPU runs out of memory without an error that a smaller cut could answer"
    return True, "memory runs out before the first step or never"


def _try(case: WorstCase, device: torch.device) -> WorstCaseFound:
    (part,) = case.batch.parts
    height, width = part.images.shape[-2:]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    with _leaving_no_trace(case.model, device):
        case.model.train(case.phase == "training")
        case.run(case.batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return WorstCaseFound(
        phase=case.phase,
        shape=f"{height}x{width}",
        num_images=len(case.batch),
        num_objects=case.batch.num_objects,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=peak_memory_bytes(device),
    )


@contextmanager
def _leaving_no_trace(model: nn.Module, device: torch.device) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for parameter in model.parameters():
            parameter.grad = None
        for buffer, before in buffers:
            buffer.copy_(before)
        for module, is_training in modes:
            module.training = is_training


def _batch(shape_hw: Bucket, object_counts: Sequence[int], num_classes: int, *, with_masks: bool = False) -> Batch:
    height, width = shape_hw
    rng = generator("worst_case")
    pixels = rng.integers(256, size=(len(object_counts), height, width, 3), dtype=np.uint8)
    return Batch(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        padding_mask=torch.zeros((len(object_counts), height, width), dtype=torch.bool),
        targets=tuple(_target(shape_hw, count, num_classes, rng, with_masks) for count in object_counts),
    )


def _target(size_hw: Bucket, count: int, num_classes: int, rng: np.random.Generator, with_masks: bool) -> Target:
    sides = rng.uniform(0.05, 0.5, size=(count, 2))
    centres = rng.uniform(sides / 2, 1 - sides / 2)
    return Target(
        boxes_cxcywh=torch.from_numpy(np.concatenate([centres, sides], axis=1)).float(),
        labels=torch.from_numpy(rng.integers(num_classes, size=count)),
        image_id=_NO_IMAGE,
        size_hw=size_hw,
        orig_size_hw=size_hw,
        masks=torch.zeros(count, *size_hw, dtype=torch.bool) if with_masks else None,
    )
