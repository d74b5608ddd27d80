"""Panoptic quality: PQ, SQ and RQ, equal to panopticapi's in every number.

A predicted segment is right when it overlaps a true one of its category by more than half (IoU, void pixels aside),
which at most one can. SQ is the mean IoU of these pairs, RQ their F1, PQ = SQ x RQ of each category; the numbers of a
group are the means over its categories. From: Kirillov et al., Panoptic Segmentation, arXiv 1801.00868, section 4.

Shape letters: `S` true and `P` predicted segments of one image, `R` runs of equal pixels, `K` categories.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray

from detronome.evaluation.panoptic_defects import Defect, DefectivePredictionError, defects_of
from detronome.ops.segment_ids import run_starts
from detronome.types import Categories, PanopticPrediction, PanopticTruth

__all__ = ["CategoryQuality", "PanopticEvaluator", "PanopticMetrics", "PanopticQuality"]

_GROUPS = ("all", "things", "stuff")


@dataclass(frozen=True, kw_only=True)
class PanopticQuality:
    """The numbers of a group of categories, 0-1; nan where none of them occurs."""

    PQ: float
    SQ: float
    RQ: float
    num_categories: int
    """Categories that occur in the truth or the prediction: the means are over these."""


@dataclass(frozen=True, kw_only=True)
class CategoryQuality:
    """The numbers of one category, 0-1; nan where it does not occur."""

    PQ: float
    SQ: float
    """0 where no segment was found."""
    RQ: float
    true_positives: int
    false_positives: int
    false_negatives: int


@dataclass(frozen=True, kw_only=True)
class PanopticMetrics:
    """Panoptic quality over a data set."""

    all: PanopticQuality
    things: PanopticQuality
    stuff: PanopticQuality
    per_category: dict[int, CategoryQuality]
    """By category id, in the order of the ids."""
    names: dict[int, str]
    """Names by category id."""
    num_images: int
    notes: tuple[str, ...] = ()
    """What a reader should know."""

    @property
    def numbers(self) -> dict[str, float]:
        """PQ, SQ and RQ of all categories, and with `_things` and `_stuff` of either."""
        return {
            name + ("" if group == "all" else f"_{group}"): getattr(getattr(self, group), name)
            for group in _GROUPS
            for name in ("PQ", "SQ", "RQ")
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; nan becomes None, because JSON has no nan."""
        return {
            "numbers": _plain(self.numbers),
            "num_categories": {group: getattr(self, group).num_categories for group in _GROUPS},
            "per_category": {
                str(category_id): {"name": self.names[category_id], **_plain(vars(quality))}
                for category_id, quality in self.per_category.items()
            },
            "num_images": self.num_images,
            "notes": list(self.notes),
        }


class PanopticEvaluator:
    """Compares predictions with the truth, one image at a time: nothing is kept of an image but counts by category.

    On several ranks, each compares its own images, and `to_arrays` / `add_arrays` bring the counts together.

    Args:
        categories: of the truth; those that say nothing of things and stuff are all things.
    """

    def __init__(self, categories: Categories) -> None:
        order = np.argsort(np.array(categories.ids, np.int64), kind="stable").tolist()
        is_thing = categories.is_thing or (True,) * len(categories)
        self._category_ids = np.array([categories.ids[i] for i in order], np.int64)
        self._names = tuple(categories.names[i] for i in order)
        self._is_thing = np.array([is_thing[i] for i in order], np.bool_)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._iou = np.zeros(len(self._category_ids), np.float64)
        self._counts = np.zeros((3, len(self._category_ids)), np.int64)  # true positives, false positives, misses
        self._image_ids: set[int] = set()

    def add(self, truth: PanopticTruth, prediction: PanopticPrediction) -> None:
        """Compare one image.

        Raises:
            DefectivePredictionError: the prediction is not one of this image, its map and its segments do not agree, it
                has unknown categories, or the image was added before; nothing of the image is then counted.
        """
        defects = list(defects_of(truth, prediction, self._category_ids))
        if truth.image_id in self._image_ids:
            defects.append(Defect("added_twice", f"image {truth.image_id}"))
        if defects:
            raise DefectivePredictionError(defects, where="the predictions added")
        ids = np.array([segment.id for segment in prediction.segments], np.int64)
        categories = self._rows_of([segment.category_id for segment in prediction.segments])
        true_categories = self._rows_of(truth.category_ids)
        iou, is_match, is_miss, is_false = _compare(truth, true_categories, prediction.segment_ids, ids, categories)
        matched = true_categories[np.nonzero(is_match)[0]]
        num_categories = len(self._category_ids)
        self._iou += np.bincount(matched, iou[is_match], num_categories)
        for row, of in enumerate((matched, categories[is_false], true_categories[is_miss])):
            self._counts[row] += np.bincount(of, minlength=num_categories)
        self._image_ids.add(truth.image_id)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything counted as arrays, for another rank's `add_arrays`."""
        return {"iou": self._iou, "counts": self._counts, "image_ids": np.array(sorted(self._image_ids), np.int64)}

    def add_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what an evaluator with the same categories has counted.

        Raises:
            DefectivePredictionError: an image was compared here and there.
        """
        image_ids = set(arrays["image_ids"].tolist())
        if repeated := sorted(self._image_ids & image_ids):
            twice = [Defect("added_twice", f"image {image_id}") for image_id in repeated]
            raise DefectivePredictionError(twice, where="the predictions added")
        self._iou = self._iou + arrays["iou"]
        self._counts = self._counts + arrays["counts"]
        self._image_ids |= image_ids

    def compute(self, *, notes: Iterable[str] = ()) -> PanopticMetrics:
        """Return the numbers of what was compared so far."""
        true_positives, false_positives, false_negatives = self._counts
        weight = true_positives + 0.5 * false_positives + 0.5 * false_negatives
        occurs = weight > 0
        with np.errstate(invalid="ignore"):
            pq = self._iou / weight
            sq = np.where(true_positives > 0, self._iou / true_positives, np.where(occurs, 0.0, np.nan))
            rq = true_positives / weight
        per_category = {
            category_id: CategoryQuality(
                PQ=float(pq[k]),
                SQ=float(sq[k]),
                RQ=float(rq[k]),
                true_positives=int(true_positives[k]),
                false_positives=int(false_positives[k]),
                false_negatives=int(false_negatives[k]),
            )
            for k, category_id in enumerate(self._category_ids.tolist())
        }

        def mean(of: Bool[np.ndarray, " K"]) -> PanopticQuality:
            of = of & occurs
            count = int(of.sum())
            means = (float(values[of].mean()) if count else math.nan for values in (pq, sq, rq))
            return PanopticQuality(**dict(zip(("PQ", "SQ", "RQ"), means, strict=True)), num_categories=count)

        return PanopticMetrics(
            all=mean(occurs),
            things=mean(self._is_thing),
            stuff=mean(~self._is_thing),
            per_category=per_category,
            names=dict(zip(self._category_ids.tolist(), self._names, strict=True)),
            num_images=len(self._image_ids),
            notes=tuple(notes),
        )

    def _rows_of(self, category_ids: Sequence[int] | Int64[np.ndarray, " S"]) -> Int64[np.ndarray, " S"]:
        rows: NDArray[np.int64] = np.searchsorted(self._category_ids, np.asarray(category_ids, np.int64))
        return rows


def _compare(
    truth: PanopticTruth,
    true_categories: Int64[np.ndarray, " S"],
    predicted_map: NDArray[np.int32],
    predicted_ids: Int64[np.ndarray, " P"],
    categories: Int64[np.ndarray, " P"],
) -> tuple[Float64[np.ndarray, "S P"], Bool[np.ndarray, "S P"], Bool[np.ndarray, " S"], Bool[np.ndarray, " P"]]:
    """Return (IoU, which pairs match, which true segments were missed, which predicted ones are false).

    Crowds are neither found nor missed. A segment without match that lies, by more than half, on void and on a crowd of
    its category is not counted; of several such crowds in an image panopticapi sees the last, and so do we.
    """
    overlap, on_void = _overlaps(truth, predicted_map, predicted_ids)
    areas = np.array(overlap[:-1].sum(axis=0) + on_void + overlap[-1])
    shared = overlap[:-1]
    union = truth.areas[:, None] + areas - shared - on_void
    iou = np.divide(shared, union, out=np.zeros(shared.shape), where=(shared > 0) & (union > 0))
    is_crowd = truth.is_crowd[:, None]
    is_match = (iou > 0.5) & (true_categories[:, None] == categories) & ~is_crowd
    is_miss = ~is_match.any(axis=1) & ~truth.is_crowd

    ignored = on_void.copy()
    crowd_of = {int(true_categories[s]): s for s in np.flatnonzero(truth.is_crowd).tolist()}
    for p, category in enumerate(categories.tolist()):
        if category in crowd_of:
            ignored[p] += shared[crowd_of[category], p]
    is_false = ~is_match.any(axis=0) & (ignored <= 0.5 * areas)
    return iou, is_match, is_miss, is_false


def _overlaps(
    truth: PanopticTruth, predicted_map: NDArray[np.int32], predicted_ids: Int64[np.ndarray, " P"]
) -> tuple[Int64[np.ndarray, "S+1 P"], Int64[np.ndarray, " P"]]:
    """Return the pixels that each true and predicted segment share, and those of each predicted one on void.

    The last row is of true pixels whose id is not listed.
    """
    starts = run_starts(truth.segment_ids, predicted_map)
    lengths = np.diff(starts, append=predicted_map.size)
    true_ids = truth.segment_ids.ravel()[starts].astype(np.int64)
    num_true, num_predicted = len(truth.ids), len(predicted_ids)
    rows = np.where(true_ids == 0, num_true + 1, _rows(true_ids, truth.ids))
    columns = _rows(predicted_map.ravel()[starts].astype(np.int64), predicted_ids)
    shape = (num_true + 2, num_predicted + 1)
    pixels = np.bincount(rows * shape[1] + columns, lengths, shape[0] * shape[1]).astype(np.int64).reshape(shape)
    return pixels[:-1, :-1], pixels[-1, :-1]


def _rows(ids: Int64[np.ndarray, " R"], listed: Int64[np.ndarray, " S"]) -> Int64[np.ndarray, " R"]:
    """Return where each id stands in a list; its length for those that are not in it."""
    if not len(listed):
        return np.zeros(len(ids), np.int64)
    order = np.argsort(listed, kind="stable")
    place = np.searchsorted(listed, ids, sorter=order).clip(max=len(listed) - 1)
    rows: NDArray[np.int64] = np.where(listed[order[place]] == ids, order[place], len(listed))
    return rows


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
