"""The process in which one form runs: it opens it, and times, compares and evaluates it when it is told to."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from detronome.config.schema import RunConfig
from detronome.data.split import DataSplit
from detronome.data.store.pixels import PixelReader
from detronome.deploy.benchmark.messages import (
    CallTimes,
    Evaluate,
    Evaluated,
    Export,
    Exported,
    Failed,
    Measure,
    Measured,
    Open,
    Opened,
    Output,
    Outputs,
)
from detronome.deploy.benchmark.peak_memory import (
    available_bytes_on,
    peak_bytes_since,
    resident_bytes,
    watch_peak_from_now,
)
from detronome.deploy.predictor import build_predictor
from detronome.errors import ConfigError, DetronomeError
from detronome.evaluation.detection import DetectionEvaluator
from detronome.models.detector import Detector
from detronome.runtime.clock import StageClock
from detronome.types import Categories, ModelOutput

__all__ = ["Exporter", "FormSession", "OpenForm", "Opener", "Stopwatch", "serve"]

_LOOK_S = 1.0
_AT_ONCE = 16
"""Images that are decoded before they are predicted, when accuracy is measured."""


@dataclass(frozen=True, kw_only=True)
class OpenForm:
    """A form that is ready, with what is needed to feed it."""

    detector: Detector
    config: RunConfig
    """As the run's, with the precision and the image size that are measured."""
    categories: Categories
    split: DataSplit
    device: torch.device
    backend: str
    precision: str
    failures: Sequence[str] = ()
    """Grows when what was opened turns out not to be what its name says: not compiled after all."""


Opener = Callable[[Open], OpenForm]
Exporter = Callable[[Export], None]


class Stopwatch(Detector):
    """A detector that notes when each forward pass began and ended, and what it took of the processors."""

    def __init__(self, detector: Detector, device: torch.device) -> None:
        super().__init__()
        self.detector = detector
        self.num_queries = detector.num_queries
        self.activation = detector.activation  # type: ignore[misc]  # that of this one detector
        self.passes: list[tuple[float, float]] = []
        self.cpu_s = 0.0
        self.last: ModelOutput | None = None
        self._device = device

    def forward(self, images: Any, padding_mask: Any, targets: Any = None) -> ModelOutput:
        _finish(self._device)
        began, cpu_began = time.perf_counter(), time.process_time()
        output: ModelOutput = self.detector(images, padding_mask)
        _finish(self._device)
        self.passes.append((began, time.perf_counter()))
        self.cpu_s += time.process_time() - cpu_began
        self.last = output
        return output

    def parts_to_compile(self) -> list[torch.nn.Module]:
        return []


class FormSession:
    """One form at work.

    Args:
        opened: the form, and what it is fed with.
        batch_size: the most images that go through it at once.
    """

    def __init__(self, opened: OpenForm, *, batch_size: int) -> None:
        self._form = opened
        self._stopwatch = Stopwatch(opened.detector, opened.device)
        self._predictor = build_predictor(
            opened.config, self._stopwatch, opened.categories, opened.device, batch_size=batch_size
        )
        self._pixels = PixelReader(opened.split.index, opened.split.source)

    def measure(self, request: Measure) -> Measured:
        """Time calls, one after the other."""
        if request.from_now:
            watch_peak_from_now(self._form.device)
        times = tuple(self._time(images) for images in request.calls)
        if self._form.failures:
            raise ConfigError(self._form.failures[0])
        return Measured(times=times, peak_bytes=peak_bytes_since(self._form.device))

    def outputs(self, images: Sequence[int]) -> list[Output]:
        """Return what the network says of each image."""
        return [self._output(i) for i in images]

    def evaluate(self, images: Sequence[int]) -> Evaluated:
        """Return the accuracy on some images."""
        index = self._form.split.index
        ids = [index.image(i).image_id for i in images]
        evaluator = DetectionEvaluator(self._form.split.box_truth(), image_ids=ids, unknown_categories="drop")
        for start in range(0, len(images), _AT_ONCE):
            stretch = range(start, min(start + _AT_ONCE, len(images)))
            found = self._predictor.predict([self._read(images[n]) for n in stretch])
            evaluator.add([replace(one, image_id=ids[n]) for n, one in zip(stretch, found, strict=True)])
        metrics = evaluator.compute(max_detections=self._form.config.eval.max_detections)
        return Evaluated(numbers=metrics.numbers)

    def _read(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        height, width = self._form.split.index.sizes_hw[i].tolist()
        return self._pixels.read(i, StageClock(), (height, width))

    def _time(self, images: Sequence[int]) -> CallTimes:
        self._stopwatch.passes.clear()
        self._stopwatch.cpu_s = 0.0
        began = time.perf_counter()
        pixels = [self._read(i) for i in images]
        decoded = time.perf_counter()
        self._predictor.predict(pixels)
        _finish(self._form.device)
        ended = time.perf_counter()
        passes = self._stopwatch.passes
        network_s = sum(end - start for start, end in passes)
        return CallTimes(
            decode_s=decoded - began,
            before_s=passes[0][0] - decoded,
            network_s=network_s,
            after_s=ended - passes[0][0] - network_s,
            network_cpu_s=self._stopwatch.cpu_s,
        )

    def _output(self, i: int) -> Output:
        self._predictor.predict([self._read(i)])
        output = self._stopwatch.last
        assert output is not None
        logits = output.pred_logits[0].float()
        is_softmax = self._stopwatch.activation == "softmax"
        scores = logits.softmax(-1)[:, :-1] if is_softmax else logits.sigmoid()
        return Output(
            scores=scores.cpu().numpy().astype(np.float32),
            boxes_cxcywh=output.pred_boxes[0].float().cpu().numpy().astype(np.float32),
        )


def serve(connection: Connection, *, open_form: Opener, export: Exporter) -> None:
    """Answer requests until the other side hangs up. What fails is an answer too.

    Args:
        connection: to the process that measures.
        open_form: opens a form.
        export: writes an exported form.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    session: FormSession | None = None
    for request in _requests(connection):
        try:
            with _told_when_it_fails(connection):
                if isinstance(request, Export):
                    began = time.perf_counter()
                    export(request)
                    connection.send(Exported(seconds=time.perf_counter() - began))
                elif isinstance(request, Open):
                    began = time.perf_counter()
                    opened = open_form(request)
                    session = FormSession(opened, batch_size=request.batch_size)
                    connection.send(_opened(opened, time.perf_counter() - began))
                elif session is not None and isinstance(request, Measure):
                    connection.send(session.measure(request))
                elif session is not None and isinstance(request, Outputs):
                    connection.send(session.outputs(request.images))
                elif session is not None and isinstance(request, Evaluate):
                    connection.send(session.evaluate(request.images))
        except BrokenPipeError:
            return  # nobody waits for the answer any more


def _end_with(parent: int) -> None:
    """End this process when the one that started it has: it may be killed while a network is compiled here."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def _opened(form: OpenForm, seconds: float) -> Opened:
    return Opened(
        seconds=seconds,
        backend=form.backend,
        precision=form.precision,
        categories=form.categories,
        resident_bytes=resident_bytes(form.device),
        available_bytes=available_bytes_on(form.device),
    )


def _requests(connection: Connection) -> Iterator[object]:
    while True:
        try:
            yield connection.recv()
        except (EOFError, ConnectionResetError):
            return


@contextmanager
def _told_when_it_fails(connection: Connection) -> Iterator[None]:
    try:
        yield
    except DetronomeError as error:
        first = error.problems[0]
        connection.send(Failed(why=first.what, fix=first.fix))
    except (Exception, KeyboardInterrupt) as error:
        traceback.print_exc()  # into the form's log
        name = type(error).__name__
        first_line = str(error).strip().partition("\n")[0]
        connection.send(Failed(why=f"{name}: {first_line}" if first_line else name))


def _finish(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
