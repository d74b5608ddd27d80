"""Pictures of predictions beside the truth, for the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from detronome.data.split import DataSplit
from detronome.data.store.decode import decode_image
from detronome.errors import DataError
from detronome.report.pictures import draw_boxes, save_picture, side_by_side
from detronome.runtime.files import write_atomic
from detronome.types import Categories, Predictor

__all__ = ["write_gallery"]


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
    source = split.source
    truth_names = split.index.categories.by_id
    entries: list[dict[str, object]] = []
    files: list[Path] = []
    for i in np.unique(np.linspace(0, len(split.index) - 1, num_pictures).astype(int)):
        record = split.index.image(int(i))
        try:
            image = decode_image(source.read(int(i)), source.where(int(i)), record.size_hw)
        except DataError:
            continue  # Evaluation names unreadable images; a missing picture must not end a finished run.
        boxes_xywh, labels, _, iscrowd = split.index.annotations(int(i))
        boxes_xyxy = np.concatenate((boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]), axis=1)[~iscrowd]
        ids = np.asarray(split.index.categories.ids)[labels][~iscrowd]
        (detections,) = predictor.predict([image])
        detections = detections.above(score)
        picture = side_by_side(
            draw_boxes(image, boxes_xyxy, ids, names=truth_names),
            draw_boxes(
                image, detections.boxes_xyxy, detections.labels, names=categories.by_id, scores=detections.scores
            ),
        )
        file = folder / f"{len(files):02d}-{Path(record.file_name).stem}.jpg"
        save_picture(picture, file)
        files.append(file)
        entries.append({"file": file.name, "image_id": record.image_id, "caption": record.file_name})
    write_atomic(folder / "index.json", json.dumps(entries, indent=1) + "\n")
    return files
