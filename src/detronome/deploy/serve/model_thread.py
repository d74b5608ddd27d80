"""The thread that feeds the model: takes batches from the queue, sends them to the process, hands back the answers.

When the process dies, its batch is refused, the rest of the queue waits, and a new process is started. The thread alone
talks to the process; answers are given on the event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
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

    @property
    def pid(self) -> int | None:
        """Of the model's process."""
        return self._process.pid

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
        if self._thread.is_alive():
            self._thread.join(_LOOK_S)
        self._process.stop()
        self._state = "stopped"

    def _run(self) -> None:
        while (jobs := self._queue.take(timeout_s=_LOOK_S)) is not None:
            if not jobs:
                if not self._process.is_alive:
                    self._restart()
                continue
            started = time.monotonic()
            try:
                answers = self._process.predict([job.image for job in jobs])
            except ModelProcessError as error:
                refused = RefusedError(503, "model_died", f"{error}; it is being restarted", retry_after_s=5)
                self._call(_answer, jobs, [refused] * len(jobs))
                self._restart()
                continue
            took_s = time.monotonic() - started
            pace = took_s / len(jobs)
            before = self.seconds_per_image
            self.seconds_per_image = pace if not before else before + _SMOOTHING * (pace - before)
            self._call(self._finish, jobs, answers, took_s)

    def _finish(self, jobs: Sequence[Job], answers: Sequence[Detections | Exception], took_s: float) -> None:
        self._on_batch(jobs, took_s)
        _answer(jobs, answers)

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
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)


def _answer(jobs: Sequence[Job], answers: Sequence[Detections | Exception]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
