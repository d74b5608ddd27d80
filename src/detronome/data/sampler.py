"""Which images a step sees: a pure function of (seed, step), so that resuming is one addition.

    epoch 0                        epoch 1
    ├─ step 0 ─┼─ step 1 ─┼ rest   ├─ step 2 ─┼─ step 3 ─┼ rest

Each epoch has a new order; the rest, too few for a step, is left out of the epoch, as in the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Sampler

from detronome.runtime.seeding import generator

__all__ = ["StepSampler", "epoch_permutation", "step_indices", "steps_per_epoch"]


@lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, num_images: int) -> Int64[np.ndarray, " I"]:
    """Return the order of the images in one epoch (read-only: the last two are remembered)."""
    order = generator("order", seed, epoch).permutation(num_images)
    order.setflags(write=False)
    return order


def steps_per_epoch(num_images: int, global_batch_size: int) -> int:
    """Return the number of full steps in one epoch; a data set smaller than a batch has one, with all its images."""
    return max(1, num_images // global_batch_size)


def step_indices(seed: int, step: int, num_images: int, global_batch_size: int) -> tuple[int, Int64[np.ndarray, " K"]]:
    """Return (epoch, indices of the images) of one step of the run, counted from 0."""
    epoch, position = divmod(step, steps_per_epoch(num_images, global_batch_size))
    start = position * global_batch_size
    return epoch, epoch_permutation(seed, epoch, num_images)[start : start + global_batch_size]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) pairs of each step from `start_step` to the end of the run, one list a step.

    One pass covers all epochs, so that the loader's workers live as long as the run.
    """

    def __init__(
        self, *, seed: int, start_step: int, total_steps: int, num_images: int, global_batch_size: int
    ) -> None:
        self._seed = seed
        self._steps = range(start_step, total_steps)
        self._num_images = num_images
        self._global_batch_size = global_batch_size

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            epoch, indices = step_indices(self._seed, step, self._num_images, self._global_batch_size)
            yield [(epoch, index) for index in indices.tolist()]
