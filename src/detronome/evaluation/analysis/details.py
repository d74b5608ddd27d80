"""The details of an evaluation: confusion matrix, precision-recall curves, kinds of errors and the worst images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from numpy.typing import NDArray

from detronome.evaluation.analysis.confusion import Confusion, ErrorKind, confuse
from detronome.evaluation.analysis.curves import PrecisionRecall, precision_recall
from detronome.evaluation.analysis.matching import (
    Found,
    Objects,
    overlapping_pairs,
    take_by_score,
)

__all__ = ["IOU_THRESHOLD", "EvaluationDetails", "WorstImage", "detail"]

IOU_THRESHOLD = 0.5
_LOCATION_FROM = 0.1
"""Overlap from which on a detection is a badly placed box of an object, and below which it is background."""
_DEFAULT_SCORE = 0.5
"""Where no score is the best, because nothing was found rightly: what pictures are drawn with."""
_NUM_WORST = 12
_NUM_CONFUSIONS = 100
_MAX_WHOLE = 100
"""Classes up to which the matrix is written whole: of 1,203, it would be 1.4 million numbers, nearly all of them 0."""
_DIGITS = 7
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class WorstImage:
    """One of the images with the lowest F1."""

    image_id: int
    file: str
    """As the annotation file has it; empty where it has none."""
    f1: float
    errors: Mapping[ErrorKind, int]


@dataclass(frozen=True, kw_only=True)
class EvaluationDetails:
    """What lies behind the COCO numbers of one evaluation, at IoU 0.50."""

    score_threshold: float
    """Matrix, errors and worst images count detections of at least this score: the one with the best overall F1."""
    num_images: int
    classes: tuple[str, ...]
    confusion: Int64[np.ndarray, "K+1 K+1"]
    """Rows are the truth, columns what was predicted; the last row is "no object", the last column "missed"."""
    curves: tuple[PrecisionRecall, ...]
    """Of each class, over all detections."""
    overall: PrecisionRecall
    """Precision is the mean over the classes that have objects, so its mean is COCO's AP50; numbers and best F1 are of
    the detections of all classes together."""
    errors: Mapping[ErrorKind, int]
    worst_images: tuple[WorstImage, ...]
    """Those with errors, lowest F1 first, then most errors."""

    def top_confusions(self, limit: int = _NUM_CONFUSIONS) -> list[tuple[int, int, int]]:
        """Return (truth, predicted, count) of the classes that were confused most often."""
        counts = self.confusion[:-1, :-1].copy()
        np.fill_diagonal(counts, 0)
        truth, predicted = np.nonzero(counts)
        values = counts[truth, predicted]
        order = np.lexsort((predicted, truth, -values))[:limit]
        return list(zip(truth[order].tolist(), predicted[order].tolist(), values[order].tolist(), strict=True))

    def to_json(
        self, *, split: str | None = None, step: int | None = None, pictures: Mapping[int, str] | None = None
    ) -> dict[str, Any]:
        """Return plain values for JSON; an undefined number becomes None, and the curve of a class without objects is
        empty.

        The matrix of more than 100 classes is left empty: `top_confusions` and, for each class, `num_missed` and
        `num_no_object` say the most of it.

        Args:
            split: that was evaluated.
            step: of the checkpoint.
            pictures: files of the worst images' pictures, by image id, as seen from the folder of the JSON file.
        """
        return {
            "format": _FORMAT,
            "split": split,
            "step": step,
            "iou_threshold": IOU_THRESHOLD,
            "score_threshold": self.score_threshold,
            "score_threshold_reason": "the best F1 over all classes"
            if self.overall.best_f1 > 0
            else "no detection is right, so no score is best",
            "num_images": self.num_images,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist() if len(self.classes) <= _MAX_WHOLE else [],
            "top_confusions": [
                {"truth": self.classes[truth], "predicted": self.classes[predicted], "count": count}
                for truth, predicted, count in self.top_confusions()
            ],
            "curves": [
                {
                    **_curve_record(name, curve),
                    "num_missed": int(self.confusion[k, -1]),
                    "num_no_object": int(self.confusion[-1, k]),
                }
                for k, (name, curve) in enumerate(zip(self.classes, self.curves, strict=True))
            ],
            "overall": _curve_record("all", self.overall),
            "errors": {str(kind): count for kind, count in self.errors.items()},
            "worst_images": [
                {
                    "image_id": image.image_id,
                    "file": image.file,
                    "picture": (pictures or {}).get(image.image_id, ""),
                    "f1": round(image.f1, _DIGITS),
                    **{str(kind): count for kind, count in image.errors.items()},
                }
                for image in self.worst_images
            ],
        }


def detail(
    found: Found,
    objects: Objects,
    crowds: Objects,
    *,
    classes: Sequence[str],
    image_ids: Int64[np.ndarray, " I"],
    files: Sequence[str],
) -> EvaluationDetails:
    """Look into an evaluation.

    Args:
        found: all detections, by score.
        objects: what there is to find.
        crowds: regions in which detections of their class do not count.
        classes: name of each label.
        image_ids: id of each image.
        files: name of each image.
    """
    pairs = overlapping_pairs(found, objects, least=_LOCATION_FROM)
    is_in_crowd = _in_crowd(found, crowds)
    rivals = pairs.where(pairs.is_same_class & (pairs.overlaps >= IOU_THRESHOLD))
    is_right = take_by_score(rivals, len(found)) >= 0
    curves, overall = _curves(found, objects, is_right, ~is_in_crowd | is_right, num_classes=len(classes))

    threshold = overall.best_score if overall.best_f1 > 0 else _DEFAULT_SCORE
    num_shown = int((found.scores >= threshold).sum())
    confusion = confuse(
        found.first(num_shown),
        objects,
        pairs.where(pairs.found < num_shown),
        is_in_crowd[:num_shown],
        iou_threshold=IOU_THRESHOLD,
        num_classes=len(classes),
        num_images=len(image_ids),
    )
    return EvaluationDetails(
        score_threshold=threshold,
        num_images=len(image_ids),
        classes=tuple(classes),
        confusion=confusion.matrix,
        curves=curves,
        overall=overall,
        errors={kind: int(counts.sum()) for kind, counts in confusion.errors.items()},
        worst_images=_worst_images(confusion, image_ids, files),
    )


def _curves(
    found: Found,
    objects: Objects,
    is_right: Bool[np.ndarray, " N"],
    counts: Bool[np.ndarray, " N"],
    *,
    num_classes: int,
) -> tuple[tuple[PrecisionRecall, ...], PrecisionRecall]:
    """Return the curve of each class, and that over all classes."""
    labels, scores, is_right = found.labels[counts], found.scores[counts], is_right[counts]
    by_class = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    groups = np.split(by_class, ends[:-1]) if num_classes else []
    num_objects = np.bincount(objects.labels, minlength=num_classes).tolist()
    curves = tuple(
        precision_recall(scores[group], is_right[group], count)
        for group, count in zip(groups, num_objects, strict=True)
    )
    precisions = [curve.precision for curve in curves if curve.precision is not None]
    together = precision_recall(scores, is_right, len(objects))
    return curves, replace(together, precision=np.mean(precisions, axis=0) if precisions else None)


def _in_crowd(found: Found, crowds: Objects) -> Bool[np.ndarray, " N"]:
    pairs = overlapping_pairs(found, crowds, least=IOU_THRESHOLD, over="found")
    is_in_crowd = np.zeros(len(found), dtype=bool)
    is_in_crowd[pairs.found[pairs.is_same_class]] = True
    return is_in_crowd


def _worst_images(confusion: Confusion, image_ids: NDArray[np.int64], files: Sequence[str]) -> tuple[WorstImage, ...]:
    f1, num_errors = confusion.f1, confusion.num_errors
    order = np.lexsort((image_ids, -num_errors, f1))
    worst = order[num_errors[order] > 0][:_NUM_WORST].tolist()
    return tuple(
        WorstImage(
            image_id=int(image_ids[i]),
            file=files[i],
            f1=float(f1[i]),
            errors={kind: int(counts[i]) for kind, counts in confusion.errors.items()},
        )
        for i in worst
    )


def _curve_record(name: str, curve: PrecisionRecall) -> dict[str, Any]:
    return {
        "class": name,
        "num_objects": curve.num_objects,
        "num_found": curve.num_found,
        "ap50": _or_none(curve.ap50),
        "precision": [] if curve.precision is None else curve.precision.round(_DIGITS).tolist(),
        "best_f1": _or_none(curve.best_f1),
        "best_score": None if math.isnan(curve.best_score) else curve.best_score,
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else round(value, _DIGITS)
