"""How many objects of a large image are found, with and without tiles: photos of a split, side by side as one image.

The photos lie apart on a pale ground, so that no object runs from one into the next. Photos one by one show
what the model can do. Recall and precision count objects of the right class with an IoU of 0.5 or more and a score of
0.5 or more. Tiles have the photos' size and other borders than they.

    python benches/measure_tiling.py RUN DATA --split test --columns 8 --rows 8 --threads 1 --out benches/results
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import detronome as dt
from detronome.data.split import open_split
from detronome.data.store.decode import read_image
from detronome.deploy.predictor import build_predictor
from detronome.deploy.tiling import TiledPredictor, View, merge_views, tile_windows
from detronome.evaluation.detection import DetectionEvaluator
from detronome.types import Detections, Predictor
from harness import arguments, new_document, publish

SCORE = 0.5
GAP = 48
"""Pixels between photos."""
OVERLAPS = (0.1, 0.2, 0.3)


def main() -> None:
    """Make the mosaic, predict each way, report."""
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("run", help="a trained detector")
    parser.add_argument("data", type=Path, help="data folder whose photos have one size")
    parser.add_argument("--split", default="test")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model = dt.load(options.run)
    mosaic, windows, truth = make_mosaic(options.data, options.split, options.columns, options.rows)
    size_hw = (mosaic.shape[0], mosaic.shape[1])
    tile_hw = (windows[0][3], windows[0][2])
    predictor = build_predictor(model.config, model.detector, model.categories, model.device)
    print(
        f"{size_hw[1]}x{size_hw[0]} pixels of {tile_hw[1]}x{tile_hw[0]} photos, {len(truth['annotations'])} objects\n"
    )
    print(f"{'':28}{'views':>7}{'AP':>8}{'recall':>9}{'precision':>11}{'seconds':>9}")
    document = new_document("tiling", {"split": options.split, "size_hw": size_hw, "tile_hw": tile_hw, "score": SCORE})
    predictor.predict([mosaic[: tile_hw[0], : tile_hw[1]]])  # the first call prepares

    def row(name: str, views: int, found: Detections, seconds: float) -> None:
        precision, recall = precision_and_recall(found, truth)
        evaluator = DetectionEvaluator(truth)
        evaluator.add([replace(found, image_id=1)])
        ap = evaluator.compute(max_detections=10_000).numbers["AP"]
        print(f"{name:28}{views:7}{ap:8.3f}{recall:9.3f}{precision:11.3f}{seconds:9.1f}")
        document["cases"][name] = {
            "views": views, "AP": ap, "recall": recall, "precision": precision, "wall_s": seconds,
        }  # fmt: skip

    start = time.perf_counter()
    photos = predictor.predict([mosaic[top:bottom, left:right] for left, top, right, bottom in windows])
    side_by_side = merge_views([View(*view) for view in zip(windows, photos, strict=True)], size_hw)
    row("photos, one by one", len(windows), side_by_side, time.perf_counter() - start)
    row("the whole image", 1, *timed(predictor, mosaic))
    for overlap in OVERLAPS:
        for with_whole in (True, False):
            tiled = TiledPredictor(predictor, tile_hw=tile_hw, overlap=overlap, with_whole=with_whole)
            views = len(tile_windows(size_hw, tile_hw, overlap)) + with_whole
            name = f"tiles, overlap {overlap}{', whole' if with_whole else ''}"
            row(name, views, *timed(tiled, mosaic))
    publish(document, options.out)


def make_mosaic(
    data: Path, split_name: str, columns: int, rows: int
) -> tuple[np.ndarray, list[tuple[int, int, int, int]], dict]:
    """Return the image, where each photo lies in it, and the annotations of the whole as COCO has them."""
    files = open_split(data, split_name).files
    record = json.loads(files.annotation_file.read_text())
    height, width = record["images"][0]["height"], record["images"][0]["width"]
    photos = [image for image in record["images"] if (image["height"], image["width"]) == (height, width)]
    photos = photos[: columns * rows]
    if len(photos) < columns * rows:
        sys.exit(f"{len(photos)} photos have {width}x{height} pixels, {columns * rows} are needed")
    pixels = [read_image(files.images_dir / photo["file_name"]) for photo in photos]
    mosaic = np.empty((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), np.uint8)
    mosaic[:] = (235, 235, 225)
    windows = []
    annotations = []
    for i, photo in enumerate(photos):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        windows.append((left, top, left + width, top + height))
        mosaic[top : top + height, left : left + width] = pixels[i]
        for annotation in record["annotations"]:
            if annotation["image_id"] == photo["id"]:
                x, y, w, h = annotation["bbox"]
                moved = {"id": len(annotations) + 1, "image_id": 1, "bbox": [x + left, y + top, w, h]}
                annotations.append({**annotation, **moved})
    whole = {"id": 1, "file_name": "mosaic", "height": mosaic.shape[0], "width": mosaic.shape[1]}
    return mosaic, windows, {"images": [whole], "annotations": annotations, "categories": record["categories"]}


def timed(predictor: Predictor, image: np.ndarray) -> tuple[Detections, float]:
    start = time.perf_counter()
    (found,) = predictor.predict([image])
    return found, time.perf_counter() - start


def precision_and_recall(found: Detections, truth: dict) -> tuple[float, float]:
    found = found.above(SCORE)
    boxes = np.array([annotation["bbox"] for annotation in truth["annotations"]], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([annotation["category_id"] for annotation in truth["annotations"]])
    is_free = np.ones(len(boxes), np.bool_)
    hits = 0
    for box, label in zip(found.boxes_xyxy.astype(np.float64), found.labels, strict=True):
        iou = np.where(is_free & (labels == label), overlaps(boxes, box), 0)
        if iou.max() >= 0.5:
            is_free[iou.argmax()] = False
            hits += 1
    return hits / max(1, len(found)), hits / len(boxes)


def overlaps(boxes: np.ndarray, box: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the IoU of each box with one box."""
    box = np.asarray(box)
    shared = (np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])).clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return shared / (areas - shared)


if __name__ == "__main__":
    main()
