"""Reading a file of panoptic predictions, as tools write them for COCO: its `annotations` alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from detronome.data.coco.panoptic_records import MapAnnotation, is_text, is_whole, read_panoptic_results
from detronome.errors import DataError, Problem, first_few
from detronome.ops.segment_ids import LARGEST_SEGMENT_ID

__all__ = ["PanopticResult", "read_results"]


@dataclass(frozen=True, kw_only=True)
class PanopticResult:
    """The prediction for one image."""

    image_id: int
    file_name: str
    """Of the map."""
    segments: tuple[tuple[int, int], ...]
    """(segment id, category id) of each."""


def read_results(json_file: Path) -> dict[int, PanopticResult]:
    """Return the predictions of a file by image id.

    Raises:
        DataError: the file cannot be read or is malformed; all its problems at once, with their places.
    """
    try:
        records = read_panoptic_results(json_file).annotations
    except DataError as error:
        raise DataError(
            [
                Problem(
                    what=f"the file of predictions cannot be used: {problem.what}",
                    where=problem.where or str(json_file),
                    fix=problem.fix or 'give a file with "annotations": image_id, file_name and segments_info of each',
                )
                for problem in error.problems
            ]
        ) from error
    bad_records = [f"$.annotations[{n}]" for n, record in enumerate(records) if not _is_sound(record)]
    bad_segments = [
        f"$.annotations[{n}].segments_info[{k}]"
        for n, record in enumerate(records)
        for k, segment in enumerate(record.segments_info)
        if not (is_whole(segment.id) and 1 <= segment.id <= LARGEST_SEGMENT_ID and is_whole(segment.category_id))
    ]
    ids = [int(record.image_id) for record in records if is_whole(record.image_id)]
    repeated = [str(image_id) for image_id, count in Counter(ids).items() if count > 1]
    cases = (
        ("predictions lack an image_id or file_name", bad_records, "give each prediction both"),
        (
            "segments lack an id or category_id, or have no sound one",
            bad_segments,
            f"use whole numbers, ids from 1 to {LARGEST_SEGMENT_ID}",
        ),
        ("images have several predictions", repeated, "keep one prediction for each image"),
    )
    problems = [
        Problem(what=f"{len(found)} {what}: {first_few(found)}", where=str(json_file), fix=fix)
        for what, found, fix in cases
        if found
    ]
    if problems:
        raise DataError(problems)
    return {
        int(record.image_id): PanopticResult(
            image_id=int(record.image_id),
            file_name=record.file_name,
            segments=tuple((int(segment.id), int(segment.category_id)) for segment in record.segments_info),
        )
        for record in records
    }


def _is_sound(record: MapAnnotation) -> bool:
    name = record.file_name
    return is_whole(record.image_id) and isinstance(name, str) and bool(name) and "\0" not in name and is_text(name)
