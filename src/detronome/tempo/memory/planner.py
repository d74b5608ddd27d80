"""How much memory a run needs at its fullest moment, for the largest images and the fullest of a data set.

Every question is answered by a trace of its own: without arithmetic a step of DETR-R50 takes about a second, whatever
the number of images, so that nothing needs to be interpolated. Answers are kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from detronome.config.schema import RunConfig
from detronome.data.augment.params import draw
from detronome.data.buckets import Bucket, bucket_of
from detronome.data.build import augment_policy, padded_shapes
from detronome.data.largest_shapes import largest_eval_shape, largest_training_shape
from detronome.data.split import DataSplit
from detronome.engine.worst_case import worst_eval_batch, worst_training_batch
from detronome.errors import ConfigError
from detronome.runtime.precision import Precision
from detronome.runtime.seeding import generator
from detronome.tempo.memory.account import Cause, MemoryAccount, Phase, StepTrace
from detronome.tempo.memory.caching_allocator import reserved_bytes
from detronome.tempo.memory.stand_in import DeviceType
from detronome.tempo.memory.trace import StepTracer, Traced
from detronome.types import Batch

__all__ = ["CONTEXT_BYTES", "MemoryPlanner"]

CONTEXT_BYTES = 576 * 2**20
"""What CUDA takes from a GPU before the first tensor: about 0.5 GiB for the driver's context and the kernels of torch,
cuBLAS and cuDNN, and cuBLAS's workspace of up to 32 MiB. An assumption: it differs by GPU, driver and torch's build."""

_NOTHING: Bucket = (64, 64)
"""A rank without images runs one of nothing, see `engine.step`."""
_SAMPLED_IMAGES = 1024
_BATCHES_HELD: Mapping[DeviceType, int] = {"cpu": 2, "cuda": 3}
"""Effective batches at once: this step's, the last one's, which the guard may run again, and, on a GPU, the next one on
its way."""


class MemoryPlanner:
    """Predicts the memory of training steps and evaluation batches, without a GPU and without any image.

    Predicted is what tensors hold in the steady state, after the first update; on a GPU also the device's context and
    what the allocator wastes. Not counted: the program itself, what the C library keeps on a CPU, memory on the host
    beside a GPU, the loader's workers, and what `train.compile` saves or costs. Kernels' own workspaces are not seen:
    on a CPU they did not matter (`benches/bench_memory_plan.py`), cuDNN's on a GPU have not been measured.

    Args:
        config: resolved, but for the micro-batch size.
        train: the split to learn from.
        val: the split to evaluate on, if any.
        device_type: of the device that the run is to have.
        world_size: ranks that share the work.

    Raises:
        ConfigError: the run is to be sharded over ranks (FSDP), which cannot be predicted.
    """

    def __init__(
        self,
        config: RunConfig,
        train: DataSplit,
        val: DataSplit | None,
        *,
        device_type: DeviceType,
        world_size: int = 1,
    ) -> None:
        if config.train.parallel == "fsdp" and world_size > 1:
            raise ConfigError(
                "the memory of a sharded run cannot be predicted",
                where="train.parallel = 'fsdp'",
                fix="plan with train.parallel=ddp: a sharded run needs no more of weights, gradients and moments",
            )
        self._config = config
        self._train = train
        self._val = val
        self._device_type = device_type
        self._world_size = world_size
        self._share = min(math.ceil(config.batch.global_batch_size / world_size), max(len(train.index), 1))
        self._policy = augment_policy(config.augment)
        self._buckets = padded_shapes(config)
        self._tracers: dict[tuple[Precision, str], StepTracer] = {}
        self._traces: dict[tuple[Any, ...], StepTrace] = {}

    def training(
        self, micro_batch_size: int, *, precision: Precision | None = None, checkpointing: str | None = None
    ) -> MemoryAccount:
        """Return the account of a step of the largest images with the most objects.

        Args:
            micro_batch_size: images in one forward pass; more than a rank has of an effective batch count as that many.
            precision: of the forward pass; the configuration's by default.
            checkpointing: what is computed again in backward, as `train.checkpoint_activations`; likewise.
        """
        return self.trace(micro_batch_size, precision=precision, checkpointing=checkpointing).account

    def evaluation(self, batch_size: int, *, precision: Precision | None = None) -> MemoryAccount | None:
        """Return the account of an evaluation of the largest images, during a run; None without a split to evaluate on.

        Args:
            batch_size: images in one forward pass.
            precision: of the forward pass; the configuration's by default.
        """
        shape_hw = (
            None if self._val is None else largest_eval_shape(self._policy, self._val.index.sizes_hw, self._buckets)
        )
        if shape_hw is None:
            return None
        precision = precision or self._precision
        checkpointing = self._config.train.checkpoint_activations
        key = ("evaluation", batch_size, precision)
        if key not in self._traces:
            (batch,) = worst_eval_batch(shape_hw=shape_hw, num_images=batch_size).parts
            traced = self._tracer(precision, checkpointing).evaluation(_without_data(batch))
            held = (_BATCHES_HELD[self._device_type] - 1) * self._effective_batch_bytes + _batch_bytes(
                shape_hw, batch_size
            )
            self._traces[key] = self._finished("evaluation", batch, traced, batch_bytes=held)
        return self._traces[key].account

    def trace(
        self,
        micro_batch_size: int,
        *,
        precision: Precision | None = None,
        checkpointing: str | None = None,
        shape: Literal["worst", "mean"] = "worst",
    ) -> StepTrace:
        """Return account and kernels of a training step.

        Args:
            micro_batch_size: as for `training`.
            precision: as for `training`.
            checkpointing: as for `training`.
            shape: `worst`: the largest images with the most objects; `mean`: images of the size and with the objects
                that are usual, for questions of time.
        """
        precision = precision or self._precision
        checkpointing = checkpointing or self._config.train.checkpoint_activations
        num_images = min(micro_batch_size, self._share)
        key = ("training", num_images, precision, checkpointing, shape)
        if key not in self._traces:
            shape_hw = self._largest_hw if shape == "worst" else self._mean_hw
            counts = self._object_counts if shape == "worst" else self._usual_counts(num_images)
            (batch,) = worst_training_batch(
                shape_hw=shape_hw,
                num_images=num_images,
                objects_per_image=counts,
                num_classes=max(len(self._train.index.categories), 1),
                with_masks=self._train.maps is not None,
            ).parts
            traced = self._tracer(precision, checkpointing).training(
                _without_data(batch), has_gradients=num_images < self._share
            )
            held = _BATCHES_HELD[self._device_type] * self._effective_batch_bytes
            self._traces[key] = self._finished("training", batch, traced, batch_bytes=held)
        return self._traces[key]

    def _finished(self, phase: Phase, batch: Batch, traced: Traced, *, batch_bytes: int) -> StepTrace:
        """Add what no trace sees."""
        held = Counter(traced.bytes_by_cause)
        held[Cause.BATCH] += batch_bytes
        if self._world_size > 1:
            held[Cause.GRADIENTS] += traced.num_gradient_bytes  # the buckets in which DDP sums them
        if self._device_type == "cuda":
            held[Cause.CONTEXT] += CONTEXT_BYTES
            held[Cause.SLACK] += reserved_bytes(traced.movements) - sum(traced.bytes_by_cause.values())
        height, width = batch.images.shape[-2:]
        account = MemoryAccount(
            phase=phase,
            shape=f"{height}x{width}",
            num_images=len(batch),
            num_objects=batch.num_objects,
            bytes_by_cause={cause: held[cause] for cause in Cause if held[cause]},
            moment=traced.stage,
        )
        return StepTrace(account=account, ops=traced.ops)

    def _tracer(self, precision: Precision, checkpointing: str) -> StepTracer:
        key = (precision, checkpointing)
        if key not in self._tracers:
            train = replace(
                self._config.train,
                precision=precision,
                checkpoint_activations=checkpointing,  # type: ignore[arg-type]  # checked with all settings
                compile=False,
            )
            self._tracers[key] = StepTracer(
                replace(self._config, train=train),
                num_images=len(self._train.index),
                num_classes=len(self._train.index.categories),
                device_type=self._device_type,
            )
        return self._tracers[key]

    @property
    def _precision(self) -> Precision:
        precision = self._config.train.precision
        assert precision != "auto", "the configuration is resolved"
        return precision

    @cached_property
    def _object_counts(self) -> np.ndarray:
        counts = self._train.index.num_objects_per_image
        return counts if len(counts) else np.zeros(1, np.int64)

    @cached_property
    def _largest_hw(self) -> Bucket:
        sizes_hw = self._train.index.sizes_hw
        return largest_training_shape(self._policy, sizes_hw, self._buckets, num_images=self._share) or _NOTHING

    @cached_property
    def _mean_hw(self) -> Bucket:
        """The shape with the mean number of pixels, and the mean aspect, of what a sample of images is padded to."""
        sizes_hw = self._train.index.sizes_hw
        if len(sizes_hw) == 0:
            return _NOTHING
        rng = generator("mean_shape", self._config.train.seed)
        drawn = [
            draw(self._policy, tuple(sizes_hw[i].tolist()), rng).final_hw
            for i in rng.integers(len(sizes_hw), size=_SAMPLED_IMAGES)
        ]
        if self._buckets:
            padded = np.array([bucket_of(size_hw, self._buckets) for size_hw in drawn])
        else:
            together = max(_SAMPLED_IMAGES // self._share, 1)
            padded = np.array([np.max(step, axis=0) for step in np.array_split(np.array(drawn), together)])
        pixels, aspect = padded.prod(axis=1).mean(), (padded[:, 0] / padded[:, 1]).mean()
        return round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))

    def _usual_counts(self, num_images: int) -> np.ndarray:
        """Return object counts as they are spread over the images of the split."""
        ordered = np.sort(self._object_counts)
        return ordered[((np.arange(num_images) + 0.5) / num_images * len(ordered)).astype(np.int64)]

    @property
    def _effective_batch_bytes(self) -> int:
        fullest = np.sort(self._object_counts)[-self._share :]
        return _batch_bytes(self._largest_hw, self._share, int(fullest.sum()))


def _batch_bytes(shape_hw: Bucket, num_images: int, num_objects: int = 0) -> int:
    """Return the size of bytes for three colours and a mask, four float32 and an int64 for each object."""
    return math.prod(shape_hw) * 4 * num_images + 24 * num_objects


def _without_data(batch: Batch) -> Batch:
    return batch.to(torch.device("meta"))
