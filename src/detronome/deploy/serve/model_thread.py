"""The thread that feeds the model: takes batches from the queue, sends them to the process, hands back the answers.

While the model computes, the next full batch is sent ahead, so that it does not wait between the two. When the process
dies, what was sent is refused, the rest of the queue waits, and a new process is started. The thread alone talks to the
process; answers are given on the event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

from detronome.deploy.serve.limits import RefusedError
from detronome.deploy.serve.model_process import ModelProcess, ModelProcessError
from detronome.deploy.serve.queue import BatchQueue, Job
from detronome.errors import DetronomeError
from detronome.types import Categories, Detections

__all__ = ["ModelThread"]

State = Literal["starting", "ready", "restarting", "stopped"]

_LOOK_S = 0.25
"""How often an idle thread looks whether its process lives."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_SMOOTHING = 0.2
_MOST_SENT = 2
"""Batches: the one that is computed, and the next."""


class ModelThread:
    """Keeps a model at work.

    Args:
        process: the model.
        queue: of the images.
        on_batch: told on the event loop of each batch: its jobs, and what it took in seconds.
        on_restart: told on the event loop of each start of the process after the first.

    Attributes:
        seconds_per_image: at the present pace; 0 before the first batch.
    """

    def __init__(
        self,
        process: ModelProcess,
        queue: BatchQueue,
        *,
        on_batch: Callable[[Sequence[Job], float], None],
        on_restart: Callable[[], None],
    ) -> None:
        self._process = process
        self._queue = queue
        self._on_batch = on_batch
        self._on_restart = on_restart
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._stopping = threading.Event()
        self._state: State = "starting"
        self._failed_starts = 0
        self.seconds_per_image = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether an image would be answered now."""
        return self._state == "ready" and self._thread.is_alive() and self._process.is_alive

    @property
    def is_healthy(self) -> bool:
        """Whether it works, or can be expected to work again: not after a start that failed, or a thread that died."""
        return self._state in ("starting", "stopped") or (self._thread.is_alive() and self._failed_starts == 0)

    def open(self) -> Categories:
        """Open the model, and return what its labels mean.

        Raises:
            DetronomeError: it cannot be opened.
            ModelProcessError: the process died on the way.
        """
        return self._process.start()

    def start(self) -> None:
        """Begin to answer; called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._state = "ready"
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the process; what waits is not answered."""
        self._stopping.set()
        self._queue.close()
        while self._thread.is_alive():  # it may be waiting for the process, or starting another one
            self._process.kill()
            self._thread.join(_LOOK_S)
        self._process.stop()
        self._state = "stopped"

    def _run(self) -> None:
        sent: deque[list[Job]] = deque()  # the batch that is computed, and perhaps the next one
        started = time.monotonic()
        while (jobs := self._queue.take_full() if sent else self._queue.take(timeout_s=_LOOK_S)) is not None:
            if not jobs and not sent:
                if not self._process.is_alive:
                    self._restart()
                continue
            try:
                if jobs:
                    started = started if sent else time.monotonic()
                    sent.append(jobs)
                    self._process.send([job.image for job in jobs])
                    if len(sent) < _MOST_SENT:
                        continue
                answers = self._process.receive()
            except ModelProcessError as error:
                refused = RefusedError(503, "model_died", f"{error}; it is being restarted", retry_after_s=5)
                for jobs in sent:
                    self._call(_answer, jobs, [refused] * len(jobs), 0.0)
                sent.clear()
                self._restart()
                continue
            ended = time.monotonic()
            self._call(self._finish, sent.popleft(), answers, ended - started)
            started = ended

    def _finish(self, jobs: Sequence[Job], answers: Sequence[Detections | Exception], took_s: float) -> None:
        pace = took_s / len(jobs)
        before = self.seconds_per_image
        self.seconds_per_image = pace if not before else before + _SMOOTHING * (pace - before)
        self._on_batch(jobs, took_s)
        _answer(jobs, answers, took_s)

    def _restart(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            self._state = "restarting"
            self._process.stop()
            try:
                self._process.start()
            except (DetronomeError, ModelProcessError, OSError):
                self._failed_starts += 1
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            self._failed_starts = 0
            self._state = "ready"
            self._call(self._on_restart)
            return

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)


def _answer(jobs: Sequence[Job], answers: Sequence[Detections | Exception], took_s: float) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result((answer, took_s))
