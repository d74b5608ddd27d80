"""COCO detection metrics: average precision and recall, equal to pycocotools' in every number.

The matching and the curves are hotcoco's (Rust, one pass over arrays); this module gives it arrays, names the
numbers, and says what they leave out. Definitions: https://cocodataset.org/#detection-eval.

Shape letters: `N` detections, `I` images, `T` IoU thresholds (0.50 to 0.95), `R` recall points, `K` categories,
`A` area ranges (all, small, medium, large), `M` limits of detections per image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import hotcoco
import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from detronome.errors import ConfigError, DataError
from detronome.evaluation.analysis.details import EvaluationDetails, detail
from detronome.evaluation.analysis.matching import Objects, ranked
from detronome.evaluation.coco_files import (
    GroundTruth,
    Results,
    check_result_masks,
    first_and_count,
    read_ground_truth,
    read_results,
    resolve_ids,
)
from detronome.evaluation.panoptic import PanopticMetrics
from detronome.types import Categories, Detections

__all__ = ["DetectionEvaluator", "DetectionMetrics", "evaluate_results_file"]

IouType = Literal["bbox", "segm"]

_RECALL_LIMITS = (1, 10, 100)
_AREA_NAMES = ("all", "small", "medium", "large")
_AREA_TEXT = {"small": "under 32² pixels", "medium": "32² to 96² pixels", "large": "over 96² pixels"}
_AP50, _AP75 = 0, 5
"""Places of IoU 0.50 and 0.75 among the thresholds."""


@dataclass(frozen=True, kw_only=True)
class DetectionMetrics:
    """The COCO numbers of one evaluation, 0-1; nan where there is no ground truth to measure against."""

    numbers: dict[str, float]
    """AP, AP50, AP75, AP_small, AP_medium, AP_large, AR_1, AR_10, AR_100, AR_small, AR_medium, AR_large. AR_k
    counts k detections per image, at most `max_detections`; with a limit above 100 there is AR_<limit> too."""
    per_class_ap: dict[str, float]
    """AP of each category by name; empty for a class-agnostic evaluation."""
    per_class_ar: dict[str, float]
    """AR at `max_detections` of each category by name; empty for a class-agnostic evaluation."""
    num_images: int
    num_detections: int
    max_detections: int
    """Detections counted per image and category (per image in all, when class-agnostic), best scores first."""
    notes: tuple[str, ...] = ()
    """What a reader should know: undefined numbers, dropped detections, oddities of the ground truth."""
    panoptic: PanopticMetrics | None = None
    """Panoptic quality, where the model makes panoptic maps; its numbers are among `numbers` then."""

    def with_panoptic(self, panoptic: PanopticMetrics) -> DetectionMetrics:
        """Return these metrics with panoptic quality beside them."""
        return replace(self, panoptic=panoptic, numbers={**self.numbers, **panoptic.numbers})

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; nan becomes None, because JSON has no nan."""
        panoptic = {} if self.panoptic is None else {"panoptic": self.panoptic.to_json()}
        return {
            "numbers": _without_nan(self.numbers),
            "per_class_ap": _without_nan(self.per_class_ap),
            "per_class_ar": _without_nan(self.per_class_ar),
            "num_images": self.num_images,
            "num_detections": self.num_detections,
            "max_detections": self.max_detections,
            "notes": list(self.notes),
            **panoptic,
        }


class DetectionEvaluator:
    """Collects the detections of a data set and measures them against its boxes.

    The truth is read once; `reset` makes the evaluator ready for the next epoch. Detections are kept as 56 bytes
    each. On several ranks, each collects its own images and `to_arrays` / `add_arrays` bring them together.

    Args:
        annotations: a COCO annotation file, or the dictionary that such a file holds.
        image_ids: the images to evaluate; all of the file's by default.
        unknown_categories: what to do with detections of a category that the file does not list: `error`, or
            `drop` for models with more classes than the data set (pycocotools drops them silently).

    Raises:
        DataError: the annotation file cannot be used, or `image_ids` names images that it does not list.
    """

    def __init__(
        self,
        annotations: Path | Mapping[str, Any],
        *,
        image_ids: Iterable[int] | None = None,
        unknown_categories: Literal["error", "drop"] = "error",
    ) -> None:
        self._truth = read_ground_truth(annotations)
        self._engine_truth = _engine_truth(self._truth)
        self._unknown_categories = unknown_categories
        self._selected = _select_images(self._truth, image_ids)
        self.reset()

    @property
    def categories(self) -> Categories:
        """The categories of the annotation file, in the order of their ids."""
        return Categories(ids=tuple(self._truth.category_ids.tolist()), names=self._truth.category_names)

    @property
    def image_ids(self) -> Int64[np.ndarray, " I"]:
        """The ids of the images under evaluation, ascending."""
        image_ids: NDArray[np.int64] = self._truth.image_ids[self._selected]
        return image_ids

    def reset(self) -> None:
        """Forget all detections."""
        self._rows: list[NDArray[np.float64]] = []
        self._seen = np.zeros(len(self._truth.image_ids), dtype=bool)
        self._num_not_finite = 0
        self._num_unknown_category = 0

    def add(self, detections: Sequence[Detections]) -> None:
        """Collect the detections of some images, one record per image, in any order.

        Detections that are not finite are dropped and counted in the notes: one bad image does not end a run.

        Raises:
            DataError: an image is not under evaluation or was added before, or a category is unknown. Nothing
                of this call is then kept.
        """
        image_ids = np.array([record.image_id for record in detections], dtype=np.int64)
        lengths = [len(record) for record in detections]
        boxes_xyxy = _joined([record.boxes_xyxy for record in detections]).reshape(-1, 4)
        rows = np.empty((sum(lengths), 7), dtype=np.float64)
        rows[:, 0] = np.repeat(self._new_images(image_ids), lengths)
        rows[:, 1:3] = boxes_xyxy[:, :2]
        rows[:, 3:5] = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        rows[:, 5] = _joined([record.scores for record in detections])
        labels = np.concatenate([np.zeros(0, dtype=np.int64), *(record.labels for record in detections)])
        rows[:, 6], is_known = resolve_ids(labels.astype(np.int64), self._truth.category_ids)
        if self._unknown_categories == "error":
            _check_categories(labels, is_known, truth=self._truth, where="the detections added")
        is_finite = np.isfinite(rows).all(axis=1)
        self._num_unknown_category += int((~is_known).sum())
        self._num_not_finite += int((is_known & ~is_finite).sum())
        self._rows.append(rows[is_known & is_finite])
        self._seen[resolve_ids(image_ids, self._truth.image_ids)[0]] = True

    def add_results_file(self, path: Path) -> None:
        """Collect a COCO results file; images that it does not name have no detections.

        Raises:
            DataError: the file is missing or malformed, or names images or categories that the ground truth does not
                list.
        """
        results = read_results(path)
        image_index, category_index = _known_places(results, self._truth)
        assert results.boxes_xywh is not None
        self._rows.append(np.column_stack([image_index, results.boxes_xywh, results.scores, category_index]))
        self._seen[:] = True

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything collected as arrays, for another rank's `add_arrays`."""
        return {
            "rows": self._all_rows(),
            "image_ids": self._truth.image_ids[self._seen],
            "num_dropped": np.array([self._num_not_finite, self._num_unknown_category], dtype=np.int64),
        }

    def add_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what an evaluator of the same ground truth has collected.

        Raises:
            DataError: an image was added here and there.
        """
        self._seen[self._new_images(arrays["image_ids"])] = True
        self._rows.append(arrays["rows"])
        self._num_not_finite += int(arrays["num_dropped"][0])
        self._num_unknown_category += int(arrays["num_dropped"][1])

    def compute(self, *, max_detections: int = 100, class_agnostic: bool = False) -> DetectionMetrics:
        """Measure what was collected so far; may be called again with other settings.

        Args:
            max_detections: detections counted per image and category, best scores first.
            class_agnostic: match boxes whatever their category.

        Raises:
            ConfigError: `max_detections` is less than 1.
        """
        rows = self._all_rows()
        return _measure(
            self._truth,
            self._engine_truth,
            self._engine_truth.load_res(rows),
            iou_type="bbox",
            selected=self._selected,
            num_detections=len(rows),
            max_detections=max_detections,
            class_agnostic=class_agnostic,
            notes=tuple(self._collection_notes(len(rows))),
        )

    def details(self, *, max_detections: int = 100) -> EvaluationDetails:
        """Look behind the numbers of what was collected so far: confusions, curves, errors, worst images.

        Args:
            max_detections: detections counted per image and category, best scores first.
        """
        truth, rows = self._truth, self._all_rows()
        rows = rows[rows[:, 3] * rows[:, 4] >= 0]  # COCO counts no detection of negative area
        place = np.full(len(truth.image_ids), -1, dtype=np.int64)
        place[self._selected] = np.arange(len(self._selected))
        everything = Objects(
            image_index=place[truth.image_index], labels=truth.category_index, boxes_xywh=truth.boxes_xywh
        )
        is_selected = everything.image_index >= 0
        return detail(
            ranked(
                place[rows[:, 0].astype(np.int64)],
                rows[:, 6].astype(np.int64),
                rows[:, 1:5],
                rows[:, 5],
                max_detections=max_detections,
            ),
            everything.where(is_selected & ~truth.is_crowd),
            everything.where(is_selected & truth.is_crowd),
            classes=truth.category_names,
            image_ids=self.image_ids,
            files=[truth.file_names[i] for i in self._selected.tolist()],
        )

    def detections_of(self, image_id: int) -> Detections:
        """Return what was collected for an image, highest score first; empty where nothing was."""
        rows = self._all_rows()
        (index,), (is_known,) = resolve_ids(np.array([image_id]), self._truth.image_ids)
        rows = rows[(rows[:, 0] == index) & is_known]
        rows = rows[np.argsort(-rows[:, 5], kind="stable")]
        boxes_xyxy = np.concatenate([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:5]], axis=1)
        return Detections(
            boxes_xyxy=boxes_xyxy.astype(np.float32),
            scores=rows[:, 5].astype(np.float32),
            labels=self._truth.category_ids[rows[:, 6].astype(np.int64)],
            image_id=image_id,
        )

    def _collection_notes(self, num_kept: int) -> Iterable[str]:
        num_missing = int((~self._seen[self._selected]).sum())
        if num_missing:
            yield (
                f"{num_missing} of {len(self._selected)} images were never added: "
                "they count as images without detections"
            )
        total = num_kept + self._num_not_finite + self._num_unknown_category
        if self._num_not_finite:
            yield f"{self._num_not_finite} of {total} detections were dropped: their box or score is not finite"
        if self._num_unknown_category:
            yield (
                f"{self._num_unknown_category} of {total} detections were dropped: "
                "the ground truth does not list their category"
            )

    def _all_rows(self) -> Float64[np.ndarray, "N 7"]:
        """Return (image index, left, top, width, height, score, category index) of each detection."""
        rows = np.concatenate([np.zeros((0, 7)), *self._rows])
        self._rows = [rows]
        return rows

    def _new_images(self, image_ids: Int64[np.ndarray, " I"]) -> Int64[np.ndarray, " I"]:
        """Return the places of images of which nothing was added yet."""
        index, is_known = resolve_ids(image_ids, self._truth.image_ids)
        is_known &= np.isin(index, self._selected)
        _check_images(image_ids, is_known, truth=self._truth, where="the detections added")
        values, counts = np.unique(index, return_counts=True)
        repeated = values[(counts > 1) | self._seen[values]]
        if len(repeated):
            repeated_ids = self._truth.image_ids[repeated]
            raise DataError(
                f"detections of an image were added twice: image ids {first_and_count(repeated_ids)}",
                where="the detections added",
                fix="add each image once; leave out the images that pad the last batch of a rank",
            )
        return index


def evaluate_results_file(
    detections_json: Path,
    annotations_json: Path,
    *,
    iou_type: IouType = "bbox",
    max_detections: int = 100,
    class_agnostic: bool = False,
) -> DetectionMetrics:
    """Measure a COCO results file against a COCO annotation file.

    Args:
        detections_json: a list of {image_id, category_id, score, bbox [left, top, width, height] or segmentation}.
        annotations_json: the ground truth.
        iou_type: overlap of boxes, or of masks (`segm`; needs `segmentation` in both files).
        max_detections: detections counted per image and category, best scores first.
        class_agnostic: match whatever the category.

    Raises:
        DataError: a file is missing or malformed, or the results name images or categories that the ground
            truth does not list.
        ConfigError: `max_detections` is less than 1.
    """
    if iou_type == "bbox":
        evaluator = DetectionEvaluator(annotations_json)
        evaluator.add_results_file(detections_json)
        return evaluator.compute(max_detections=max_detections, class_agnostic=class_agnostic)
    truth = read_ground_truth(annotations_json, with_masks=True)
    results = read_results(detections_json, with_masks=True)
    image_index, category_index = _known_places(results, truth)
    check_result_masks(results, image_index, truth)
    engine_truth = _engine_truth(truth)
    return _measure(
        truth,
        engine_truth,
        engine_truth.load_res(_mask_records(results, image_index, category_index)),
        iou_type=iou_type,
        selected=np.arange(len(truth.image_ids)),
        num_detections=len(results),
        max_detections=max_detections,
        class_agnostic=class_agnostic,
        notes=(),
    )


# --- checks -------------------------------------------------------------------------------------------------------


def _select_images(truth: GroundTruth, image_ids: Iterable[int] | None) -> Int64[np.ndarray, " I"]:
    """Return the places of the images to evaluate, ascending."""
    if image_ids is None:
        return np.arange(len(truth.image_ids))
    wanted = np.unique(np.fromiter(image_ids, dtype=np.int64))
    index, is_known = resolve_ids(wanted, truth.image_ids)
    _check_images(wanted, is_known, truth=truth, where="image_ids")
    return index


def _known_places(results: Results, truth: GroundTruth) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """Return the places of the images and of the categories that a results file names."""
    image_index, image_known = resolve_ids(results.image_ids, truth.image_ids)
    category_index, category_known = resolve_ids(results.category_ids, truth.category_ids)
    _check_images(results.image_ids, image_known, truth=truth, where=results.where)
    _check_categories(results.category_ids, category_known, truth=truth, where=results.where)
    return image_index, category_index


def _check_images(image_ids: NDArray[np.int64], is_known: NDArray[np.bool_], *, truth: GroundTruth, where: str) -> None:
    if not is_known.all():
        raise DataError(
            f"{int((~is_known).sum())} of {len(is_known)} entries name images that are not under evaluation: "
            f"image ids {first_and_count(image_ids[~is_known])}",
            where=f"{where}, compared with {truth.where} ({len(truth.image_ids)} images)",
            fix="use the annotation file of the split that the detections were made on",
        )


def _check_categories(
    category_ids: NDArray[np.int64], is_known: NDArray[np.bool_], *, truth: GroundTruth, where: str
) -> None:
    if not is_known.all():
        raise DataError(
            f"{int((~is_known).sum())} of {len(is_known)} detections have a category that the ground truth does not "
            f"list: category ids {first_and_count(category_ids[~is_known])}",
            where=f"{where}, compared with {truth.where} (category ids {first_and_count(truth.category_ids)})",
            fix="write category ids as in the annotation file, not class indices of the model",
        )


# --- the engine ---------------------------------------------------------------------------------------------------


def _engine_truth(truth: GroundTruth) -> hotcoco.COCO:
    """Hand the truth over under dense ids: order, and with it every tie, stays that of the original ids."""
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(truth.image_sizes_hw)]
    categories = [{"id": i, "name": name} for i, name in enumerate(truth.category_names)]
    return hotcoco.COCO.from_arrays(
        images,
        categories,
        truth.image_index,
        truth.category_index,
        truth.boxes_xywh,
        ids=np.arange(1, len(truth.areas_px) + 1),
        area=truth.areas_px,
        iscrowd=truth.is_crowd.astype(np.int64),
        segmentation=None if truth.segmentations is None else list(truth.segmentations),
    )


def _mask_records(
    results: Results, image_index: NDArray[np.int64], category_index: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Return results records for the engine. Where there are boxes, they decide the size class, as in pycocotools."""
    assert results.segmentations is not None
    records: list[dict[str, Any]] = [
        {"image_id": image, "category_id": category, "score": score, "segmentation": segmentation}
        for image, category, score, segmentation in zip(
            image_index.tolist(), category_index.tolist(), results.scores.tolist(), results.segmentations, strict=True
        )
    ]
    if results.boxes_xywh is not None:
        for record, box in zip(records, results.boxes_xywh.tolist(), strict=True):
            record["bbox"] = box
    return records


def _measure(
    truth: GroundTruth,
    engine_truth: hotcoco.COCO,
    engine_results: hotcoco.COCO,
    *,
    iou_type: IouType,
    selected: Int64[np.ndarray, " I"],
    num_detections: int,
    max_detections: int,
    class_agnostic: bool,
    notes: tuple[str, ...],
) -> DetectionMetrics:
    if max_detections < 1:
        raise ConfigError(f"max_detections is {max_detections}; it must be at least 1", fix="COCO's own limit is 100")
    limits = sorted({min(limit, max_detections) for limit in _RECALL_LIMITS} | {max_detections})
    engine = hotcoco.COCOeval(engine_truth, engine_results, iou_type)
    engine.params.max_dets = limits
    engine.params.img_ids = selected.tolist()
    engine.params.use_cats = not class_agnostic
    engine.evaluate()
    engine.accumulate()
    curves = engine.eval
    assert curves is not None
    precision: Float64[np.ndarray, "T R K A M"] = curves["precision"]
    recall: Float64[np.ndarray, "T K A M"] = curves["recall"]

    numbers = {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[_AP50, ..., 0, -1]),
        "AP75": _mean(precision[_AP75, ..., 0, -1]),
        **{f"AP_{_AREA_NAMES[a]}": _mean(precision[..., a, -1]) for a in (1, 2, 3)},
        **{f"AR_{k}": _mean(recall[..., 0, limits.index(min(k, max_detections))]) for k in _RECALL_LIMITS},
        **{f"AR_{_AREA_NAMES[a]}": _mean(recall[..., a, -1]) for a in (1, 2, 3)},
    }
    if max_detections > _RECALL_LIMITS[-1]:
        numbers[f"AR_{max_detections}"] = _mean(recall[..., 0, -1])
    names = () if class_agnostic else truth.category_names
    per_class_ap = {name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names)}
    return DetectionMetrics(
        numbers=numbers,
        per_class_ap=per_class_ap,
        per_class_ar={name: _mean(recall[:, k, 0, -1]) for k, name in enumerate(names)},
        num_images=len(selected),
        num_detections=num_detections,
        max_detections=max_detections,
        notes=(*truth.notes, *notes, *_undefined_notes(numbers, per_class_ap, num_images=len(selected))),
    )


def _undefined_notes(numbers: dict[str, float], per_class_ap: dict[str, float], *, num_images: int) -> Iterable[str]:
    if math.isnan(numbers["AP"]):
        yield f"there is no object to find in the {num_images} images (crowd regions aside): every number is nan"
        return
    for name, text in _AREA_TEXT.items():
        if math.isnan(numbers[f"AP_{name}"]):
            yield f"there is no {name} object ({text}) to find: AP_{name} and AR_{name} are nan"
    absent = [name for name, ap in per_class_ap.items() if math.isnan(ap)]
    if absent:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        yield f"{len(absent)} of {len(per_class_ap)} categories have no object to find and are in no mean: {shown}"


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean over what has ground truth (the engine marks the rest with -1); nan where nothing has."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else math.nan


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *(array.reshape(-1) for array in arrays)]).astype(np.float64, copy=False)


def _without_nan(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}
