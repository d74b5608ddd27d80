"""Checking panoptic annotations: the annotation file, its PNG maps, and whether both say the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from detronome.data.check.findings import SHOWN, Finding
from detronome.data.check.image_names import is_there
from detronome.data.check.panoptic_kinds import PANOPTIC_KINDS
from detronome.data.check.panoptic_map import MapSegments, measure_map
from detronome.data.check.tally import Tally
from detronome.data.coco.panoptic_map import UnfitMapError, read_map
from detronome.data.coco.panoptic_records import (
    Category,
    Image,
    MapAnnotation,
    PanopticFile,
    Segment,
    is_whole,
    read_panoptic,
)
from detronome.data.store.decode import ImageError
from detronome.errors import DataError
from detronome.ops.segment_ids import LARGEST_SEGMENT_ID

__all__ = ["check_panoptic", "check_panoptic_records"]


def check_panoptic(
    json_file: Path,
    png_dir: Path,
    images_dir: Path | None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    max_cases: int | None = SHOWN,
) -> tuple[list[Finding], dict[str, int]]:
    """Return the findings about a panoptic annotation file and its maps, and how much was looked at.

    Args:
        json_file: the annotation file.
        png_dir: the folder of its maps.
        images_dir: the folder of the images, or None to leave them aside.
        on_progress: called with the numbers of maps done and in all.
        max_cases: how many cases a finding names; None for all.
    """
    found = Tally(PANOPTIC_KINDS, max_cases)
    try:
        file = read_panoptic(json_file)
    except DataError as error:
        problem = error.problems[0]
        found.add("panoptic_file_unreadable", " in ".join(filter(None, (problem.what, problem.where))))
        return found.findings(str(json_file)), {"panoptic files": 1, "panoptic maps": 0, "panoptic segments": 0}
    images, annotations = check_panoptic_records(file, found)
    if images_dir is not None:
        _check_image_files(images.values(), images_dir, found)
    num_maps = 0
    for i, annotation in enumerate(annotations):
        num_maps += _check_map(annotation, images[int(annotation.image_id)], png_dir, found)
        if on_progress is not None:
            on_progress(i + 1, len(annotations))
    _check_folder(file, png_dir, found)
    num_segments = sum(len(annotation.segments_info) for annotation in file.annotations)
    checked = {"panoptic files": 1, "panoptic maps": num_maps, "panoptic segments": num_segments}
    return found.findings(str(json_file)), checked


def check_panoptic_records(file: PanopticFile, found: Tally) -> tuple[dict[int, Image], list[MapAnnotation]]:
    """Tell what is wrong with the records by themselves, without any map.

    Returns:
        The images with a sound id and size, by id, and the annotations that have a map and such an image of their own.
    """
    images = _images(file.images, found)
    categories = _categories(file.categories, found)
    annotations = _annotations(file, images, found)
    for annotation in annotations:
        _check_segments(annotation, categories, found)
    return images, annotations


def _images(records: list[Image], found: Tally) -> dict[int, Image]:
    """Return the images with a sound id and size."""
    images: dict[int, Image] = {}
    for i, image in enumerate(records):
        name = f"$.images[{i}]"
        sizes_are_sound = all(is_whole(size) and size >= 1 for size in (image.height, image.width))
        if not is_whole(image.id):
            found.add("panoptic_field_wrong", f"{name}.id is {_shown(image.id)}")
        elif not sizes_are_sound:
            size = f"{_shown(image.width)}x{_shown(image.height)}"
            found.add("panoptic_field_wrong", f"{name} (id {image.id}): its size is {size} pixels")
        if not _is_name(image.file_name):
            found.add("panoptic_field_wrong", f"{name}.file_name is {_shown(image.file_name)}")
        if is_whole(image.id):
            if int(image.id) in images:
                found.add("panoptic_image_twice", f"{name}: image {image.id}")
            elif sizes_are_sound:
                images[int(image.id)] = image
    return images


def _categories(records: list[Category], found: Tally) -> set[int]:
    """Return the ids."""
    ids: set[int] = set()
    colours: dict[str, str] = {}
    for i, category in enumerate(records):
        name = f"category {_shown(category.id)} ({category.name})"
        if not is_whole(category.id):
            found.add("panoptic_field_wrong", f"$.categories[{i}].id is {_shown(category.id)}")
        elif int(category.id) in ids:
            found.add("panoptic_category_twice", name)
        else:
            ids.add(int(category.id))
        if not isinstance(category.name, str):
            found.add("panoptic_field_wrong", f"$.categories[{i}].name is {_shown(category.name)}")
        if not _is_flag(category.isthing):
            found.add("panoptic_isthing_wrong", f"{name}: isthing is {_shown(category.isthing)}")
        if category.color is not None:
            other = colours.setdefault(str(category.color), name)
            if other != name:
                found.add("panoptic_color_twice", f"{name} and {other}")
    return ids


def _annotations(file: PanopticFile, images: dict[int, Image], found: Tally) -> list[MapAnnotation]:
    """Return the annotations that have a map and an image of their own."""
    sound = []
    known = {int(image.id) for image in file.images if is_whole(image.id)}
    image_ids: set[int] = set()
    map_names: set[str] = set()
    for i, annotation in enumerate(file.annotations):
        name = f"$.annotations[{i}]"
        has_id, has_name = is_whole(annotation.image_id), _is_name(annotation.file_name)
        if not has_name:
            found.add("panoptic_field_wrong", f"{name}.file_name is {_shown(annotation.file_name)}")
        if not has_id:
            found.add("panoptic_field_wrong", f"{name}.image_id is {_shown(annotation.image_id)}")
        elif int(annotation.image_id) not in known:
            found.add("panoptic_image_unknown", f"{name}: image_id {annotation.image_id}")
        if (has_id and int(annotation.image_id) in image_ids) or (has_name and annotation.file_name in map_names):
            found.add("panoptic_map_twice", f"{name}: image {annotation.image_id} ({annotation.file_name})")
        elif has_id and has_name and int(annotation.image_id) in images:
            sound.append(annotation)
        if has_id:
            image_ids.add(int(annotation.image_id))
        if has_name:
            map_names.add(annotation.file_name)
    for image in file.images:
        if is_whole(image.id) and int(image.id) not in image_ids:
            found.add("panoptic_image_unannotated", f"image {image.id} ({image.file_name})")
    return sound


def _check_image_files(images: Iterable[Image], images_dir: Path, found: Tally) -> None:
    for image in images:
        if _is_name(image.file_name) and not is_there(images_dir / image.file_name):
            found.add("panoptic_image_missing", f"image {image.id} ({image.file_name})")


def _check_segments(annotation: MapAnnotation, categories: set[int], found: Tally) -> None:
    """Tell what is wrong with the segments of an annotation by themselves."""
    seen: set[int] = set()
    for segment in annotation.segments_info:
        name = _segment(segment, annotation)
        if not is_whole(segment.id) or not 1 <= segment.id <= LARGEST_SEGMENT_ID:
            found.add("panoptic_segment_id", name)
        elif int(segment.id) in seen:
            found.add("panoptic_segment_twice", name)
        else:
            seen.add(int(segment.id))
        if not is_whole(segment.category_id) or int(segment.category_id) not in categories:
            found.add("panoptic_category_unknown", f"{name}: category_id {_shown(segment.category_id)}")
        if not _is_flag(segment.iscrowd):
            found.add("panoptic_iscrowd_wrong", f"{name}: iscrowd is {_shown(segment.iscrowd)}")


def _check_map(annotation: MapAnnotation, image: Image, png_dir: Path, found: Tally) -> int:
    """Compare an annotation with its map; return the number of maps read."""
    name = f"image {image.id} ({annotation.file_name})"
    if _is_name(image.file_name) and Path(image.file_name).stem != Path(annotation.file_name).stem:
        found.add("panoptic_name_differs", f"{name}: the image is {image.file_name}")
    path = png_dir / annotation.file_name
    if not is_there(path):
        if png_dir.is_dir():  # or else the folder itself is told
            found.add("panoptic_map_missing", name)
        return 0
    try:
        colours = read_map(path)
    except ImageError as error:
        reason = error.problems[0].what.removeprefix("the image cannot be used: ")
        found.add("panoptic_map_damaged", f"{name}: {reason}")
        return 0
    except UnfitMapError as error:
        found.add("panoptic_map_mode", f"{name}: {error}")
        return 0
    height, width = colours.shape[:2]
    if (height, width) != (image.height, image.width):
        found.add("panoptic_map_size", f"{name}: {width}x{height} pixels, in the file {image.width}x{image.height}")
    _compare(annotation, colours, name, found)
    return 1


def _compare(annotation: MapAnnotation, colours: UInt8[np.ndarray, "H W 3"], name: str, found: Tally) -> None:
    measured = measure_map(colours)
    listed = {int(segment.id) for segment in annotation.segments_info if is_whole(segment.id)}
    in_map: set[int] = set(measured.ids.tolist())
    if listed and not listed & in_map and listed & set(measure_map(colours[:, :, ::-1]).ids.tolist()):
        found.add("panoptic_channels_swapped", name)
        return
    for segment_id in sorted(in_map - listed):
        row = measured.row_of(segment_id)
        assert row is not None
        found.add("panoptic_segment_unlisted", f"segment {segment_id} of {name}: {measured.areas[row]} pixels")
    for segment in annotation.segments_info:
        if is_whole(segment.id) and 1 <= segment.id <= LARGEST_SEGMENT_ID:
            _compare_segment(segment, _segment(segment, annotation), measured, found)


def _compare_segment(segment: Segment, name: str, measured: MapSegments, found: Tally) -> None:
    row = measured.row_of(int(segment.id))
    if row is None:
        found.add("panoptic_segment_absent", name)
        return
    area, bbox = int(measured.areas[row]), measured.boxes_xywh[row].tolist()
    if not _are_near([segment.area], [area]):
        found.add("panoptic_area_differs", f"{name}: area is {_shown(segment.area)}, its pixels are {area}")
    if not isinstance(segment.bbox, list) or not _are_near(segment.bbox, bbox):
        found.add("panoptic_bbox_differs", f"{name}: bbox is {_shown(segment.bbox)}, its pixels have {bbox}")


def _check_folder(file: PanopticFile, png_dir: Path, found: Tally) -> None:
    if not png_dir.is_dir():
        found.add("panoptic_folder_missing", str(png_dir))
        return
    named = {annotation.file_name for annotation in file.annotations if _is_name(annotation.file_name)}
    for path in sorted(png_dir.iterdir()):
        if path.suffix.lower() == ".png" and path.name not in named:
            found.add("panoptic_map_unnamed", path.name)


def _segment(segment: Segment, annotation: MapAnnotation) -> str:
    return f"segment {_shown(segment.id)} of image {annotation.image_id} ({annotation.file_name})"


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _is_flag(value: Any) -> bool:
    return value in (0, 1) and isinstance(value, int | float)


def _are_near(values: list[Any], wanted: list[int]) -> bool:
    """Return whether numbers are the wanted ones, rounding aside."""
    return len(values) == len(wanted) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value - want) <= 0.5
        for value, want in zip(values, wanted, strict=True)
    )


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:80]
