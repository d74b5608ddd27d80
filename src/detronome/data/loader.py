"""Batches in order from worker processes that live as long as the run.

Each item of the loader is one whole step: a worker decodes, augments and pads all its images, deals with those that
cannot be used, and says how long each stage took. A mistake in the data reaches the caller as the `DataError` that it
is, all images of the batch at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detronome.data.buckets import Bucket, bucket_of
from detronome.data.collate import PackedBatch, Sample, pack
from detronome.data.dataset import DetectionDataset
from detronome.data.quarantine import BadImage, BadImagePolicy, Quarantine
from detronome.data.raw_batch import RawBatch, RawSample, pack_raw
from detronome.data.sampler import EpochOrder, StepSampler
from detronome.errors import DataError, DetronomeError, Problem, TrainingError
from detronome.runtime.seeding import generator
from detronome.types import Batch, EffectiveBatch

__all__ = ["BatchLoader", "BatchStream", "LoaderMeter", "PackedStep", "eval_batches", "train_batches"]

_Key = tuple[int, int]
"""(epoch, index of the image)."""
_Keys = list[_Key]
_REPLACEMENT_TRIES = 20


def train_batches(
    dataset: DetectionDataset,
    order: EpochOrder,
    *,
    seed: int,
    start_step: int,
    total_steps: int,
    global_batch_size: int,
    workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
    buckets: tuple[Bucket, ...] = (),
    on_bad_image: BadImagePolicy = "stop",
    quarantine: Quarantine | None = None,
    augment_on: torch.device | None = None,
) -> BatchStream:
    """Return the effective batches of the steps from `start_step` to `total_steps`, one a step, epoch after epoch.

    What a step gets depends on (seed, step) alone, not on where the run was resumed nor on the workers.

    Args:
        dataset: images and targets, augmented for training.
        order: of the images in each epoch.
        seed: of the choice of replacements for images that cannot be used.
        start_step: first step, counted from 0.
        total_steps: end of the run.
        global_batch_size: images of one effective batch.
        workers: processes that prepare batches; 0 prepares them in this one.
        prefetch: batches that each worker prepares ahead.
        pin_memory: put batches in page-locked memory, for copies to a GPU that overlap with work.
        buckets: padded shapes; without any, a step is padded to its largest height and width.
        on_bad_image: what to do when an image cannot be used.
        quarantine: counts the bad images of the batches that are handed out.
        augment_on: augment and pad there, in this process; the workers only decode. In the workers when None.
    """
    sampler = StepSampler(
        order,
        start_step=start_step,
        total_steps=total_steps,
        num_images=len(dataset),
        global_batch_size=global_batch_size,
    )
    steps = _StepDataset(dataset, buckets, on_bad_image, seed=seed, is_training=True, is_raw=augment_on is not None)
    loader = BatchLoader(steps, sampler, workers, prefetch, pin_memory, quarantine, augment_on, keep_workers=False)
    return iter(loader)


def eval_batches(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
    buckets: tuple[Bucket, ...] = (),
    on_bad_image: BadImagePolicy = "stop",
    quarantine: Quarantine | None = None,
) -> BatchLoader:
    """Return all images of the split, to be iterated as often as wanted: in the annotation file's order, or bucket by
    bucket where there are some, so that every batch has one shape.

    An image that cannot be used is left out (never replaced: it would be counted twice). The workers are kept between
    passes; `close` ends them. Arguments as in `train_batches`.
    """
    groups: dict[Bucket | None, list[int]] = {}
    for i in range(len(dataset)):
        group = bucket_of(dataset.params(0, i).final_hw, buckets) if buckets else None
        groups.setdefault(group, []).append(i)
    batches = [
        [(0, i) for i in indices[start : start + batch_size]]
        for indices in groups.values()
        for start in range(0, len(indices), batch_size)
    ]
    steps = _StepDataset(dataset, buckets, "stop" if on_bad_image == "stop" else "skip")
    return BatchLoader(steps, batches, workers, prefetch, pin_memory, quarantine, None, keep_workers=True)


class BatchLoader:
    """Batches of given (epoch, index) pairs, one pass or many; a context manager that ends the workers."""

    def __init__(
        self,
        steps: _StepDataset,
        keys: Sampler[_Keys] | Sequence[_Keys],
        workers: int,
        prefetch: int,
        pin_memory: bool,
        quarantine: Quarantine | None,
        augment_on: torch.device | None,
        *,
        keep_workers: bool,
    ) -> None:
        self._num_batches = len(keys)  # type: ignore[arg-type]
        self._quarantine = quarantine
        self._augment_on = augment_on
        self._loader: DataLoader[PackedStep | _Failure] = DataLoader(
            steps,
            sampler=keys,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=keep_workers and workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_shield_from_signals,
            # Its own generator: otherwise starting a pass would draw from torch's global one.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> BatchStream:
        return BatchStream(self._loader, self._quarantine, self._augment_on)

    def close(self) -> None:
        """End the workers; another pass would start new ones."""
        _end_workers(self._loader, self._loader._iterator)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BatchStream(Iterator[EffectiveBatch]):
    """One pass over the batches. The workers begin at once, so that they fill up while the model is being built.

    Attributes:
        meter: what the batches handed out have cost, and how full the queue was.
    """

    def __init__(
        self,
        loader: DataLoader[PackedStep | _Failure],
        quarantine: Quarantine | None,
        augment_on: torch.device | None,
    ) -> None:
        self._loader = loader
        self._quarantine = quarantine
        self._augment_on = augment_on
        self.meter = LoaderMeter()
        handler = signal.getsignal(signal.SIGCHLD)
        self._items: Iterator[PackedStep | _Failure] | None = iter(loader)
        if signal.getsignal(signal.SIGCHLD) is not handler:
            # Torch has installed a handler that raises wherever the program is when a worker dies, perhaps in the
            # middle of an update. Waiting for a batch notices it too.
            signal.signal(signal.SIGCHLD, handler)

    @property
    def num_ready(self) -> int:
        """Batches that wait in the queue, ready to be handed out; 0 without workers."""
        queue = getattr(self._items, "_data_queue", None)
        early = sum(len(task) == 2 for task in getattr(self._items, "_task_info", {}).values())
        return early + (queue.qsize() if queue is not None else 0)

    def __next__(self) -> EffectiveBatch:
        step = self._next_step()
        while not step.parts:  # an evaluation batch of which no image could be used
            step = self._next_step()
        return EffectiveBatch(tuple(self._finish(part) for part in step.parts))

    def _finish(self, part: PackedBatch | RawBatch | Batch) -> Batch:
        if isinstance(part, RawBatch):
            assert self._augment_on is not None
            return part.augment(self._augment_on)
        return part if isinstance(part, Batch) else part.unpack()

    def _next_step(self) -> PackedStep:
        if self._items is None:
            raise StopIteration
        self.meter.num_ready += self.num_ready
        try:
            item = next(self._items)
        except StopIteration:
            self.close()
            raise
        except Exception as error:
            self._abort()
            if not _tells_of_a_dead_worker(error):
                raise
            raise TrainingError(
                "a data worker was killed, most often because memory or /dev/shm was full",
                where=f"{error}".partition("\n")[0],
                fix="lower data.workers or data.prefetch, or give the container more shared memory (--shm-size)",
            ) from error
        if isinstance(item, _Failure):
            self._abort()
            raise item.to_error()
        self.meter.add(item)
        if self._quarantine is not None:
            try:
                self._quarantine.admit(item.bad_images)
            except DataError:
                self._abort()
                raise
        return item

    def close(self) -> None:
        """End the pass, and the workers if they are not kept for another."""
        if self._loader.persistent_workers:
            self._items = None
        else:
            self._abort()

    def _abort(self) -> None:
        _end_workers(self._loader, self._items)
        self._items = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LoaderMeter:
    """Sums over the batches handed out since the last reset, for whoever looks for a bottleneck."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.stage_s: dict[str, float] = {}
        """Seconds by stage (read, decode, augment, collate), summed over the processes that worked."""
        self.num_images = 0
        self.num_batches = 0
        self.num_ready = 0
        """Batches found ready in the queue, summed over the requests."""

    def add(self, step: PackedStep) -> None:
        """Count one batch."""
        for stage, seconds in step.stage_s.items():
            self.stage_s[stage] = self.stage_s.get(stage, 0.0) + seconds
        self.num_images += sum(len(part) for part in step.parts)
        self.num_batches += 1


@dataclass(frozen=True, kw_only=True)
class PackedStep:
    """All that a worker sends for one step."""

    parts: tuple[PackedBatch | RawBatch | Batch, ...]
    bad_images: tuple[BadImage, ...]
    stage_s: dict[str, float]

    def pin_memory(self) -> PackedStep:
        """Return the step in page-locked memory; torch's loader calls this by name, in a thread of its own."""
        parts = (part.unpack() if isinstance(part, PackedBatch) else part for part in self.parts)
        return replace(self, parts=tuple(part.pin_memory() for part in parts))


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker. Torch would send the type and a printed traceback, and lose the rest."""

    kind: type[DetronomeError]
    problems: tuple[Problem, ...]

    def to_error(self) -> DetronomeError:
        error = self.kind.__new__(self.kind)
        # Not through the subclass: its constructor may ask for what went into the text.
        DetronomeError.__init__(error, self.problems)
        return error


class _StepDataset(Dataset["PackedStep | _Failure"]):
    """Whole batches by their list of (epoch, index).

    Args:
        dataset: the images.
        buckets: padded shapes.
        on_bad_image: what to do with an image that cannot be used.
        seed: of the replacements.
        is_training: a batch is never left without any image.
        is_raw: only decode, and leave the rest to the main process.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        buckets: tuple[Bucket, ...],
        on_bad_image: BadImagePolicy,
        *,
        seed: int = 0,
        is_training: bool = False,
        is_raw: bool = False,
    ) -> None:
        self._dataset = dataset
        self._buckets = buckets
        self._on_bad_image = on_bad_image
        self._seed = seed
        self._is_training = is_training
        self._is_raw = is_raw

    def __getitem__(self, keys: _Keys) -> PackedStep | _Failure:
        clock = self._dataset.clock
        clock.seconds.clear()
        samples: list[Any] = []
        bad_images: list[BadImage] = []
        problems: list[Problem] = []
        for key in keys:
            try:
                samples.append(self._read(key))
            except DataError as error:
                # A training step is never left without any image.
                is_last_hope = self._is_training and len(bad_images) == len(keys) - 1
                replacement = self._replacement(key) if self._on_bad_image == "replace" or is_last_hope else None
                samples += [] if replacement is None else [self._read(replacement)]
                bad_images.append(self._bad_image(key, error, replacement))
                problems += error.problems
            except DetronomeError as error:
                return _Failure(type(error), error.problems)
        if problems and (self._on_bad_image == "stop" or (self._is_training and not samples)):
            return _Failure(DataError, tuple(problems))
        with clock.stage("collate"):
            parts = (pack_raw if self._is_raw else pack)(samples, self._buckets)
        return PackedStep(parts=parts, bad_images=tuple(bad_images), stage_s=dict(clock.seconds))

    def _read(self, key: _Key) -> Sample | RawSample:
        return self._dataset.raw(key) if self._is_raw else self._dataset[key]

    def _replacement(self, key: _Key) -> _Key | None:
        """Return another image of the split, chosen by (seed, epoch, index) alone; None when it would take too long."""
        epoch, i = key
        rng = generator("replacement", self._seed, epoch, i)
        for other in rng.integers(len(self._dataset), size=_REPLACEMENT_TRIES).tolist():
            try:
                self._read((epoch, other))
            except DataError:
                continue
            return epoch, other
        return None

    def _bad_image(self, key: _Key, error: DataError, replacement: _Key | None) -> BadImage:
        _, i = key
        problem = error.problems[0]
        action = f"replaced by image id {self._dataset.image_id(replacement[1])}" if replacement else "left out"
        return BadImage(
            image_id=self._dataset.image_id(i),
            where=self._dataset.where(i),
            what=problem.what,
            fix=problem.fix,
            action=action,
        )


def _end_workers(loader: DataLoader[PackedStep | _Failure], items: object) -> None:
    """End the workers now. Torch does so when its iterator is deleted, but an error's traceback keeps that alive."""
    shut_down = getattr(items, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
    loader._iterator = None


def _tells_of_a_dead_worker(error: Exception) -> bool:
    """Whether a worker died, as opposed to raised: a broken connection shows it sooner than torch's own look round."""
    text = str(error)
    if isinstance(error, RuntimeError):
        return text.startswith("DataLoader worker")
    return isinstance(error, ConnectionError | EOFError | FileNotFoundError) and "in DataLoader worker" not in text


def _unchanged(item: Any) -> Any:
    return item


def _shield_from_signals(worker: int) -> None:
    """Keep a worker alive when the whole process group is told to stop: the main process saves, then ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _heed_second_sigterm)


def _heed_second_sigterm(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, _exit_now)


def _exit_now(number: int, frame: FrameType | None) -> None:
    os._exit(0)
