"""Single images in, batches out: the queue between the requests and the model.

Requests put images in on the event loop; one thread takes batches out. A batch leaves when it is full, or when its
first image has waited long enough. Images whose request has ended leave the queue without reaching the model.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from detronome.types import Detections

__all__ = ["BatchQueue", "Job"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One image that waits for the model."""

    image: UInt8[np.ndarray, "H W 3"]
    """RGB, upright."""
    deadline: float
    """On the monotonic clock; later, nobody wants the answer."""
    answer: asyncio.Future[tuple[Detections, float]]
    """What was found, and the seconds that the batch took in the model; cancelled when its request has ended."""
    since: float = field(default_factory=time.monotonic)

    @property
    def is_wanted(self) -> bool:
        return not self.answer.done() and time.monotonic() < self.deadline


class BatchQueue:
    """A queue that gives batches. How many images are in it is for those who put them in to bound.

    Args:
        max_batch: the most images of a batch.
        max_delay_s: how long an image waits for others when the model is idle.
    """

    def __init__(self, *, max_batch: int, max_delay_s: float) -> None:
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Append a job; never waits for the model."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Let `take` return None from now on."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def take(self, *, timeout_s: float) -> list[Job] | None:
        """Wait for a batch and return it, in the order in which its images came.

        Args:
            timeout_s: after this time without any image, an empty list is returned.

        Returns:
            The batch, or None when the queue is closed.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._jobs or self._is_closed, timeout_s):
                return []
            while not self._is_closed and 0 < len(self._jobs) < self._max_batch:
                left_s = self._jobs[0].since + self._max_delay_s - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            return None if self._is_closed else self._pop()

    def take_full(self) -> list[Job] | None:
        """Return a batch if a full one waits already, else an empty list; None when the queue is closed."""
        with self._changed:
            if self._is_closed:
                return None
            return self._pop() if len(self._jobs) >= self._max_batch else []

    def _pop(self) -> list[Job]:
        batch: list[Job] = []
        while self._jobs and len(batch) < self._max_batch:
            job = self._jobs.popleft()
            if job.is_wanted:
                batch.append(job)
        return batch
