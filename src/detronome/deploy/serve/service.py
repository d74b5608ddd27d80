"""What the server does with an image, and how much of it at once: the part that knows no HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from detronome.deploy.serve.body import UploadBudget
from detronome.deploy.serve.images import decode_upload
from detronome.deploy.serve.limits import Limits, RefusedError
from detronome.deploy.serve.metrics import Gauge, Metrics
from detronome.deploy.serve.model_process import ModelProcess
from detronome.deploy.serve.model_thread import ModelThread
from detronome.deploy.serve.queue import BatchQueue, Job
from detronome.runtime.processors import usable_cpus
from detronome.types import Categories, Detections

__all__ = ["Drawing", "Found", "Service", "Slot"]

Drawing = Callable[[UInt8[np.ndarray, "H W 3"], Detections, Categories], UInt8[np.ndarray, "H2 W2 3"]]
"""Draws what was found into an image."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found in one image, and what it took."""

    image: UInt8[np.ndarray, "H W 3"]
    detections: Detections
    timing_ms: dict[str, float]


class Service:
    """Takes images in as long as they can be answered in time, and refuses the others at once.

    Args:
        process: with the model; not started yet.
        draw: draws what was found.
        limits: how much is taken on.

    Attributes:
        categories: what the model's labels mean; empty before `open`.
        is_draining: whether the server has been told to stop: what has begun is finished, and nothing new begins.
    """

    def __init__(self, process: ModelProcess, *, draw: Drawing, limits: Limits) -> None:
        self.limits = limits
        self.categories = Categories(ids=(), names=())
        self.is_draining = False
        self.in_flight = 0
        self.uploads = UploadBudget(limits.max_upload_bytes)
        self._draw = draw
        self._queue = BatchQueue(max_batch=limits.max_batch, max_delay_s=limits.max_delay_s)
        self.model = ModelThread(
            process, self._queue, on_batch=self._count_batch, on_restart=lambda: self.metrics.restarts.add()
        )
        self._pool = ThreadPoolExecutor(max_workers=max(2, usable_cpus()), thread_name_prefix="image")
        self._slots = _Slots(limits.max_decoded_bytes)
        self.metrics = Metrics(
            [
                Gauge("detronome_queue_length", "Images that wait for the model.", lambda: len(self._queue)),
                Gauge("detronome_images_held", "Images between upload and answer.", lambda: self._slots.taken),
                Gauge("detronome_in_flight", "Predictions being answered.", lambda: self.in_flight),
                Gauge("detronome_upload_bytes", "Bytes of bodies held.", lambda: self.uploads.held_bytes),
                Gauge("detronome_decoded_bytes", "Bytes of decoded images held.", lambda: self._slots.held_bytes),
                Gauge("detronome_ready", "1 while predictions are answered.", lambda: float(self.is_ready)),
            ],
            max_batch=limits.max_batch,
        )

    @property
    def is_ready(self) -> bool:
        return not self.is_draining and self.model.is_ready

    def open(self) -> None:
        """Open the model; takes as long as that takes.

        Raises:
            DetronomeError: it cannot be opened.
            ModelProcessError: its process died on the way.
        """
        self.categories = self.model.open()

    def start(self) -> None:
        """Begin to answer; called on the event loop."""
        self.model.start()

    def stop(self) -> None:
        """End the model's process; what waits is not answered."""
        self.model.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def refuse_if_busy(self, deadline: float) -> None:
        """Refuse a request that would not be answered in time; called before its body is read.

        Raises:
            RefusedError: 503.
        """
        if self.is_draining:
            raise RefusedError(503, "draining", "the server is being stopped", fix="ask another", retry_after_s=5)
        self._refuse_if_full(deadline)

    def _refuse_if_full(self, deadline: float) -> None:
        expected_s = self._slots.taken * self.model.seconds_per_image
        if self._slots.taken >= self.limits.max_queue:  # first of what changes: it costs least, and is told most
            raise RefusedError(503, "queue_full", "the queue is full", fix="try again", retry_after_s=expected_s)
        if not self.model.is_ready:
            raise RefusedError(503, "not_ready", "the model is not ready", fix="try again", retry_after_s=5)
        if expected_s > deadline - time.monotonic():
            raise RefusedError(
                503, "too_late", "the queue is too long to answer in time", fix="try again", retry_after_s=expected_s
            )

    def slot(self, deadline: float) -> Slot:
        """Return a place for one image; it is free again when the request and its work in threads have ended.

        A request whose body was being read when the server was told to stop has begun, and gets one.

        Raises:
            RefusedError: 503, there is none.
        """
        self._refuse_if_full(deadline)
        return Slot(self._slots)

    async def detect(self, content: bytes, slot: Slot, *, deadline: float, gone: asyncio.Future[None]) -> Found:
        """Return what the model finds in an image file.

        Args:
            content: the file.
            slot: the place of the image.
            deadline: on the monotonic clock.
            gone: done when the client went away.

        Raises:
            RefusedError: the image cannot be used, or there is no answer in time.
        """
        started = time.monotonic()
        image = await self.in_thread(
            lambda: decode_upload(content, max_pixels=self.limits.max_pixels, reserve=slot.reserve),
            slot,
            deadline=deadline,
            gone=gone,
        )
        decoded = time.monotonic()
        self.metrics.decode_s.observe(decoded - started)
        answer: asyncio.Future[tuple[Detections, float]] = asyncio.get_running_loop().create_future()
        self._queue.put(Job(image=image, deadline=deadline, answer=answer))
        try:
            detections, model_s = await _in_time(answer, deadline, gone)
        finally:
            answer.cancel()
        wait_s = max(0.0, time.monotonic() - decoded - model_s)
        took = {"decode": decoded - started, "wait": wait_s, "model": model_s}
        return Found(image=image, detections=detections, timing_ms={name: 1e3 * s for name, s in took.items()})

    def picture(self, found: Found) -> UInt8[np.ndarray, "H2 W2 3"]:
        """Return the image with what was found in it."""
        return self._draw(found.image, found.detections, self.categories)

    async def in_thread(self, work: Callable[[], _T], slot: Slot, *, deadline: float, gone: asyncio.Future[None]) -> _T:
        """Return the result of work that would hold up the event loop.

        Raises:
            RefusedError: it takes too long, or what the work itself raises.
        """

        def unless_late() -> _T:
            if time.monotonic() >= deadline:
                raise _late()
            return work()

        def end(done: asyncio.Future[_T]) -> None:
            slot.let_go()
            if not done.cancelled():
                done.exception()  # nobody may be left to look at it

        slot.hold()
        future = asyncio.get_running_loop().run_in_executor(self._pool, unless_late)
        future.add_done_callback(end)
        return await _in_time(future, deadline, gone)

    def _count_batch(self, jobs: Sequence[Job], took_s: float) -> None:
        now = time.monotonic()
        self.metrics.batch_images.observe(len(jobs))
        self.metrics.model_s.observe(took_s)
        for job in jobs:
            self.metrics.queue_s.observe(max(0.0, now - took_s - job.since))


class Slot:
    """The place of one image, with the memory of its pixels. It is free when nobody holds it any more."""

    def __init__(self, slots: _Slots) -> None:
        self._slots = slots
        self._holders = 0
        self._size_bytes = 0

    def hold(self) -> None:
        """Count one more holder; on the event loop."""
        if self._holders == 0:
            self._slots.taken += 1
        self._holders += 1

    def let_go(self) -> None:
        """Count one holder less; on the event loop."""
        self._holders -= 1
        if self._holders == 0:
            self._slots.taken -= 1
            self._slots.give_back(self._size_bytes)

    def reserve(self, size_bytes: int) -> None:
        """Take memory for pixels; on any thread.

        Raises:
            RefusedError: 503, there is too little.
        """
        self._slots.reserve(size_bytes)
        self._size_bytes += size_bytes

    def __enter__(self) -> Slot:
        self.hold()
        return self

    def __exit__(self, *error: object) -> None:
        self.let_go()


class _Slots:
    """How many images are held, and how many bytes they take."""

    def __init__(self, max_bytes: int) -> None:
        self.taken = 0
        self.held_bytes = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def reserve(self, size_bytes: int) -> None:
        with self._lock:
            # One image alone is never too much: its own limit has let it in.
            if self.held_bytes and self.held_bytes + size_bytes > self._max_bytes:
                raise RefusedError(503, "memory", "too many large images at once", fix="try again", retry_after_s=1)
            self.held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        with self._lock:
            self.held_bytes -= size_bytes


async def _in_time(future: asyncio.Future[_T], deadline: float, gone: asyncio.Future[None]) -> _T:
    left_s = deadline - time.monotonic()
    if left_s > 0:
        both: set[asyncio.Future[Any]] = {future, gone}
        await asyncio.wait(both, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
    if future.done():
        return future.result()
    if gone.done():
        raise gone_away()
    raise _late()


def gone_away() -> RefusedError:
    """Return what a request ends with whose client went away; nobody receives it."""
    return RefusedError(499, "disconnected", "the client went away")


def _late() -> RefusedError:
    return RefusedError(503, "deadline", "there was no answer in time", fix="try again", retry_after_s=1)
