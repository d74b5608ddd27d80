"""The next batch travels to the GPU while the model works on this one.

Copies run on a stream of their own, and so does augmentation on the device. A batch is fetched ahead only when one is
ready in the loader's queue: waiting for it would keep the host from launching the work on the batch that is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

import torch

from detronome.data.loader import BatchStream, LoaderMeter
from detronome.types import EffectiveBatch

__all__ = ["DeviceStream"]


class DeviceStream(Iterator[EffectiveBatch]):
    """The batches of a stream, on a device.

    Args:
        batches: in host memory; page-locked, if the copies are to overlap with work.
        device: where the model is.
    """

    def __init__(self, batches: BatchStream, device: torch.device) -> None:
        self._batches = batches
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: EffectiveBatch | None = None

    @property
    def meter(self) -> LoaderMeter:
        """What the batches have cost; see `BatchStream`."""
        return self._batches.meter

    @property
    def next_image_ids(self) -> list[int]:
        """Ids of the images of the batch that comes next; see `BatchStream`."""
        ahead = self._ahead
        return self._batches.next_image_ids if ahead is None else ahead.image_ids

    @property
    def num_ready(self) -> int:
        """Batches that the workers have ready; see `BatchStream`."""
        return self._batches.num_ready

    def __next__(self) -> EffectiveBatch:
        if self._copies is None:
            return next(self._batches).to(self._device)
        batch = self._ahead if self._ahead is not None else self._copy()
        self._ahead = None
        self._hand_over(batch)
        if self._batches.num_ready:
            self._ahead = self._copy()
        return batch

    def _copy(self) -> EffectiveBatch:
        with torch.cuda.stream(self._copies):
            return next(self._batches).to(self._device)

    def _hand_over(self, batch: EffectiveBatch) -> None:
        """Order the current stream behind the copy, and keep the copy's memory until that stream is done with it."""
        assert self._copies is not None
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._copies)
        for part in batch.parts:
            for tensor in (part.images, part.padding_mask):
                tensor.record_stream(current)
            for target in part.targets:
                target.boxes_cxcywh.record_stream(current)
                target.labels.record_stream(current)

    def close(self) -> None:
        """End the stream and its workers."""
        self._ahead = None
        self._batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
