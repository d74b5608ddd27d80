"""Drawn pictures of what was found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from detronome.report.pictures import draw_boxes, draw_segments, save_picture
from detronome.report.results.found import Found
from detronome.types import Detections

__all__ = ["PictureWriter", "draw_detections"]


class PictureWriter:
    """Writes `<name>.jpg` with the confident objects of each image, or its segments where there are masks.

    Args:
        folder: where the pictures go.
        names: by category id.
    """

    def __init__(self, folder: Path, names: Mapping[int, str]) -> None:
        self._folder = folder
        self._names = names

    def add(self, found: Found) -> None:
        """Write the picture of one image."""
        save_picture(draw_detections(found.pixels, found.confident, self._names), self._folder / f"{found.name}.jpg")

    def close(self, *, is_complete: bool) -> None:
        """Do nothing: every picture is whole as soon as it is written."""


def draw_detections(
    image: UInt8[np.ndarray, "H W 3"],
    detections: Detections,
    names: Mapping[int, str],
    *,
    may_enlarge: bool = True,
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Return the image with names and scores: of boxes, or of segments where there is a panoptic map.

    Args:
        image: RGB.
        detections: what is drawn.
        names: by category id.
        may_enlarge: draw small images larger, so that names can be read.
    """
    panoptic = detections.panoptic
    if panoptic is not None:
        return draw_segments(image, panoptic.segment_ids, panoptic.segments, names=names, may_enlarge=may_enlarge)
    return draw_boxes(
        image,
        detections.boxes_xyxy,
        detections.labels,
        names=names,
        scores=detections.scores,
        may_enlarge=may_enlarge,
    )
