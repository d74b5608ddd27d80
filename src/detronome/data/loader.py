"""Batches in order from worker processes that live as long as the run.

Each item of the loader is one whole step: a worker decodes, augments and pads all its images. A mistake in the data
reaches the caller as the `DataError` that it is, all images of the batch at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detronome.data.collate import PackedBatch, pack
from detronome.data.dataset import DetectionDataset
from detronome.data.sampler import StepSampler
from detronome.errors import DetronomeError, Problem, TrainingError
from detronome.types import Batch

__all__ = ["BatchLoader", "BatchStream", "eval_batches", "train_batches"]

_Keys = list[tuple[int, int]]


def train_batches(
    dataset: DetectionDataset,
    *,
    seed: int,
    start_step: int,
    total_steps: int,
    global_batch_size: int,
    workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
    pad_multiple: int = 1,
) -> BatchStream:
    """Return the effective batches of the steps from `start_step` to `total_steps`, one a step, epoch after epoch.

    What a step gets depends on (seed, step) alone, not on where the run was resumed nor on the workers.

    Args:
        dataset: images and targets, augmented for training.
        seed: of the order.
        start_step: first step, counted from 0.
        total_steps: end of the run.
        global_batch_size: images of one effective batch.
        workers: processes that prepare batches; 0 prepares them in this one.
        prefetch: batches that each worker prepares ahead.
        pin_memory: put batches in page-locked memory, for copies to a GPU that overlap with work.
        pad_multiple: round padded sizes up to a multiple of this many pixels.
    """
    sampler = StepSampler(
        seed=seed,
        start_step=start_step,
        total_steps=total_steps,
        num_images=len(dataset),
        global_batch_size=global_batch_size,
    )
    return iter(
        BatchLoader(dataset, sampler, workers, prefetch, pin_memory, pad_multiple=pad_multiple, keep_workers=False)
    )


def eval_batches(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
    pad_multiple: int = 1,
) -> BatchLoader:
    """Return all images of the split in the annotation file's order, to be iterated as often as wanted.

    The workers are kept between passes; `close` ends them. Arguments as in `train_batches`.
    """
    indices = range(len(dataset))
    batches = [[(0, i) for i in indices[start : start + batch_size]] for start in indices[::batch_size]]
    return BatchLoader(dataset, batches, workers, prefetch, pin_memory, pad_multiple=pad_multiple, keep_workers=True)


class BatchLoader:
    """Batches of given (epoch, index) pairs, one pass or many; a context manager that ends the workers."""

    def __init__(
        self,
        dataset: DetectionDataset,
        keys: Sampler[_Keys] | Sequence[_Keys],
        workers: int,
        prefetch: int,
        pin_memory: bool,
        *,
        pad_multiple: int,
        keep_workers: bool,
    ) -> None:
        self._num_batches = len(keys)  # type: ignore[arg-type]
        self._loader: DataLoader[PackedBatch | _Failure] = DataLoader(
            _StepDataset(dataset, pad_multiple),
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
        return BatchStream(self._loader)

    def close(self) -> None:
        """End the workers; another pass would start new ones."""
        _end_workers(self._loader, self._loader._iterator)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BatchStream(Iterator[Batch]):
    """One pass over the batches. The workers begin at once, so that they fill up while the model is being built."""

    def __init__(self, loader: DataLoader[PackedBatch | _Failure]) -> None:
        self._loader = loader
        handler = signal.getsignal(signal.SIGCHLD)
        self._items: Iterator[PackedBatch | Batch | _Failure] | None = iter(loader)
        if signal.getsignal(signal.SIGCHLD) is not handler:
            # Torch has installed a handler that raises wherever the program is when a worker dies, perhaps in the
            # middle of an update. Waiting for a batch notices it too.
            signal.signal(signal.SIGCHLD, handler)

    def __next__(self) -> Batch:
        if self._items is None:
            raise StopIteration
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
        return item.unpack() if isinstance(item, PackedBatch) else item

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


class _StepDataset(Dataset["PackedBatch | _Failure"]):
    """Whole batches by their list of (epoch, index)."""

    def __init__(self, dataset: DetectionDataset, pad_multiple: int) -> None:
        self._dataset = dataset
        self._pad_multiple = pad_multiple

    def __getitem__(self, keys: _Keys) -> PackedBatch | _Failure:
        samples, errors = [], []
        for key in keys:
            try:
                samples.append(self._dataset[key])
            except DetronomeError as error:
                errors.append(error)
        if errors:
            return _Failure(type(errors[0]), tuple(problem for error in errors for problem in error.problems))
        return pack(samples, pad_multiple=self._pad_multiple)


def _end_workers(loader: DataLoader[PackedBatch | _Failure], items: object) -> None:
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
