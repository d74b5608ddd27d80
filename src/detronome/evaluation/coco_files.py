"""Reading the two files of a COCO evaluation, ground truth and results, into checked arrays.

A valid file is decoded by a typed parser in one pass. Any other is read again slowly, only to name every defect
in it with its place. Nothing here computes a metric.

Shape letters: `I` images, `K` categories, `A` annotations, `N` detections.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray

from detronome.errors import DataError, Problem

__all__ = [
    "GroundTruth",
    "Results",
    "check_result_masks",
    "first_and_count",
    "read_ground_truth",
    "read_results",
    "resolve_ids",
]

_MAX_SHOWN = 10
_INT64 = 2**63
_MAX_SIDE_PX = 2**31 - 1
_CHECK_HINT = "`detronome data check` lists and explains every defect of a data set"

_Id = Annotated[int, msgspec.Meta(ge=-_INT64, le=_INT64 - 1)]
_Side = Annotated[float, msgspec.Meta(ge=0, le=_MAX_SIDE_PX)]
_Box = tuple[float, float, float, float]
_Record = TypeVar("_Record")


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """The truth of a data set as columns. Images and categories are numbered in the order of their ids."""

    where: str
    """The file it was read from."""
    image_ids: Int64[np.ndarray, " I"]
    """Ascending."""
    image_sizes_hw: tuple[tuple[int, int], ...]
    """Height and width in pixels of each image; 0 where the file does not say."""
    file_names: tuple[str, ...]
    """Of each image; empty where the file does not say."""
    category_ids: Int64[np.ndarray, " K"]
    """Ascending."""
    category_names: tuple[str, ...]
    """Unique: categories of one name carry their id."""
    image_index: Int64[np.ndarray, " A"]
    category_index: Int64[np.ndarray, " A"]
    boxes_xywh: Float64[np.ndarray, "A 4"]
    """Left, top, width, height in pixels."""
    areas_px: Float64[np.ndarray, " A"]
    """Area of the object in square pixels, which decides whether it is small, medium or large."""
    is_crowd: Bool[np.ndarray, " A"]
    segmentations: tuple[Any, ...] | None
    """Polygons or run lengths of each annotation; None where masks were not asked for."""
    notes: tuple[str, ...]
    """What a reader of the numbers should know about this truth."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Detections as columns, with ids as in the file."""

    where: str
    image_ids: Int64[np.ndarray, " N"]
    category_ids: Int64[np.ndarray, " N"]
    scores: Float64[np.ndarray, " N"]
    boxes_xywh: Float64[np.ndarray, "N 4"] | None
    """Left, top, width, height in pixels; None where the file gives masks only."""
    segmentations: tuple[Any, ...] | None

    def __len__(self) -> int:
        return len(self.scores)


class _Image(msgspec.Struct, gc=False):
    id: _Id
    height: _Side | None = None
    width: _Side | None = None
    file_name: Any = None


class _Category(msgspec.Struct, gc=False):
    id: _Id
    name: str | None = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: _Id
    category_id: _Id
    bbox: _Box
    id: int | str | None = None
    area: float | None = None
    iscrowd: int | bool | None = None


class _MaskAnnotation(_Annotation):
    segmentation: Any = None


class _TruthFile(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: Sequence[_Annotation]


class _MaskTruthFile(_TruthFile):
    annotations: Sequence[_MaskAnnotation]


class _Detection(msgspec.Struct, gc=False):
    image_id: _Id
    category_id: _Id
    score: float
    bbox: _Box


class _MaskDetection(msgspec.Struct, gc=False):
    image_id: _Id
    category_id: _Id
    score: float
    segmentation: Any
    bbox: _Box | None = None


# --- ground truth -------------------------------------------------------------------------------------------------


def read_ground_truth(source: Path | Mapping[str, Any], *, with_masks: bool = False) -> GroundTruth:
    """Read a COCO annotation file, or the dictionary that such a file holds.

    Annotations whose image or category the file does not list are left out and noted, as pycocotools does
    silently; a missing `area` is the box's, a missing `iscrowd` is no crowd. Annotation ids play no part.

    Args:
        source: path of the file, or its content.
        with_masks: also read `segmentation`, which every annotation must then have.

    Raises:
        DataError: the file is missing, not JSON, not of COCO's form, or its values make no sense; all defects
            at once, the first ten in full.
    """
    if isinstance(source, Path):
        where = str(source)
        truth_type: type[_TruthFile] = _MaskTruthFile if with_masks else _TruthFile
        truth = _decode(
            _read_bytes(source, "annotation file"),
            where=where,
            type_=truth_type,
            slowly=lambda content: _parse_truth(content, where=where, with_masks=with_masks),
        )
    else:
        where = "the annotations given"
        truth = _parse_truth(source, where=where, with_masks=with_masks)
    return _truth_columns(truth, where=where, with_masks=with_masks)


def _truth_columns(truth: _TruthFile, *, where: str, with_masks: bool) -> GroundTruth:
    problems = [
        *_duplicates([image.id for image in truth.images], kind="image", where=where),
        *_duplicates([category.id for category in truth.categories], kind="category", where=where),
        *_bad_boxes(truth.annotations, where=where),
    ]
    images = sorted(truth.images, key=lambda image: image.id)
    categories = sorted(truth.categories, key=lambda category: category.id)
    image_ids = _int_column(image.id for image in images)
    category_ids = _int_column(category.id for category in categories)
    image_index, image_known = resolve_ids(_int_column(a.image_id for a in truth.annotations), image_ids)
    category_index, category_known = resolve_ids(_int_column(a.category_id for a in truth.annotations), category_ids)
    is_known = image_known & category_known
    sizes_hw = tuple((int(image.height or 0), int(image.width or 0)) for image in images)
    segmentations: list[Any] | None = None
    if with_masks:
        segmentations = [getattr(annotation, "segmentation", None) for annotation in truth.annotations]
        for i in np.flatnonzero(is_known).tolist():
            defect = _mask_defect(segmentations[i], sizes_hw[image_index[i]])
            if defect:
                problems.append(_problem(f"segmentation {defect}", where, f"annotations[{i}].segmentation"))
    _raise_if(problems, fix=_CHECK_HINT)

    boxes_xywh = np.array([a.bbox for a in truth.annotations], dtype=np.float64).reshape(-1, 4)
    areas_px = np.array(
        [a.bbox[2] * a.bbox[3] if a.area is None else a.area for a in truth.annotations], dtype=np.float64
    )
    is_crowd = np.array([bool(a.iscrowd) for a in truth.annotations], dtype=bool)
    return GroundTruth(
        where=where,
        image_ids=image_ids,
        image_sizes_hw=sizes_hw,
        file_names=tuple(image.file_name if isinstance(image.file_name, str) else "" for image in images),
        category_ids=category_ids,
        category_names=_unique_names(categories),
        image_index=image_index[is_known],
        category_index=category_index[is_known],
        boxes_xywh=boxes_xywh[is_known],
        areas_px=areas_px[is_known],
        is_crowd=is_crowd[is_known],
        segmentations=None if segmentations is None else tuple(segmentations[i] for i in np.flatnonzero(is_known)),
        notes=tuple(_truth_notes(truth.annotations, is_known)),
    )


def _truth_notes(annotations: Sequence[_Annotation], is_known: NDArray[np.bool_]) -> Iterable[str]:
    total = len(annotations)
    lost = total - int(is_known.sum())
    if lost:
        yield f"{lost} of {total} annotations name an image or category that the file does not list; they are left out"
    ids = [annotation.id for annotation in annotations if annotation.id is not None]
    if 0 in ids:
        yield "there is an annotation with id 0: pycocotools counts its object as missed, these numbers do not"
    repeated = len(ids) - len(set(ids))
    if repeated:
        yield (
            f"{repeated} of {total} annotations repeat the id of another: pycocotools mixes them up, "
            "these numbers count each"
        )
    without_area = sum(annotation.area is None for annotation in annotations)
    if without_area:
        yield (
            f"{without_area} of {total} annotations have no area: the area of their box says whether they are "
            "small, medium or large"
        )


def _bad_boxes(annotations: Sequence[_Annotation], *, where: str) -> Iterable[Problem]:
    for i, annotation in enumerate(annotations):
        _, _, width, height = annotation.bbox
        if width < 0 or height < 0:
            yield _problem(
                f"bbox {list(annotation.bbox)} has a negative width or height", where, f"annotations[{i}].bbox"
            )


def _unique_names(categories: Sequence[_Category]) -> tuple[str, ...]:
    names = [category.name or str(category.id) for category in categories]
    return tuple(
        name if names.count(name) == 1 else f"{name} (id {category.id})"
        for name, category in zip(names, categories, strict=True)
    )


def _duplicates(ids: Sequence[int], *, kind: str, where: str) -> Iterable[Problem]:
    if len(set(ids)) < len(ids):
        values, counts = np.unique(np.array(ids, dtype=np.int64), return_counts=True)
        yield Problem(
            what=f"{kind} ids occur more than once: {first_and_count(values[counts > 1])}", where=where, fix=_CHECK_HINT
        )


# --- results ------------------------------------------------------------------------------------------------------


def read_results(path: Path, *, with_masks: bool = False) -> Results:
    """Read a COCO results file: a list of detections with `image_id`, `category_id`, `score` and `bbox`.

    Args:
        path: the file.
        with_masks: read `segmentation` (run lengths or polygons); `bbox` may then be absent.

    Raises:
        DataError: the file is missing, not JSON or not a list of detections; all defects at once, the first
            ten in full.
    """
    where = str(path)
    records: list[Any] = _decode(
        _read_bytes(path, "results file"),
        where=where,
        type_=list[_MaskDetection] if with_masks else list[_Detection],
        slowly=lambda content: _parse_results(content, where=where, with_masks=with_masks),
    )
    # Some writers give boxes beside the masks, some do not; a mixture counts as without.
    has_boxes = not with_masks or bool(records and all(record.bbox is not None for record in records))
    return Results(
        where=where,
        image_ids=_int_column(record.image_id for record in records),
        category_ids=_int_column(record.category_id for record in records),
        scores=np.array([record.score for record in records], dtype=np.float64),
        boxes_xywh=np.array([record.bbox for record in records], dtype=np.float64).reshape(-1, 4)
        if has_boxes
        else None,
        segmentations=tuple(record.segmentation for record in records) if with_masks else None,
    )


def check_result_masks(results: Results, image_index: Int64[np.ndarray, " N"], truth: GroundTruth) -> None:
    """Make sure that each mask is of a known form and of its image's size.

    Raises:
        DataError: some are not.
    """
    problems = []
    for i, segmentation in enumerate(results.segmentations or ()):
        defect = _mask_defect(segmentation, truth.image_sizes_hw[image_index[i]])
        if defect:
            problems.append(_problem(f"segmentation {defect}", results.where, f"[{i}].segmentation"))
    _raise_if(problems, fix="write COCO run lengths {'size': [height, width], 'counts': ...} of the whole image")


# --- ids ----------------------------------------------------------------------------------------------------------


def resolve_ids(
    ids: Int64[np.ndarray, " N"], known: Int64[np.ndarray, " M"]
) -> tuple[Int64[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Return the place of each id in `known` (ascending) and whether it is there at all."""
    if len(known) == 0:
        return np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=bool)
    index = np.minimum(np.searchsorted(known, ids), len(known) - 1).astype(np.int64)
    return index, known[index] == ids


def first_and_count(ids: Iterable[int] | NDArray[np.int64]) -> str:
    """Return the distinct ids as text: the first ten, and how many there are when there are more."""
    distinct = np.unique(np.asarray(ids)).tolist()
    text = ", ".join(map(str, distinct[:_MAX_SHOWN]))
    return text if len(distinct) <= _MAX_SHOWN else f"{text}, ... ({len(distinct)} in all)"


# --- decoding -----------------------------------------------------------------------------------------------------


def _read_bytes(path: Path, kind: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"the {kind} does not exist", where=str(path), fix="check the path") from error
    except OSError as error:
        raise DataError(
            f"the {kind} cannot be read: {error.strerror}", where=str(path), fix="check the path"
        ) from error


def _decode(data: bytes, *, where: str, type_: type[_Record], slowly: Callable[[Any], _Record]) -> _Record:
    """Decode with the typed parser; where it refuses, with the standard one, which also accepts NaN and a BOM."""
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise DataError("the file is not COCO JSON: it is nested too deeply", where=where) from error
    except ValueError as error:
        raise DataError(
            "the file is empty" if not data.strip() else f"the file is not valid JSON: {error}",
            where=where,
            fix="write it again; an interrupted copy or download leaves such a file",
        ) from error
    return slowly(content)


def _parse_truth(content: Any, *, where: str, with_masks: bool) -> _TruthFile:
    if not isinstance(content, Mapping):
        raise DataError(
            f"the annotations are {_kind(content)}, not an object with images, annotations and categories",
            where=where,
            fix="give the ground truth here; a list of detections is a results file",
        )
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        problems = [
            Problem(
                what=f"{key!r} is {_kind(content[key])}, not a list" if key in content else f"{key!r} is missing",
                where=where,
                fix=_CHECK_HINT,
            )
            for key in missing
        ]
        raise DataError(problems)
    checker = _Checker(where)
    images = [
        _Image(
            id=checker.id(r, "id", at),
            height=checker.size(r, "height", at),
            width=checker.size(r, "width", at),
            file_name=r.get("file_name"),
        )
        for at, r in checker.records(content["images"], "images")
    ]
    categories = [
        _Category(id=checker.id(r, "id", at), name=None if r.get("name") is None else str(r["name"]))
        for at, r in checker.records(content["categories"], "categories")
    ]
    annotations = [
        _MaskAnnotation(
            image_id=checker.id(r, "image_id", at),
            category_id=checker.id(r, "category_id", at),
            bbox=checker.box(r, at),
            id=r["id"] if isinstance(r.get("id"), (int, str)) else None,
            area=None if r.get("area") is None else checker.number(r, "area", at),
            iscrowd=checker.flag(r, "iscrowd", at),
            segmentation=r.get("segmentation") if with_masks else None,
        )
        for at, r in checker.records(content["annotations"], "annotations")
    ]
    _raise_if(checker.problems, fix=_CHECK_HINT)
    return _TruthFile(images=images, annotations=annotations, categories=categories)


def _parse_results(content: Any, *, where: str, with_masks: bool) -> list[Any]:
    if not isinstance(content, list):
        raise DataError(
            f"the results are {_kind(content)}, not a list of detections",
            where=where,
            fix="write [{'image_id': ..., 'category_id': ..., 'bbox': [left, top, width, height], 'score': ...}, ...]",
        )
    checker = _Checker(where)
    records: list[Any] = []
    for at, r in checker.records(content, ""):
        image_id, category_id = checker.id(r, "image_id", at), checker.id(r, "category_id", at)
        score = checker.number(r, "score", at)
        if with_masks:
            bbox = checker.box(r, at) if r.get("bbox") else None
            if "segmentation" not in r:
                checker.add("'segmentation' is missing", at)
            segmentation = r.get("segmentation")
            records.append(_MaskDetection(image_id, category_id, score, segmentation=segmentation, bbox=bbox))
        else:
            records.append(_Detection(image_id, category_id, score, bbox=checker.box(r, at)))
    _raise_if(
        checker.problems,
        fix="a detection is {'image_id': int, 'category_id': int, 'bbox': [left, top, width, height], 'score': number}",
    )
    return records


class _Checker:
    """Reads the fields of loosely typed records and collects what is wrong with them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[Problem] = []

    def add(self, what: str, at: str) -> None:
        self.problems.append(_problem(what, self.where, at))

    def records(self, content: list[Any], name: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield each record that is an object, with its place in the file."""
        for i, record in enumerate(content):
            if isinstance(record, Mapping):
                yield f"{name}[{i}]", record
            else:
                self.add(f"the record is {_kind(record)}, not an object", f"{name}[{i}]")

    def id(self, record: Mapping[str, Any], key: str, at: str) -> int:
        value = self._get(record, key, at)
        if value is _MISSING:
            return 0
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not -_INT64 <= value < _INT64:
            self.add(f"{key!r} is {_show(value)}, not an integer", f"{at}.{key}")
            return 0
        return int(value)

    def number(self, record: Mapping[str, Any], key: str, at: str) -> float:
        value = self._get(record, key, at)
        if value is _MISSING:
            return 0.0
        if not _is_finite(value):
            self.add(f"{key!r} is {_show(value)}, not a finite number", f"{at}.{key}")
            return 0.0
        return float(value)

    def size(self, record: Mapping[str, Any], key: str, at: str) -> int | None:
        value = record.get(key)
        if value is None:
            return None
        if not _is_finite(value) or not 0 <= value <= _MAX_SIDE_PX:
            self.add(f"{key!r} is {_show(value)}, not a size in pixels", f"{at}.{key}")
            return None
        return int(value)

    def flag(self, record: Mapping[str, Any], key: str, at: str) -> bool:
        value = record.get(key)
        if value not in (None, 0, 1):
            self.add(f"{key!r} is {_show(value)}, neither 0 nor 1", f"{at}.{key}")
        return value == 1

    def box(self, record: Mapping[str, Any], at: str) -> _Box:
        value = self._get(record, "bbox", at)
        if value is _MISSING:
            return (0.0, 0.0, 0.0, 0.0)
        if not isinstance(value, (list, tuple, np.ndarray)) or len(value) != 4 or not all(map(_is_finite, value)):
            self.add(f"'bbox' is {_show(value)}, not four finite numbers", f"{at}.bbox")
            return (0.0, 0.0, 0.0, 0.0)
        left, top, width, height = map(float, value)
        return (left, top, width, height)

    def _get(self, record: Mapping[str, Any], key: str, at: str) -> Any:
        if key not in record:
            self.add(f"{key!r} is missing", at)
            return _MISSING
        return record[key]


_MISSING = object()


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _mask_defect(segmentation: Any, size_hw: tuple[int, int]) -> str:
    """Return what is wrong with the form of a mask, or nothing."""
    if isinstance(segmentation, list):
        if not segmentation:
            return "is empty"
        for polygon in segmentation:
            if (
                not isinstance(polygon, list)
                or len(polygon) < 6
                or len(polygon) % 2
                or not all(map(_is_finite, polygon))
            ):
                return "has a polygon that is not a list of at least three points x, y"
        return "" if all(size_hw) else "is a polygon, and its image has no width and height"
    if isinstance(segmentation, Mapping):
        counts, size = segmentation.get("counts"), segmentation.get("size")
        if not isinstance(counts, (str, list)):
            return "has no run lengths 'counts'"
        if size != list(size_hw):
            return f"has size {_show(size)}; its image has height and width {list(size_hw)}"
        if isinstance(counts, list) and not (
            all(type(run) is int and run >= 0 for run in counts) and sum(counts) == size_hw[0] * size_hw[1]
        ):
            return "has run lengths 'counts' that do not add up to its size"
        return ""
    return f"is {_kind(segmentation)}, neither polygons nor run lengths"


def _int_column(values: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64)


def _problem(what: str, where: str, at: str) -> Problem:
    return Problem(what=what, where=f"{where}: {at}")


def _raise_if(problems: Sequence[Problem], *, fix: str) -> None:
    if not problems:
        return
    shown = [problem if problem.fix else replace(problem, fix=fix) for problem in problems[:_MAX_SHOWN]]
    if len(problems) > _MAX_SHOWN:
        shown.append(
            Problem(what=f"and {len(problems) - _MAX_SHOWN} more problems in the same file ({len(problems)} in all)")
        )
    raise DataError(shown)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return "a string" if isinstance(value, str) else f"the value {_show(value)}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
