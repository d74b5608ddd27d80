"""What was found in one image or one frame of a video, as the writers of results take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from detronome.types import Detections

__all__ = ["Found", "ResultWriter"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The objects of an image or a frame, with the pixels that they were found in."""

    name: str
    """Of its files among the results: unique, without suffix, with forward slashes."""
    file_name: str
    """Of the image or video, with forward slashes."""
    pixels: UInt8[np.ndarray, "H W 3"]
    """RGB, upright."""
    detections: Detections
    """All of them, with the id of the image."""
    score: float
    """Smallest score of what is shown to people."""
    frame: int | None = None
    """Number of a video's frame, from 0."""
    time_s: float | None = None
    """When the frame is shown."""

    @property
    def confident(self) -> Detections:
        """The detections with at least this score."""
        return self.detections.above(self.score)


class ResultWriter(Protocol):
    """Writes results as they come."""

    def add(self, found: Found) -> None:
        """Write what was found in one image or frame.

        Raises:
            OSError: the disk refuses.
        """
        ...

    def close(self, *, is_complete: bool) -> None:
        """Publish the file, or, where the work was broken off, what there is under a name that says so."""
        ...
