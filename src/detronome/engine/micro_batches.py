"""Micro-batches that shrink: a step that runs out of memory is begun again in smaller pieces, and the size is kept.

The gradient of an effective batch does not depend on its cut, so a run that had to shrink trains the same model.
"""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

from detronome.errors import Problem, TrainingError
from detronome.types import Batch, EffectiveBatch

__all__ = [
    "MicroBatchSizes",
    "OutOfMemoryAt",
    "attempt",
    "is_out_of_memory",
    "release_memory",
    "shape_of",
    "until_it_fits",
]

R = TypeVar("R")
_OUT_OF_MEMORY = re.compile(
    r"\bout of memory\b"  # CUDA's allocator and driver, MPS
    r"|\bCU[A-Z]+_STATUS_(?:INTERNAL_ERROR_(?:HOST|DEVICE)_)?ALLOC(?:ATION)?_FAILED\b"  # cuBLAS, cuDNN, cuSOLVER ...
    r"|\bUnable to find a valid cuDNN algorithm\b"  # no algorithm's workspace found room
    r"|\bDefaultCPUAllocator: (?:can't allocate|not enough) memory\b"
    r"|^std::bad_alloc$"
)
_GIB = 2**30
_FIXES = {
    "training": "use smaller images (augment.sizes, augment.max_size, data.buckets), train.precision=bf16, or a "
    "smaller model; end other programs that use this memory",
    "evaluation": "use smaller images (augment.eval_size, augment.eval_max_size) or a smaller model; end other "
    "programs that use this memory",
}


@dataclass(frozen=True, kw_only=True)
class OutOfMemoryAt:
    """A micro-batch for which memory had no room. Plain data: ranks send it to each other."""

    shape: str
    """Padded `HEIGHTxWIDTH` in pixels."""
    num_images: int
    rank: int = 0
    message: str = ""
    """First line of the allocator's complaint."""
    memory: str = ""
    """How much the device has and who holds it, where it can tell."""


class MicroBatchSizes:
    """How many images of a padded shape go through the model at once.

    A limit found at one shape holds for every shape with at least as many pixels. Shapes are `HEIGHTxWIDTH`.

    Args:
        size: images at once where nothing else is known.
        limits: smaller numbers by shape, as `state` returned them.
        purpose: what runs; a failure's fix depends on it.
    """

    def __init__(
        self,
        size: int,
        limits: Mapping[str, int] | None = None,
        *,
        purpose: Literal["training", "evaluation"] = "training",
    ) -> None:
        assert size >= 1, size
        self.size = size
        self.purpose = purpose
        self._limits: dict[str, int] = {}
        self.restore(limits or {})

    def of(self, shape: str) -> int:
        """Return the most images of a padded shape that go through the model at once, at least 1."""
        return min([self.size, *(limit for s, limit in self._limits.items() if _pixels(s) <= _pixels(shape))])

    def cut(self, batch: EffectiveBatch) -> list[Batch]:
        """Cut a batch into micro-batches of one shape each and at most so many images."""
        return [micro_batch for part in batch.parts for micro_batch in part.split(self.of(shape_of(part)))]

    def split(self, failures: Sequence[OutOfMemoryAt]) -> list[tuple[OutOfMemoryAt, int]]:
        """Halve what failed; return (failure, images at once from now on) for those that have lowered a limit.

        Ranks that split the same failures have the same limits afterwards, and what several of them met halves once.

        Raises:
            TrainingError: a single image does not fit; all such shapes at once.
        """
        hopeless = {failure.shape: self._problem(failure) for failure in failures if failure.num_images == 1}
        if hopeless:
            raise TrainingError(list(hopeless.values()))
        lowered = []
        for failure in failures:
            new = failure.num_images // 2
            if new < self.of(failure.shape):
                self._limit(failure.shape, new)
                lowered.append((failure, new))
        return lowered

    def state(self) -> dict[str, int]:
        """Return the limits by shape, for a checkpoint."""
        return dict(sorted(self._limits.items()))

    def restore(self, limits: Mapping[str, int]) -> None:
        """Put back what `state` returned, in place of all that was learnt since."""
        self._limits = dict(limits)

    def _limit(self, shape: str, limit: int) -> None:
        implied = [s for s, n in self._limits.items() if n >= limit and _pixels(s) >= _pixels(shape)]
        for other in implied:
            del self._limits[other]
        self._limits[shape] = limit

    def _problem(self, failure: OutOfMemoryAt) -> Problem:
        first = f"{self.size} images at once, then fewer down to 1" if self.size > 1 else "1 image at once"
        return Problem(
            what=f"memory has no room for one image of {failure.shape} pixels in {self.purpose}; tried: {first}, the "
            f"last twice ({failure.message})",
            where=f"rank {failure.rank}, {failure.memory or 'memory of the model'}",
            fix=_FIXES[self.purpose],
        )


def until_it_fits(
    run: Callable[[], R | OutOfMemoryAt],
    sizes: MicroBatchSizes,
    *,
    restart: Callable[[], object],
    on_split: Callable[[OutOfMemoryAt, int], object],
    agree: Callable[[list[OutOfMemoryAt]], list[OutOfMemoryAt]] = list,
) -> R:
    """Run something in pieces as small as memory demands, and return its result.

    A single image that finds no room is tried a second time, since others may have held the memory for a moment only.

    Args:
        run: all micro-batches that `sizes` cuts at this moment, up to the first that `attempt` fails at.
        sizes: learns from failures.
        restart: undoes what a failed run has left behind: gradients, BatchNorm statistics, the state of random
            generators. The next run then does what it would have done as the first one.
        on_split: is told of a failure and the images at once from now on.
        agree: returns the failures of all ranks on every rank, given this one's; called after every run, also after
            one without a failure, so that all ranks begin again together. Alone, they are its own.

    Raises:
        TrainingError: a single image does not fit, on any rank.
    """
    tried_alone: set[str] = set()
    while True:
        result = run()
        failures = agree([result] if isinstance(result, OutOfMemoryAt) else [])
        if not failures:
            assert not isinstance(result, OutOfMemoryAt), "a failure that the ranks agreed to pass over"
            return result
        del result  # it would hold memory during the next run
        restart()
        for failure, new in sizes.split([f for f in failures if f.num_images > 1 or f.shape in tried_alone]):
            on_split(failure, new)
        tried_alone |= {failure.shape for failure in failures if failure.num_images == 1}


def attempt(
    work: Callable[[], object], micro_batch: Batch, device: torch.device, *, rank: int = 0
) -> OutOfMemoryAt | None:
    """Do the work on one micro-batch; return None, or how memory ran out, with all that the work held released.

    What it has added to gradients and statistics until then stays, for the caller to undo.

    Args:
        work: forward, or forward and backward.
        micro_batch: what the work is done on.
        device: where the model is.
        rank: this process's, for the report.
    """
    try:
        work()
        return None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).partition("\n")[0] or type(error).__name__
    # Only here, outside the handler, is the traceback gone that kept the tensors of all its frames.
    memory = _memory_account(device)
    release_memory(device)
    return OutOfMemoryAt(
        shape=shape_of(micro_batch), num_images=len(micro_batch), rank=rank, message=message, memory=memory
    )


def shape_of(batch: Batch) -> str:
    """Return the padded shape of a batch as `HEIGHTxWIDTH`."""
    height, width = batch.images.shape[-2:]
    return f"{height}x{width}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory was too small for what was asked, so that asking for less may help."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # After an error of a collective, NCCL's own lack of memory included, the ranks' connection cannot be used again.
    if not isinstance(error, RuntimeError) or (dist.is_available() and isinstance(error, dist.DistError)):
        return False
    return _OUT_OF_MEMORY.search(str(error)) is not None


def release_memory(device: torch.device) -> None:
    """Free what nobody refers to any more, and give the allocator's cache back to the device. Costs a host sync.

    An error that is being handled refers to all the tensors of its frames: call this after the `except` block.
    """
    gc.collect()
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


def _memory_account(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    others = max(total - free - own, 0)
    return (
        f"{torch.cuda.get_device_name(device)} ({device}): {total / _GIB:.1f} GiB in all, {own / _GIB:.1f} held by "
        f"this process, {others / _GIB:.1f} by others, {free / _GIB:.1f} free"
    )


def _pixels(shape: str) -> int:
    return math.prod(map(int, shape.split("x")))
