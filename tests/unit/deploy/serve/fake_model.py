"""A model that runs in this process, and images that it tells apart."""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from PIL import Image

from detronome.deploy.serve.model_process import ModelProcess, ModelProcessError
from detronome.types import Categories, Detections

__all__ = ["CATEGORIES", "FakeProcess", "SlowModel", "detections_of", "encoded", "open_never"]

CATEGORIES = Categories(ids=(1, 7), names=("cat", "<b>dog</b>"))


def detections_of(image: np.ndarray) -> Detections:
    """Return two objects that show whose image it was: its mean is the first box's left edge."""
    height, width = image.shape[:2]
    left = float(image.mean())
    return Detections(
        boxes_xyxy=np.array([[left, 0, width, height], [0, 0, 1, 1]], np.float32),
        scores=np.array([0.9, 0.2], np.float32),
        labels=np.array([7, 1]),
    )


class SlowModel:
    """A model for a process of its own, which fails on black images."""

    categories = CATEGORIES

    def predict(self, images: Sequence[np.ndarray]) -> list[Detections]:
        time.sleep(0.05)
        if any(image.shape == (2, 2, 3) and not image.any() for image in images):
            raise RuntimeError("it fails on black")
        return [detections_of(image) for image in images]


def open_never() -> SlowModel:
    """Take longer than any test to open a model."""
    time.sleep(600)
    return SlowModel()


class FakeProcess(ModelProcess):
    """A model without a process: slow, dying or failing on demand."""

    def __init__(self) -> None:
        super().__init__(lambda: None)  # type: ignore[arg-type, return-value]
        self.batches: list[int] = []
        self.seconds = 0.0
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.dies = self.is_dead = self.fails_to_start = False
        self.starts = 0
        self.ahead: deque[Sequence[np.ndarray]] = deque()

    @property
    def is_alive(self) -> bool:
        return not self.is_dead

    def start(self) -> Categories:
        if self.fails_to_start:
            raise ModelProcessError("no")
        self.starts += 1
        self.is_dead = self.dies = False
        self.ahead.clear()
        return CATEGORIES

    def send(self, images: Sequence[np.ndarray]) -> None:
        self.ahead.append(images)

    def receive(self) -> list[Detections | Exception]:
        return self.predict(self.ahead.popleft())

    def predict(self, images: Sequence[np.ndarray]) -> list[Detections | Exception]:
        self.batches.append(len(images))
        assert self.may_go_on.wait(100)
        time.sleep(self.seconds)
        if self.dies:
            self.is_dead = True
            raise ModelProcessError("the model's process died")
        return [RuntimeError("it fails on black") if not image.any() else detections_of(image) for image in images]

    def stop(self) -> None:
        self.is_dead = True


def encoded(gray: int, *, size_hw: tuple[int, int] = (20, 30), form: str = "PNG") -> bytes:
    """Return an image file of one colour."""
    file = io.BytesIO()
    Image.fromarray(np.full((*size_hw, 3), gray, np.uint8)).save(file, format=form)
    return file.getvalue()
