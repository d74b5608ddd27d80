"""What a data set asks of a step: images by padded shape, the passes they take, and how fast a loader prepares them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from detronome.config.schema import RunConfig
from detronome.data.augment.params import draw, evaluation_params
from detronome.data.buckets import Bucket, bucket_of
from detronome.data.build import augment_policy, build_train_batches, padded_shapes
from detronome.data.split import DataSplit
from detronome.data.store.shards.cloud import is_url
from detronome.errors import DetronomeError
from detronome.runtime.seeding import generator

__all__ = ["ShapeSample", "Workload", "loader_images_s", "sample_shapes"]

_SAMPLED_IMAGES = 400
_SIMULATED_STEPS = 200
_LOADED_BATCH = 4
_LOADING_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a run has to do, in numbers."""

    global_batch_size: int
    world_size: int
    passes: float
    """Micro-batches of a rank in a step, on average: images of several padded shapes do not share one."""
    steps_per_epoch: int
    epochs: int
    evaluations: int
    num_val_images: int
    eval_pixels: float = 1.0
    """Of an evaluation image, relative to a training image."""
    gradient_bytes: int = 0
    images_s_worker: float | None = None
    """That one loader process prepares; None where it is not known."""
    workers: int = 0
    """Loader processes of one rank; 0 is the training process itself."""


@dataclass(frozen=True, kw_only=True)
class ShapeSample:
    """Padded shapes that images of a split get, drawn as a run draws them."""

    training: tuple[Bucket, ...]
    evaluation: tuple[Bucket, ...]
    is_bucketed: bool

    @property
    def eval_pixels(self) -> float:
        """Pixels of an evaluation image relative to those of a training image."""
        return _mean_pixels(self.evaluation) / _mean_pixels(self.training)

    def passes(self, share: int, micro_batch_size: int) -> float:
        """Return how many micro-batches a rank's share of a step is cut into, on average.

        Images of different buckets do not share one, so there are more than share / micro_batch_size.
        """
        if not self.is_bucketed:
            return math.ceil(share / micro_batch_size)
        rng = np.random.default_rng(0)
        drawn = rng.integers(len(self.training), size=(_SIMULATED_STEPS, share))
        total = sum(
            math.ceil(count / micro_batch_size)
            for step in drawn.tolist()
            for count in Counter(self.training[i] for i in step).values()
        )
        return total / _SIMULATED_STEPS


def sample_shapes(config: RunConfig, train: DataSplit) -> ShapeSample:
    """Return a sample of the shapes of a split with images; the configuration's buckets are resolved."""
    policy, buckets = augment_policy(config.augment), padded_shapes(config)
    sizes = train.index.sizes_hw
    training, evaluation = [], []
    for n in range(_SAMPLED_IMAGES):
        rng = generator("workload", config.train.seed, n)
        height, width = sizes[rng.integers(len(sizes))].tolist()
        training.append(draw(policy, (height, width), rng).final_hw)
        evaluation.append(evaluation_params(policy, (height, width)).final_hw)
    if buckets:
        training = [bucket_of(size, buckets) for size in training]
        evaluation = [bucket_of(size, buckets) for size in evaluation]
    return ShapeSample(training=tuple(training), evaluation=tuple(evaluation), is_bucketed=bool(buckets))


def loader_images_s(config: RunConfig, train: DataSplit) -> float | None:
    """Return how many images a second one process of this machine decodes and augments, measured for a second; None
    where the images are not here."""
    if is_url(config.data.root):
        return None
    few = replace(
        config,
        batch=replace(config.batch, global_batch_size=min(_LOADED_BATCH, len(train.index))),
        data=replace(config.data, cache="none", augment_on="cpu"),
    )
    try:
        with (
            _one_thread(),
            build_train_batches(
                few, train, train.index.categories, 0, 1000, workers=0, device=torch.device("cpu")
            ) as batches,
        ):
            next(batches)  # opens files, starts the decoder
            num_images, start = 0, time.perf_counter()
            for batch in batches:
                num_images += len(batch)
                if time.perf_counter() - start > _LOADING_S:
                    break
            return num_images / (time.perf_counter() - start)
    except DetronomeError:
        return None  # a plan needs the annotations alone; training tells what is wrong with the images


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute as a loader's worker does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _mean_pixels(shapes: tuple[Bucket, ...]) -> float:
    return sum(height * width for height, width in shapes) / len(shapes)
