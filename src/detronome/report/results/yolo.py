"""YOLO label files with confidences: a text file an image, and a list of the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detronome.report.formats import clean_text
from detronome.report.results.found import Found
from detronome.runtime.files import write_atomic
from detronome.types import Categories

__all__ = ["YoloWriter"]


class YoloWriter:
    """Writes `labels/<name>.txt` with a line `class cx cy w h confidence` for each confident object, highest score
    first: 0-1 of the image's width and height, cut at its borders; classes count from 0 in the order of `classes.txt`.

    An image without objects has an empty file; a frame of a video is `labels/<video>/<number>.txt`.

    Args:
        folder: where `labels/` and `classes.txt` go.
        categories: the classes.

    Raises:
        OSError: the disk refuses.
    """

    def __init__(self, folder: Path, categories: Categories) -> None:
        self._labels = folder / "labels"
        self._class_of = {category_id: number for number, category_id in enumerate(categories.ids)}
        self._labels.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "classes.txt", "".join(f"{clean_text(name)}\n" for name in categories.names))

    def add(self, found: Found) -> None:
        """Write the file of one image or frame."""
        height, width = found.pixels.shape[:2]
        confident = found.confident
        corners = confident.boxes_xyxy.astype(np.float64) / [width, height, width, height]
        left, top, right, bottom = corners.clip(0, 1).T  # readers of such files refuse what is beyond
        boxes = np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], axis=1)
        lines = [
            f"{self._class_of[int(label)]} {' '.join(f'{value:.6f}' for value in box)} {score:.4f}\n"
            for label, box, score in zip(confident.labels, boxes, confident.scores, strict=True)
            if int(label) in self._class_of
        ]
        path = self._labels / f"{found.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), "utf-8")

    def close(self, *, is_complete: bool) -> None:
        """Do nothing: every file is whole as soon as it is written."""
