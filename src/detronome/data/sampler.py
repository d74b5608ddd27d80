"""Which images a step sees: a pure function of (seed, step), so that resuming is one addition.

    epoch 0                        epoch 1
    ├─ step 0 ─┼─ step 1 ─┼ rest   ├─ step 2 ─┼─ step 3 ─┼ rest

Each epoch has a new order; the rest, too few for a step, is left out of the epoch, as in the reference. The images of a
step are dealt out to the ranks in turn, so the step is the same however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
from jaxtyping import Int64

from detronome.runtime.seeding import generator

__all__ = [
    "ALONE",
    "EpochOrder",
    "Key",
    "Keys",
    "Share",
    "StepKeys",
    "StepOfImage",
    "StepSampler",
    "epoch_order",
    "epoch_permutation",
    "shard_permutation",
    "step_indices",
    "steps_per_epoch",
]

EpochOrder = Callable[[int], Int64[np.ndarray, " I"]]
"""The order of the images in each epoch."""
Key = tuple[int, int]
"""(epoch, index of the image)."""
Keys = list[Key]
"""The images of one step, or of one rank's share of it."""
T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """What one rank takes of a list that all ranks divide: every `num_ranks`-th item, perhaps none."""

    rank: int = 0
    num_ranks: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.num_ranks, self

    def of(self, items: list[T]) -> list[T]:
        """Return the rank's items; those of all ranks are the whole list, each item once."""
        return items[self.rank :: self.num_ranks]


ALONE = Share()
"""Of a single rank: everything."""


class StepKeys(Protocol):
    """The images of each step, by its place in the pass."""

    def __len__(self) -> int: ...

    def __getitem__(self, n: int, /) -> Keys: ...

    def __iter__(self) -> Iterator[Keys]: ...


@lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, num_images: int) -> Int64[np.ndarray, " I"]:
    """Return the order of the images in one epoch (read-only: the last two are remembered)."""
    order = generator("order", seed, epoch).permutation(num_images)
    order.setflags(write=False)
    return order


def shard_permutation(seed: int, epoch: int, shard_of: Int64[np.ndarray, " I"], window: int) -> Int64[np.ndarray, " I"]:
    """Return an order of the images in one epoch that needs few shards at a time.

    The shards are shuffled, and so are the images within each window of so many consecutive shards: while a window is
    read, no other shard is. Within a window the images keep the order that `epoch_permutation` gives them, so a window
    of all shards is that order itself.

    Args:
        seed: of the run.
        epoch: counted from 0.
        shard_of: the number of each image's shard, counted from 0.
        window: shards that are read together, at least 1.
    """
    assert window >= 1, window
    num_shards = int(shard_of.max(initial=-1)) + 1
    place = generator("order", seed, epoch, "shards").permutation(num_shards)
    order = epoch_permutation(seed, epoch, len(shard_of))
    return order[np.argsort(place[shard_of[order]] // window, kind="stable")]


def epoch_order(
    seed: int, num_images: int, *, shard_of: Int64[np.ndarray, " I"] | None = None, window: int = 1
) -> EpochOrder:
    """Return the order of the images by epoch: of all of them alike, or shard by shard where they lie in shards."""

    @lru_cache(maxsize=2)
    def order(epoch: int) -> Int64[np.ndarray, " I"]:
        if shard_of is None:
            return epoch_permutation(seed, epoch, num_images)
        return shard_permutation(seed, epoch, shard_of, window)

    return order


def steps_per_epoch(num_images: int, global_batch_size: int) -> int:
    """Return the number of full steps in one epoch; a data set smaller than a batch has one, with all its images."""
    return max(1, num_images // global_batch_size)


def step_indices(
    order: EpochOrder, step: int, num_images: int, global_batch_size: int
) -> tuple[int, Int64[np.ndarray, " K"]]:
    """Return (epoch, indices of the images) of one step of the run, counted from 0."""
    epoch, position = divmod(step, steps_per_epoch(num_images, global_batch_size))
    start = position * global_batch_size
    return epoch, order(epoch)[start : start + global_batch_size]


class StepOfImage:
    """Says in which step of an epoch an image is. The same for all ranks; cheap to send to a worker.

    Args:
        seed: of the run.
        num_images: of the split.
        global_batch_size: images of one effective batch, over all ranks.
        shard_of: as for `epoch_order`.
        window: likewise.
    """

    def __init__(
        self,
        seed: int,
        num_images: int,
        global_batch_size: int,
        *,
        shard_of: Int64[np.ndarray, " I"] | None = None,
        window: int = 1,
    ) -> None:
        self._seed = seed
        self._num_images = num_images
        self._global_batch_size = global_batch_size
        self._shard_of = shard_of
        self._window = window
        self._epoch = -1
        self._steps = np.empty(0, np.int64)

    def __call__(self, epoch: int, index: int) -> int:
        """Return the step, counted from 0; the images that an epoch leaves out are in the one after its last."""
        if epoch != self._epoch:
            order = epoch_order(self._seed, self._num_images, shard_of=self._shard_of, window=self._window)(epoch)
            self._steps = np.empty(self._num_images, np.int64)
            self._steps[order] = np.arange(self._num_images) // self._global_batch_size
            self._epoch = epoch
        return int(self._steps[index])


class StepSampler:
    """A rank's images of each step from `start_step` to the end of the run, one list a step.

    One pass covers all epochs, so that the loader's workers live as long as the run. A rank that gets no image of a
    step has an empty list for it: all ranks count the same steps.

    Args:
        order: of the images in each epoch.
        start_step: first step, counted from 0.
        total_steps: end of the run.
        num_images: of the split.
        global_batch_size: images of one effective batch, over all ranks.
        share: what this rank takes of each step.
        excluded: steps that are passed over; the others keep their images.
    """

    def __init__(
        self,
        order: EpochOrder,
        *,
        start_step: int,
        total_steps: int,
        num_images: int,
        global_batch_size: int,
        share: Share = ALONE,
        excluded: Collection[int] = (),
    ) -> None:
        self._order = order
        self._steps = range(start_step, total_steps)
        self._excluded = sorted(step for step in set(excluded) if step in self._steps)
        self._num_images = num_images
        self._global_batch_size = global_batch_size
        self._share = share

    def __len__(self) -> int:
        return len(self._steps) - len(self._excluded)

    def __getitem__(self, n: int) -> Keys:
        """Return the rank's images of the step at place `n`; also for another thread than the one that iterates."""
        epoch, indices = step_indices(self._order, self._step(n), self._num_images, self._global_batch_size)
        return [(epoch, index) for index in self._share.of(indices.tolist())]

    def __iter__(self) -> Iterator[Keys]:
        return (self[n] for n in range(len(self)))

    def _step(self, n: int) -> int:
        """Return the number of the step at place `n`: each excluded one before it moves it on by one."""
        step = self._steps.start + n
        for excluded in self._excluded:
            if excluded > step:
                break
            step += 1
        return step
