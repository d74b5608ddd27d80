"""Writes annotation files like COCO's: its size, its distributions and its clutter, and no image.

By default the file has COCO train2017's shape: 118,287 images and 860,001 annotations in a random order, 80 categories
with gaps in their ids, a third of the objects people, 41 % small, 34 % medium and 24 % large objects, polygons, 1 %
crowd regions as RLE, 1 % images without objects, addresses and licences; about 450 MB. Equal arguments give equal
files.

    python benches/synthetic_coco.py /tmp/instances_train.json --images 118287 --annotations 860001
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["CATEGORIES", "write_synthetic_coco"]

# fmt: off
_NAMES = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
]
# fmt: on
_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_IDS = [number for number in range(1, 91) if number not in _UNUSED_IDS]
CATEGORIES = dict(zip(_IDS, _NAMES, strict=True))
"""COCO's 80 categories, name by id."""

_SIZES_HW = ((480, 640), (427, 640), (640, 480), (426, 640), (640, 427), (425, 640), (640, 426), (424, 640), (375, 500))
_SIZE_SHARES = (0.28, 0.18, 0.12, 0.07, 0.05, 0.04, 0.03, 0.02, 0.01)
_CROWD_SHARE = 0.01
_EMPTY_SHARE = 0.01
_LICENCES = 8
_CHUNK = 20_000


@dataclass(frozen=True)
class _Boxes:
    """Boxes as whole pixels within their images, and the images' sizes."""

    left: NDArray[np.int64]
    top: NDArray[np.int64]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    image_hw: NDArray[np.int64]


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_001)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_synthetic_coco(options.path, options.images, options.annotations, options.seed)


def write_synthetic_coco(path: Path, num_images: int = 118_287, num_annotations: int = 860_001, seed: int = 0) -> None:
    """Write a valid COCO annotation file in one pass; memory grows by about 50 bytes an annotation."""
    rng = np.random.default_rng(seed)
    image_ids = rng.choice(5 * num_images, num_images, replace=False) + 1
    sizes_hw = _image_sizes(rng, num_images)
    image_of = _image_of_each_annotation(rng, num_images, num_annotations)
    with path.open("wb") as file:
        file.write(b'{"info":{"description":"synthetic, like COCO 2017","year":2017},"licenses":')
        licences = [{"url": f"http://licences.invalid/{n}", "id": n, "name": f"Licence {n}"} for n in range(_LICENCES)]
        file.write(msgspec.json.encode(licences))
        file.write(b',"images":[')
        _write_records(file, (_images(rng, image_ids[rows], sizes_hw[rows]) for rows in _slices(num_images)))
        file.write(b'],"annotations":[')
        _write_records(
            file,
            (
                _annotations(rng, rows.start + 1, image_ids[image_of[rows]], sizes_hw[image_of[rows]])
                for rows in _slices(num_annotations)
            ),
        )
        file.write(b'],"categories":')
        file.write(msgspec.json.encode([{"supercategory": "thing", "id": k, "name": n} for k, n in CATEGORIES.items()]))
        file.write(b"}")


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))


def _write_records(file: IO[bytes], chunks: Iterator[list[dict[str, Any]]]) -> None:
    for number, chunk in enumerate(chunks):
        file.write(b"," if number else b"")
        file.write(msgspec.json.encode(chunk)[1:-1])


def _image_sizes(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Return (height, width): mostly COCO's usual ones, the rest 640 pixels wide and of any height."""
    sizes_hw = np.column_stack([rng.integers(300, 641, count), np.full(count, 640)])
    is_usual = rng.random(count) < sum(_SIZE_SHARES)
    shares = np.array(_SIZE_SHARES) / sum(_SIZE_SHARES)
    sizes_hw[is_usual] = np.array(_SIZES_HW)[rng.choice(len(_SIZES_HW), int(is_usual.sum()), p=shares)]
    return sizes_hw


def _image_of_each_annotation(rng: np.random.Generator, num_images: int, num_annotations: int) -> NDArray[np.int64]:
    """Return the position of each annotation's image: few objects in most images, close to a hundred in some."""
    order = rng.permutation(num_images)
    filled = order[round(_EMPTY_SHARE * num_images) :][:num_annotations]
    crowding = rng.exponential(size=len(filled))
    counts = np.zeros(num_images, np.int64)
    if len(filled):
        counts[filled] = 1 + rng.multinomial(num_annotations - len(filled), crowding / crowding.sum())
    return rng.permutation(np.repeat(np.arange(num_images), counts))


def _images(
    rng: np.random.Generator, image_ids: NDArray[np.int64], sizes_hw: NDArray[np.int64]
) -> list[dict[str, Any]]:
    owners = rng.integers(10**9, 10**10, len(image_ids)).tolist()
    licences = rng.integers(_LICENCES, size=len(image_ids)).tolist()
    return [
        {
            "license": licence,
            "file_name": f"{image_id:012d}.jpg",
            "coco_url": f"http://images.cocodataset.invalid/train2017/{image_id:012d}.jpg",
            "height": height,
            "width": width,
            "date_captured": f"2013-11-{1 + owner % 28:02d} {owner % 24:02d}:{owner % 60:02d}:00",
            "flickr_url": f"http://farm{1 + owner % 9}.staticflickr.invalid/{owner % 10_000}/{owner}_{owner:x}_z.jpg",
            "id": image_id,
        }
        for image_id, (height, width), owner, licence in zip(
            image_ids.tolist(), sizes_hw.tolist(), owners, licences, strict=True
        )
    ]


def _annotations(
    rng: np.random.Generator, first_id: int, image_ids: NDArray[np.int64], sizes_hw: NDArray[np.int64]
) -> list[dict[str, Any]]:
    count = len(image_ids)
    boxes = _boxes(rng, sizes_hw)
    segments, boxes_xywh, area = _polygons(rng, boxes)
    categories = rng.choice(_IDS, count, p=_category_shares())
    iscrowd = rng.random(count) < _CROWD_SHARE
    for n in np.flatnonzero(iscrowd).tolist():
        left, top, width, height = (int(v[n]) for v in (boxes.left, boxes.top, boxes.width, boxes.height))
        segments[n] = _rle(left, top, width, height, boxes.image_hw[n].tolist())
        boxes_xywh[n] = [left, top, width, height]
        area[n] = width * height
    return [
        {
            "segmentation": segment,
            "area": pixels,
            "iscrowd": int(is_crowd),
            "image_id": image_id,
            "bbox": box,
            "category_id": category,
            "id": first_id + n,
        }
        for n, (segment, pixels, is_crowd, image_id, box, category) in enumerate(
            zip(segments, area, iscrowd.tolist(), image_ids.tolist(), boxes_xywh, categories.tolist(), strict=True)
        )
    ]


def _category_shares() -> NDArray[np.float64]:
    """Return how often each category occurs: people in every third place, the rarest once in some thousands."""
    others = np.geomspace(0.05, 0.0002, len(_IDS) - 1)
    order = np.random.default_rng(1).permutation(len(others))
    return np.concatenate([[0.3], 0.7 * others[order] / others.sum()])


def _boxes(rng: np.random.Generator, sizes_hw: NDArray[np.int64]) -> _Boxes:
    """Return boxes whose sizes follow COCO's shares of small, medium and large objects."""
    count = len(sizes_hw)
    side = np.exp(rng.normal(3.85, 1.18, count))
    stretch = np.exp(rng.normal(0, 0.3, count))
    height, width = (
        np.clip(np.rint(length), 3, limit).astype(np.int64)
        for length, limit in ((side / stretch, sizes_hw[:, 0]), (side * stretch, sizes_hw[:, 1]))
    )
    top, left = (
        np.rint(rng.beta(1.5, 1.5, count) * room).astype(np.int64)
        for room in (sizes_hw[:, 0] - height, sizes_hw[:, 1] - width)
    )
    return _Boxes(left, top, width, height, sizes_hw)


def _polygons(
    rng: np.random.Generator, boxes: _Boxes
) -> tuple[list[list[list[float]] | dict[str, Any]], list[list[float]], list[float]]:
    """Return the outlines, their boxes and their areas: ragged rings that all but fill the given boxes."""
    count = len(boxes.left)
    # Large objects have more corners, as when people click along an outline.
    mean = 4.5 + 2.5 * np.sqrt(np.sqrt(boxes.width * boxes.height))
    num_points = np.clip(rng.poisson(mean), 5, 200)
    starts = np.concatenate([[0], np.cumsum(num_points)[:-1]])
    ring = np.repeat(np.arange(count), num_points)
    place = np.arange(len(ring)) - starts[ring]
    angle = (place + rng.random(len(ring))) * (2 * np.pi / num_points[ring])
    radius = rng.uniform(0.75, 1, len(ring))
    points = np.empty((len(ring), 2))
    for axis, (wave, start_px, length_px) in enumerate(
        ((np.cos, boxes.left, boxes.width), (np.sin, boxes.top, boxes.height))
    ):
        inset = rng.uniform(0, 0.5, (2, count))
        first, length = start_px + inset[0], length_px - inset.sum(0)
        raw = radius * wave(angle)
        low, high = np.minimum.reduceat(raw, starts)[ring], np.maximum.reduceat(raw, starts)[ring]
        points[:, axis] = np.round(first[ring] + length[ring] * (raw - low) / (high - low), 2)
    following = np.arange(len(ring)) + 1
    following[starts + num_points - 1] = starts
    cross = points[:, 0] * points[following, 1] - points[following, 0] * points[:, 1]
    area = 0.5 * np.abs(np.add.reduceat(cross, starts))
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    flat, bounds = points.ravel().tolist(), (2 * np.append(starts, len(ring))).tolist()
    segments: list[list[list[float]] | dict[str, Any]] = [[flat[start:stop]] for start, stop in pairwise(bounds)]
    return segments, np.round(np.column_stack([low, high - low]), 2).tolist(), area.tolist()


def _rle(left: int, top: int, width: int, height: int, image_hw: list[int]) -> dict[str, Any]:
    """Return the run lengths, down the columns, of a filled rectangle."""
    rows, columns = image_hw
    runs = [left * rows + top, *[height, rows - height] * (width - 1), height]
    return {"counts": [*runs, rows * columns - sum(runs)], "size": image_hw}


if __name__ == "__main__":
    main()
