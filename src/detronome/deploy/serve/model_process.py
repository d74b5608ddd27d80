"""The model in a process of its own: the server stays quick while it computes, and outlives it.

Images travel as plain bytes, and a second batch may be sent while the first is computed. The process ends when the
server is gone, however that ended, because its pipe closes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from detronome.errors import DetronomeError
from detronome.types import Categories, Detections

__all__ = ["ModelProcess", "ModelProcessError", "PredictingModel"]

_FAR_SIDE_PX = 320


class PredictingModel(Protocol):
    """What answers the requests: a `deploy.predictor.Predictor`, or anything like it."""

    @property
    def categories(self) -> Categories:
        """What its labels mean."""
        ...

    def predict(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[Detections]:
        """Return one `Detections` per RGB image, in order."""
        ...


class ModelProcessError(Exception):
    """The process has died, or does not answer any more."""


@dataclass(frozen=True)
class _Failed:
    """What an image gets instead of detections, when the model fails on it."""

    why: str


class ModelProcess:
    """One process with one model.

    Args:
        open_model: makes the model, in the process; must be picklable.
        hang_s: how long a batch may take before the process counts as dead.
        start_s: how long it may take to open the model, which may have to be downloaded.
    """

    def __init__(
        self, open_model: Callable[[], PredictingModel], *, hang_s: float = 120.0, start_s: float = 1800.0
    ) -> None:
        self._open_model = open_model
        self._hang_s = hang_s
        self._start_s = start_s
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    @property
    def is_alive(self) -> bool:
        process = self._process  # another thread may be replacing it
        return process is not None and process.is_alive()

    def start(self) -> Categories:
        """Start the process, wait until the model has seen its first image, and return what its labels mean.

        Raises:
            DetronomeError: the model cannot be opened, as its loader says.
            ModelProcessError: the process died on the way, or took too long.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._connection = ours
        process = context.Process(target=_run, args=(theirs, self._open_model), name="model", daemon=True)
        process.start()
        self._process = process
        theirs.close()
        try:
            if not ours.poll(self._start_s):
                raise ModelProcessError(f"the model did not open within {self._start_s:g} s")
            told = ours.recv()
        except (EOFError, OSError) as error:
            self.stop()
            raise ModelProcessError("the model's process died while it started") from error
        except BaseException:
            self.stop()
            raise
        if isinstance(told, Categories):
            return told
        self.stop()
        raise told

    def send(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> None:
        """Send a batch; it is computed after those that were sent before.

        Raises:
            ModelProcessError: the process died, or did not take it in time.
        """
        assert self._connection is not None
        hung = threading.Timer(self._hang_s, self.kill)  # a pipe that nobody reads takes only so much
        hung.start()
        try:
            self._connection.send([image.shape[:2] for image in images])
            for image in images:
                self._connection.send_bytes(np.ascontiguousarray(image).reshape(-1).data)
        except OSError as error:
            raise ModelProcessError("the model's process died") from error
        finally:
            hung.cancel()

    def receive(self) -> list[Detections | Exception]:
        """Return the detections in each image of the next batch, in order, or why the model failed on it.

        Raises:
            ModelProcessError: the process died, or did not answer in time.
        """
        assert self._connection is not None
        try:
            if not self._connection.poll(self._hang_s):
                raise ModelProcessError(f"the model did not answer within {self._hang_s:g} s")
            answers: list[Detections | _Failed] = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ModelProcessError("the model's process died") from error
        return [RuntimeError(answer.why) if isinstance(answer, _Failed) else answer for answer in answers]

    def kill(self) -> None:
        """End the process, from any thread: the one that waits for it is told by a `ModelProcessError`."""
        process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """End the process at once: it has nothing to put in order, and what it computes is wanted by nobody."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._connection = self._process = None


def _run(connection: Connection, open_model: Callable[[], PredictingModel]) -> None:
    # Signals are for the server, which then lets this process finish what it computes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    batches: SimpleQueue[list[UInt8[np.ndarray, "H W 3"]]] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, batches), daemon=True).start()
    with suppress(BrokenPipeError, ConnectionResetError):  # the server is gone
        try:
            model = open_model()
            model.predict([np.zeros((_FAR_SIDE_PX, _FAR_SIDE_PX, 3), dtype=np.uint8)])
        except DetronomeError as error:
            connection.send(error)
            return
        connection.send(model.categories)
        while True:
            connection.send(_answers(model, batches.get()))


def _receive(connection: Connection, batches: SimpleQueue[list[UInt8[np.ndarray, "H W 3"]]]) -> None:
    """Receive batches beside the model, so that it need not wait; end the process when the server is gone."""
    try:
        while True:
            images = [np.empty((*size_hw, 3), dtype=np.uint8) for size_hw in connection.recv()]
            for image in images:
                connection.recv_bytes_into(image.reshape(-1).data)
            batches.put(images)
    except (EOFError, OSError):
        os._exit(0)


def _answers(model: PredictingModel, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> Sequence[Detections | _Failed]:
    """Return what was found. Where the model fails on a batch, each image is tried alone: one spoils no other."""
    try:
        return model.predict(images)
    except Exception as error:
        if len(images) == 1:
            return [_Failed(f"{type(error).__name__}: {error}")]
    return [answer for image in images for answer in _answers(model, [image])]
