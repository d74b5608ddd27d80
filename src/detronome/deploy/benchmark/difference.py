"""How far what a form says of some images is from what the first form says of them.

Shape letters: `Q` queries, `C` class logits, `K` the queries that are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detronome.deploy.benchmark.messages import Output

__all__ = ["Difference", "difference_of"]

_MOST_QUERIES = 20


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of the most confident queries of each image, from the nearest query of the other form.

    Nearest, because where queries are chosen from the image, rounding alone lets two of them change places.
    """

    num_images: int
    median_score: float
    largest_score: float
    """Of any class's probability."""
    median_box: float
    largest_box: float
    """Of any of centre, width and height, 0-1 of the image."""


def difference_of(first: Sequence[Output], other: Sequence[Output]) -> Difference:
    """Return the difference between two forms' outputs for the same images, at least one; nan where an output is."""
    scores: list[float] = []
    boxes: list[float] = []
    for one, two in zip(first, other, strict=True):
        best = np.argsort(-one.scores.max(axis=1), kind="stable")[:_MOST_QUERIES]
        # [K, Q]: each of the best queries against all of the other form.
        score_apart = np.abs(one.scores[best, None] - two.scores[None]).max(axis=2)
        box_apart = np.abs(one.boxes_cxcywh[best, None] - two.boxes_cxcywh[None]).max(axis=2)
        nearest = np.maximum(score_apart, box_apart).argmin(axis=1)
        rows = np.arange(len(best))
        scores += score_apart[rows, nearest].tolist()
        boxes += box_apart[rows, nearest].tolist()
    return Difference(
        num_images=len(first),
        median_score=float(np.median(scores)),
        largest_score=float(np.max(scores)),
        median_box=float(np.median(boxes)),
        largest_box=float(np.max(boxes)),
    )
