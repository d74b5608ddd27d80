"""Pictures of predictions beside the truth, for the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detronome.data.split import DataSplit
from detronome.data.store.decode import decode_image
from detronome.errors import DataError
from detronome.report.pictures import draw_boxes, draw_segments, save_picture, side_by_side
from detronome.runtime.files import write_atomic
from detronome.types import Categories, Detections, PanopticPrediction, PanopticTruth, Predictor, Segment

__all__ = ["write_gallery", "write_worst"]

_WORST = "worst_"
_MAX_STEM = 48
"""Characters of an image's name in that of its picture: file systems allow 255 bytes, temporary names included."""


def write_gallery(
    folder: Path,
    predictor: Predictor,
    split: DataSplit,
    categories: Categories,
    *,
    num_pictures: int = 8,
    score: float = 0.5,
) -> list[Path]:
    """Draw images spread evenly over a split, truth beside prediction, and write `index.json` beside them.

    Args:
        folder: where the pictures go.
        predictor: finds the objects.
        split: gives images and truth.
        categories: what the predictor's labels mean.
        num_pictures: how many images.
        score: predictions below are not drawn.
    """
    entries: list[dict[str, object]] = []
    files: list[Path] = []
    for i in np.unique(np.linspace(0, len(split.index) - 1, num_pictures).astype(int)):
        record = split.index.image(int(i))
        picture = _compared(split, int(i), lambda image: predictor.predict([image])[0].above(score), categories.by_id)
        if picture is None:
            continue
        file = folder / f"{len(files):02d}-{_stem(record.file_name)}.jpg"
        save_picture(picture, file)
        files.append(file)
        entries.append({"file": file.name, "image_id": record.image_id, "caption": record.file_name})
    write_atomic(folder / "index.json", json.dumps(entries, indent=1) + "\n")
    return files


def write_worst(
    folder: Path,
    image_ids: Sequence[int],
    split: DataSplit,
    detections_of: Callable[[int], Detections],
    *,
    score: float,
) -> dict[int, Path]:
    """Draw certain images, truth beside what was found in them, in place of those of an earlier call.

    Args:
        folder: where the pictures go: `worst_00-<name>.jpg`, ... in the order of the images.
        image_ids: which images.
        split: gives images and truth.
        detections_of: what was found in an image, given its id.
        score: detections below are not drawn.

    Returns:
        The files by image id; an image that cannot be read has none.
    """
    for old in folder.glob(f"{_WORST}*.jpg"):
        old.unlink()
    places = {split.index.image(i).image_id: i for i in range(len(split.index))}
    files: dict[int, Path] = {}
    for number, image_id in enumerate(image_ids):
        place, found = places[image_id], detections_of(image_id).above(score)
        picture = _compared(split, place, lambda _, found=found: found, split.index.categories.by_id)  # type: ignore[misc]
        if picture is not None:
            name = _stem(split.index.image(place).file_name)
            files[image_id] = folder / f"{_WORST}{number:02d}-{name}.jpg"
            save_picture(picture, files[image_id])
    return files


def _stem(file_name: str) -> str:
    return Path(file_name).stem[:_MAX_STEM]


def _compared(
    split: DataSplit, i: int, find: Callable[[NDArray[np.uint8]], Detections], names: dict[int, str]
) -> NDArray[np.uint8] | None:
    """Return the truth of an image beside what was found in it, or None where the image cannot be read."""
    source = split.source
    try:
        image = decode_image(source.read(i), source.where(i), split.index.image(i).size_hw)
    except DataError:
        return None  # Evaluation names unreadable images; a missing picture must not end a finished run.
    found = find(image)
    if split.maps is not None and found.panoptic is not None:
        return _compared_maps(split.maps.truth(i), found.panoptic, image, split.index.categories, names)
    boxes_xywh, labels, _, iscrowd = split.index.annotations(i)
    boxes_xyxy = np.concatenate((boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]), axis=1)[~iscrowd]
    ids = np.asarray(split.index.categories.ids)[labels][~iscrowd]
    return side_by_side(
        draw_boxes(image, boxes_xyxy, ids, names=split.index.categories.by_id),
        draw_boxes(image, found.boxes_xyxy, found.labels, names=names, scores=found.scores),
    )


def _compared_maps(
    truth: PanopticTruth,
    found: PanopticPrediction,
    image: NDArray[np.uint8],
    categories: Categories,
    names: dict[int, str],
) -> NDArray[np.uint8]:
    things = dict(zip(categories.ids, categories.is_thing or (True,) * len(categories), strict=True))
    rows = zip(truth.ids.tolist(), truth.category_ids.tolist(), truth.areas.tolist(), strict=True)
    segments = [Segment(id=n, category_id=c, is_thing=things[c], area=area) for n, c, area in rows]
    return side_by_side(
        draw_segments(image, truth.segment_ids, segments, names=categories.by_id, with_scores=False),
        draw_segments(image, found.segment_ids, found.segments, names=names),
    )
