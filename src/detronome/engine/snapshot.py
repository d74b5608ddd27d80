"""Host copies of tensors, taken while the next step computes.

Most of a training state holds still from one update to the next: only what changes earlier, such as BatchNorm's
statistics, is copied at once. The rest is copied beside the forward and backward pass of the next step, by another
thread (CPU) or on a stream of its own (CUDA), and `settle` is called before the update.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

__all__ = ["HostBuffers", "Snapshot"]


class HostBuffers:
    """Memory for copies, kept from one snapshot to the next; page-locked for tensors of a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies with the same shapes and memory layouts; a GPU's are enqueued on its current stream."""
        return {name: self._copy(name, tensor.detach()) for name, tensor in tensors.items()}

    def _copy(self, name: str, source: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (source.shape, source.dtype):
            buffer = torch.empty_like(source, device="cpu", pin_memory=source.is_cuda)
            self._buffers[name] = buffer
        if source.device.type == "cpu" and _is_dense(source) and source.stride() == buffer.stride():
            # Not torch's copy: it would start threads of its own beside those that compute.
            np.copyto(_memory_of(buffer), _memory_of(source))
        else:
            buffer.copy_(source, non_blocking=True)
        return buffer


class Snapshot:
    """Copies of tensors as they are now, begun by the thread that trains and finished by another.

    Args:
        tensors: what to copy.
        steady: names of those that keep their values until `settle` has returned; the others are copied at once.
        buffers: where the copies go. The previous snapshot in them must be done with.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, steady: Collection[str], buffers: HostBuffers) -> None:
        self._buffers = buffers
        self._steady = {name: tensor for name, tensor in tensors.items() if name in steady}
        self._copies = buffers.copy({name: tensor for name, tensor in tensors.items() if name not in steady})
        self._device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        self._begun = _event_on_current_stream(self._device)
        self._copied: torch.cuda.Event | None = None
        self._is_enqueued = threading.Event()

    def finish(self) -> dict[str, Tensor]:
        """Copy the rest; return all copies. Called once, by the other thread, which waits for a GPU here."""
        try:
            if self._device is None:
                self._copies |= self._buffers.copy(self._steady)
            else:
                self._copied = self._copy_beside(self._device)
        finally:
            self._is_enqueued.set()  # also after a failure: the training must not wait for ever
        if self._copied is not None:
            self._copied.synchronize()
        self._steady = {}  # a GPU's memory may be used again only now
        return self._copies

    def settle(self) -> None:
        """Return when the tensors may change. Host sync: until the copies are made (CPU) or enqueued (CUDA)."""
        self._is_enqueued.wait()
        if self._copied is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied)

    def _copy_beside(self, device: torch.device) -> torch.cuda.Event:
        assert self._begun is not None
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            stream.wait_event(self._begun)
            self._copies |= self._buffers.copy(self._steady)
            copied = torch.cuda.Event()
            copied.record(stream)
        return copied


def _event_on_current_stream(device: torch.device | None) -> torch.cuda.Event | None:
    if device is None:
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def _is_dense(tensor: Tensor) -> bool:
    """Return whether the values fill one block of memory, in whatever order."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _memory_of(tensor: Tensor) -> np.ndarray:
    """Return a dense tensor's bytes in the order in which they lie."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
