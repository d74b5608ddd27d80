"""Reading a COCO panoptic annotation file into the same columns as one of instances: a segment is an object.

What the maps hold is not looked at here; `store.maps` reads them, one at a time.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np

from detronome.data.check.panoptic import check_panoptic_records
from detronome.data.check.panoptic_kinds import PANOPTIC_KINDS
from detronome.data.check.tally import Tally
from detronome.data.coco.panoptic_records import PanopticFile, Segment, is_text, is_whole, read_panoptic
from detronome.data.coco.read import CocoAnnotations
from detronome.errors import DataError, Problem, first_few
from detronome.types import Categories

__all__ = ["read_panoptic_annotations"]

_ACCEPTED = frozenset({"panoptic_image_unannotated", "panoptic_color_twice"})
_LARGEST_SIDE = 2**31 - 1
_LARGEST_MEASURE = 2.0**62


def read_panoptic_annotations(json_file: Path) -> CocoAnnotations:
    """Return the annotations of a COCO panoptic file.

    Images and annotations are matched by `image_id`: their orders differ in the official files. Images that nobody has
    annotated are left out; an annotation without segments is one of an image that is void throughout. Boxes are those
    that the file gives; `annotation_ids` are segment ids, which are unique within their image alone.

    Raises:
        DataError: the file cannot be read or is not sound; all its problems at once, with the ids of the first cases.
    """
    file = _sound_file(json_file)
    by_image = {int(annotation.image_id): annotation for annotation in file.annotations}
    images = [image for image in file.images if int(image.id) in by_image]
    annotations = [by_image[int(image.id)] for image in images]
    segments = list(chain.from_iterable(annotation.segments_info for annotation in annotations))
    categories = sorted(file.categories, key=lambda category: int(category.id))
    label_of = {int(category.id): label for label, category in enumerate(categories)}
    return CocoAnnotations(
        categories=Categories(
            ids=tuple(label_of),
            names=tuple(category.name for category in categories),
            is_thing=tuple(bool(category.isthing) for category in categories),
        ),
        image_ids=np.array([int(image.id) for image in images], np.int64),
        file_names=[image.file_name for image in images],
        heights=np.array([image.height for image in images], np.int32),
        widths=np.array([image.width for image in images], np.int32),
        offsets=np.concatenate(([0], np.cumsum([len(a.segments_info) for a in annotations]))).astype(np.int64),
        annotation_ids=np.array([int(segment.id) for segment in segments], np.int64),
        boxes_xywh=np.array([segment.bbox for segment in segments], np.float64).reshape(-1, 4),
        labels=np.array([label_of[int(segment.category_id)] for segment in segments], np.int32),
        area=np.array([segment.area for segment in segments], np.float64),
        iscrowd=np.array([bool(segment.iscrowd) for segment in segments], np.bool_),
        map_names=[annotation.file_name for annotation in annotations],
    )


def _sound_file(json_file: Path) -> PanopticFile:
    try:
        file = read_panoptic(json_file)
    except DataError as error:
        raise DataError(
            [
                Problem(
                    what=f"the panoptic annotation file cannot be used: {problem.what}",
                    where=problem.where or str(json_file),
                    fix=problem.fix or "give a file with images, categories, and annotations with segments_info",
                )
                for problem in error.problems
            ]
        ) from error
    if file.annotations and all(a.file_name is None and not a.segments_info for a in file.annotations):
        raise DataError(
            "the annotation file holds no panoptic annotations: none has a map or segments",
            where=str(json_file),
            fix="give panoptic_<split>.json, whose annotations have file_name and segments_info",
        )
    problems = [*_record_problems(file, json_file), *_value_problems(file, json_file)]
    for name in ("images", "categories", "annotations"):
        if not getattr(file, name):
            problems.append(Problem(what=f"the panoptic annotation file has no {name}", where=f"{json_file}: $.{name}"))
    if problems:
        raise DataError(problems)
    return file


def _record_problems(file: PanopticFile, json_file: Path) -> list[Problem]:
    """Return what the data doctor finds in the records themselves, and calls an error or leaves undecided."""
    found = Tally(PANOPTIC_KINDS)
    for segment in chain.from_iterable(annotation.segments_info for annotation in file.annotations):
        segment.iscrowd = segment.iscrowd or 0  # most files but COCO's leave it out
    check_panoptic_records(file, found)
    return [
        Problem(
            what=f"{finding.count} {finding.what}",
            where=f"{json_file}: {first_few(finding.cases, most=len(finding.cases))}"
            + (f" and {finding.count - len(finding.cases):,} more" if finding.count > len(finding.cases) else ""),
            fix=finding.fix,
        )
        for finding in found.findings(str(json_file))
        if finding.code not in _ACCEPTED
    ]


def _value_problems(file: PanopticFile, json_file: Path) -> list[Problem]:
    """Return what the doctor leaves open and columns cannot hold."""
    unmeasured = [
        f"segment {segment.id} of image {annotation.image_id}"
        for annotation in file.annotations
        for segment in annotation.segments_info
        if not _is_measured(segment)
    ]
    ids = (("image", record.id) for record in file.images), (("category", record.id) for record in file.categories)
    large = [f"{kind} {id_}" for kind, id_ in chain(*ids) if is_whole(id_) and not -(2**63) <= id_ < 2**63]
    large += [
        f"{image.width}x{image.height} pixels of image {image.id}"
        for image in file.images
        if any(is_whole(side) and side > _LARGEST_SIDE for side in (image.width, image.height))
    ]
    names = chain(
        (image.file_name for image in file.images),
        (annotation.file_name for annotation in file.annotations),
        (category.name for category in file.categories),
    )
    odd = [repr(name) for name in names if isinstance(name, str) and not is_text(name)]
    cases = (
        (odd, "names are not valid Unicode", "correct the names"),
        (
            unmeasured,
            "segments lack area, or bbox with four numbers",
            "write area and [left, top, width, height] of the segment's pixels",
        ),
        (large, "ids or sizes are beyond all bounds", "number images and categories with fewer than 19 digits"),
    )
    return [
        Problem(what=f"{len(found)} {what}", where=f"{json_file}: {first_few(found)}", fix=fix)
        for found, what, fix in cases
        if found
    ]


def _is_measured(segment: Segment) -> bool:
    if not isinstance(segment.bbox, list) or len(segment.bbox) != 4:
        return False
    numbers = (segment.area, *segment.bbox)
    return all(type(n) in (int, float) and abs(n) < _LARGEST_MEASURE for n in numbers)
