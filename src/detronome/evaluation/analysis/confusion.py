"""What became of each object and of each detection: found, taken for another class, missed, or not there at all.

Detections choose objects one to one, highest score first: among the free objects that they overlap enough, one of
their own class if there is one, else the one they overlap most. So two objects of different classes at one place
(a rider and a bicycle) are not confused, and a second box on an object is told from a wrong one.

Shape letters: `I` images, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float64, Int64

from detronome.evaluation.analysis.matching import Found, Objects, Pairs, take_by_score

__all__ = ["Confusion", "ErrorKind", "confuse"]


class ErrorKind(StrEnum):
    """How an object or a detection can be wrong."""

    MISSED = "missed"
    """An object that no detection took."""
    BACKGROUND = "background"
    """A detection with no object of its class near it."""
    CLASS = "class"
    """A detection that took an object of another class."""
    LOCATION = "location"
    """A detection near an object of its class, that overlaps none enough."""
    DUPLICATE = "duplicate"
    """A detection of objects that were all taken by others."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts of one data set at one threshold."""

    matrix: Int64[np.ndarray, "K+1 K+1"]
    """Rows are the truth, columns what was predicted; the last row is "no object", the last column "missed"."""
    errors: dict[ErrorKind, Int64[np.ndarray, " I"]]
    """Of each image."""
    num_right: Int64[np.ndarray, " I"]
    """Objects of each image that were found as what they are."""

    @property
    def num_errors(self) -> Int64[np.ndarray, " I"]:
        total: Int64[np.ndarray, " I"] = np.sum(list(self.errors.values()), axis=0)
        return total

    @property
    def f1(self) -> Float64[np.ndarray, " I"]:
        """Of each image: harmonic mean of precision and recall, 0-1; nan where nothing is and nothing was found."""
        kinds = self.errors
        wrong = sum(kinds[kind] for kind in ErrorKind if kind is not ErrorKind.MISSED)
        num_found = self.num_right + wrong
        num_objects = self.num_right + kinds[ErrorKind.MISSED] + kinds[ErrorKind.CLASS]
        both = (num_found + num_objects).astype(np.float64)
        return np.divide(2.0 * self.num_right, both, out=np.full(len(both), np.nan), where=both > 0)


def confuse(
    found: Found,
    objects: Objects,
    pairs: Pairs,
    is_in_crowd: Bool[np.ndarray, " N"],
    *,
    iou_threshold: float,
    num_classes: int,
    num_images: int,
) -> Confusion:
    """Count what became of objects and detections.

    Args:
        found: the detections that count, by score.
        objects: what there is to find.
        pairs: those of the two that overlap, from the overlap on that makes a location error.
        is_in_crowd: whether a detection lies in a crowd region of its class: it may then take an object of its class,
            and is not counted if it takes none.
        iou_threshold: overlap from which on a detection may take an object.
        num_classes: how many classes there are.
        num_images: how many images there are.
    """
    is_close = pairs.overlaps >= iou_threshold
    close = pairs.where(is_close & (pairs.is_same_class | ~is_in_crowd[pairs.found]))
    taken = take_by_score(close.own_class_first(), len(found))
    has_taken = taken >= 0
    is_missed = np.ones(len(objects), dtype=bool)
    is_missed[taken[has_taken]] = False

    truth_of_taken = objects.labels[taken[has_taken]]
    is_right = has_taken.copy()
    is_right[has_taken] = truth_of_taken == found.labels[has_taken]
    is_free = ~has_taken & ~is_in_crowd
    is_duplicate = is_free & _any(close.found, len(found))
    is_misplaced = is_free & ~is_duplicate & _any(pairs.found[pairs.is_same_class & ~is_close], len(found))
    is_background = is_free & ~is_duplicate & ~is_misplaced

    size = num_classes + 1
    truth = np.concatenate([truth_of_taken, objects.labels[is_missed], np.full(int(is_free.sum()), num_classes)])
    predicted = np.concatenate(
        [found.labels[has_taken], np.full(int(is_missed.sum()), num_classes), found.labels[is_free]]
    )

    def per_image(things: Objects, which: Bool[np.ndarray, " N"]) -> Int64[np.ndarray, " I"]:
        return np.bincount(things.image_index[which], minlength=num_images)

    return Confusion(
        matrix=np.bincount(truth * size + predicted, minlength=size * size).reshape(size, size),
        errors={
            ErrorKind.MISSED: per_image(objects, is_missed),
            ErrorKind.BACKGROUND: per_image(found, is_background),
            ErrorKind.CLASS: per_image(found, has_taken & ~is_right),
            ErrorKind.LOCATION: per_image(found, is_misplaced),
            ErrorKind.DUPLICATE: per_image(found, is_duplicate),
        },
        num_right=per_image(found, is_right),
    )


def _any(which: Int64[np.ndarray, " P"], length: int) -> Bool[np.ndarray, " N"]:
    mask = np.zeros(length, dtype=bool)
    mask[which] = True
    return mask
