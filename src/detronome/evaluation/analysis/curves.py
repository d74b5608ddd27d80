"""Precision against recall at IoU 0.50, at COCO's 101 points, and the score at which the two are best together.

Shape letters: `N` detections by score, `R` recall points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

__all__ = ["RECALL_POINTS", "PrecisionRecall", "precision_recall"]

RECALL_POINTS: Float64[np.ndarray, " R"] = np.linspace(0, 1, 101)


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """The curve of one class, or over all classes."""

    num_objects: int
    """To find, crowd regions aside."""
    num_found: int
    """Detections that count: those in crowd regions of their class do not."""
    precision: Float64[np.ndarray, " R"] | None
    """Best precision at this recall or above, 0-1, at each recall point; None where there is nothing to find."""
    best_f1: float
    """Highest harmonic mean of precision and recall, 0-1; nan where there is nothing to find."""
    best_score: float
    """Detections of at least this score have it; nan where none is right."""

    @property
    def ap50(self) -> float:
        """Mean precision, which is COCO's AP50; nan where there is nothing to find."""
        return math.nan if self.precision is None else float(self.precision.mean())


def precision_recall(
    scores: Float64[np.ndarray, " N"], is_right: Bool[np.ndarray, " N"], num_objects: int
) -> PrecisionRecall:
    """Return the curve of detections that are sorted by score, as pycocotools interpolates it."""
    num_found = len(scores)
    if num_objects == 0:
        return PrecisionRecall(
            num_objects=0, num_found=num_found, precision=None, best_f1=math.nan, best_score=math.nan
        )
    num_right: Int64[np.ndarray, " N"] = np.cumsum(is_right)
    counts = np.arange(1, num_found + 1)
    recall = num_right / num_objects
    envelope = np.maximum.accumulate((num_right / (counts + np.spacing(1)))[::-1])[::-1]
    place = np.searchsorted(recall, RECALL_POINTS, side="left")
    best_f1, best_score = 0.0, math.nan
    # A threshold cannot part detections of one score, so only the last of them counts.
    ends = np.flatnonzero(np.diff(scores, append=-np.inf) < 0)
    if len(ends):
        f1 = 2 * num_right[ends] / (num_objects + counts[ends])
        best = int(np.argmax(f1))
        if f1[best] > 0:
            best_f1, best_score = float(f1[best]), float(scores[ends[best]])
    return PrecisionRecall(
        num_objects=num_objects,
        num_found=num_found,
        precision=np.append(envelope, 0.0)[place],
        best_f1=best_f1,
        best_score=best_score,
    )
