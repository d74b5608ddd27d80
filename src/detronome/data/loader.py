"""Batches in order from worker processes that live as long as the run.

Each item of the loader is one whole step: a worker decodes, augments and pads all its images, deals with those that
cannot be used, and says how long each stage took. A mistake in the data reaches the caller as the `DataError` that it
is, all images of the batch at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch.utils.data import DataLoader

from detronome.data.buckets import Bucket, bucket_of
from detronome.data.collate import PackedBatch
from detronome.data.dataset import DetectionDataset
from detronome.data.quarantine import BadImagePolicy, Quarantine
from detronome.data.raw_batch import RawBatch
from detronome.data.sampler import ALONE, EpochOrder, Share, StepKeys, StepSampler
from detronome.data.step_dataset import Failure, PackedStep, StepDataset
from detronome.errors import DataError, TrainingError
from detronome.types import Batch, EffectiveBatch

__all__ = ["BatchLoader", "BatchStream", "LoaderMeter", "eval_batches", "train_batches"]


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
    share: Share = ALONE,
    excluded: Collection[int] = (),
) -> BatchStream:
    """Return a rank's effective batches of the steps from `start_step` to `total_steps`, epoch after epoch.

    There is one for each step that is not excluded, without parts where the rank has no image of the step. What a step
    gets over all ranks depends on (seed, step) alone: not on where the run was resumed, the workers, the number of
    ranks nor the excluded steps. (Without buckets, what an image is padded to does depend on the rank's others.)

    Args:
        dataset: images and targets, augmented for training.
        order: of the images in each epoch.
        seed: of the choice of replacements for images that cannot be used.
        start_step: first step, counted from 0.
        total_steps: end of the run.
        global_batch_size: images of one effective batch, over all ranks.
        workers: processes that prepare batches; 0 prepares them in this one.
        prefetch: batches that each worker prepares ahead.
        pin_memory: put batches in page-locked memory, for copies to a GPU that overlap with work.
        buckets: padded shapes; without any, a step is padded to its largest height and width.
        on_bad_image: what to do when an image cannot be used.
        quarantine: counts the bad images of the batches that are handed out.
        augment_on: augment and pad there, in this process; the workers only decode. In the workers when None.
        share: what this rank takes of each step.
        excluded: steps that are passed over: neither loaded nor handed out.
    """
    sampler = StepSampler(
        order,
        start_step=start_step,
        total_steps=total_steps,
        num_images=len(dataset),
        global_batch_size=global_batch_size,
        share=share,
        excluded=excluded,
    )
    steps = StepDataset(dataset, buckets, on_bad_image, seed=seed, is_raw=augment_on is not None)
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
    share: Share = ALONE,
) -> BatchLoader:
    """Return all images of the split, to be iterated as often as wanted: by padded shape, then in the file's order.

    Every batch has one shape: a bucket's, or without buckets the images' own size. So an image is seen as it is when
    predicted alone. One that cannot be used is left out (never replaced: it would be counted twice); a batch of such
    images alone has no parts. Ranks divide the batches, which are the same for any number of them. The workers are kept
    between passes; `close` ends them. Arguments as in `train_batches`.
    """
    groups: dict[Bucket, list[int]] = {}
    for i in range(len(dataset)):
        final_hw = dataset.params(0, i).final_hw
        groups.setdefault(bucket_of(final_hw, buckets) if buckets else final_hw, []).append(i)
    batches = [
        [(0, i) for i in indices[start : start + batch_size]]
        for indices in groups.values()
        for start in range(0, len(indices), batch_size)
    ]
    steps = StepDataset(dataset, buckets, "stop" if on_bad_image == "stop" else "skip")
    return BatchLoader(steps, share.of(batches), workers, prefetch, pin_memory, quarantine, None, keep_workers=True)


class BatchLoader:
    """Batches of given (epoch, index) pairs, one pass or many; a context manager that ends the workers."""

    def __init__(
        self,
        steps: StepDataset,
        keys: StepKeys,
        workers: int,
        prefetch: int,
        pin_memory: bool,
        quarantine: Quarantine | None,
        augment_on: torch.device | None,
        *,
        keep_workers: bool,
    ) -> None:
        self._steps = steps
        self._keys = keys
        self._quarantine = quarantine
        self._augment_on = augment_on
        self._loader: DataLoader[PackedStep | Failure] = DataLoader(
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
        return len(self._keys)

    def __iter__(self) -> BatchStream:
        return BatchStream(self._loader, self._steps, self._keys, self._quarantine, self._augment_on)

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
        loader: DataLoader[PackedStep | Failure],
        steps: StepDataset,
        keys: StepKeys,
        quarantine: Quarantine | None,
        augment_on: torch.device | None,
    ) -> None:
        self._loader = loader
        self._steps = steps
        self._keys = keys
        self._num_received = 0
        self._quarantine = quarantine
        self._augment_on = augment_on
        self.meter = LoaderMeter()
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        self._items: Iterator[PackedStep | Failure] | None = iter(loader)
        if hasattr(signal, "SIGCHLD") and signal.getsignal(signal.SIGCHLD) is not handler:
            # Torch has installed a handler that raises wherever the program is when a worker dies, perhaps in the
            # middle of an update. Waiting for a batch notices it too.
            signal.signal(signal.SIGCHLD, handler)

    @property
    def num_ready(self) -> int:
        """Batches that wait to be handed out; 0 without workers. Those that have overtaken the next one do not count,
        unless they are still in the queue, which does not tell."""
        tasks, queue = getattr(self._items, "_task_info", {}), getattr(self._items, "_data_queue", None)
        first = following = getattr(self._items, "_rcvd_idx", 0)
        while len(tasks.get(following, ())) == 2:  # the worker and what it has sent
            following += 1
        try:
            return following - first + (queue.qsize() if queue is not None else 0)
        except NotImplementedError:  # macOS cannot count what is in a queue between processes
            return following - first

    @property
    def next_image_ids(self) -> list[int]:
        """Ids of the images that the next batch is made of, before any is replaced; none at the end.

        Asks no worker: another thread may read it while this one waits for the batch. Costs nothing until then.
        """
        n = self._num_received
        return self._steps.image_ids(self._keys[n]) if n < len(self._keys) else []

    def __next__(self) -> EffectiveBatch:
        return EffectiveBatch(tuple(self._finish(part) for part in self._next_step().parts))

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
        if isinstance(item, Failure):
            self._abort()
            raise item.error
        self._num_received += 1
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
        """Seconds by stage (cache, read, decode, augment, collate), summed over the processes that worked."""
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

    @property
    def image_stage_s(self) -> dict[str, float]:
        """Seconds by stage for one image; empty where no batch was asked for."""
        return {stage: seconds / max(self.num_images, 1) for stage, seconds in self.stage_s.items()}

    @property
    def batches_ready(self) -> float:
        """Batches found ready at a request, on average; 0 where none was asked for."""
        return self.num_ready / max(self.num_batches, 1)


def _end_workers(loader: DataLoader[PackedStep | Failure], items: object) -> None:
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
