"""COCO evaluation of 5,000 images: ours against pycocotools, from detections in memory to the twelve numbers.

The set is synthetic, of COCO val2017's shape: 5,000 images, 80 categories, about 7 objects (1 % crowds) and 100
detections an image, of which most are shifted copies of the objects and the rest fall in a few wrong categories. Ours
gets one `Detections` an image, as a model gives them, and includes collecting them; pycocotools gets one ready (N, 7)
array. Reading the ground truth is outside: both keep it between epochs. All twelve numbers must agree to 1e-9 before
anything is reported. pycocotools takes about a minute a run.

    python benches/bench_evaluation.py --threads 1 --out benches/results
"""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO  # type: ignore[import-untyped, unused-ignore]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped, unused-ignore]

from detronome.evaluation.detection import DetectionEvaluator
from detronome.types import Detections
from harness import arguments, compare, report

NUM_CATEGORIES = 80
SIZE_HW = (480, 640)


def main() -> None:
    """Check that both give the same numbers, time them, report."""
    parser = arguments(__doc__, repeats=3, warmup=0)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    truth, records = synthetic_set(options.images, options.detections, options.seed)
    rows = np.concatenate([as_rows(record) for record in records])
    evaluator = DetectionEvaluator(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
    last: dict[str, list[float]] = {}

    def ours() -> None:
        evaluator.reset()
        for record in records:
            evaluator.add([record])
        last["ours"] = list(evaluator.compute().numbers.values())

    def theirs() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        last["theirs"] = list(evaluation.stats)

    samples = compare({"pycocotools": theirs, "detronome": ours}, repeats=options.repeats, warmup=options.warmup)
    difference = max(abs(a - b) for a, b in zip(last["ours"], last["theirs"], strict=True))
    assert difference < 1e-9, f"the twelve numbers differ by {difference}"
    print(f"AP {last['ours'][0]:.4f}; largest difference of the twelve numbers {difference:.1e}", file=sys.stderr)
    report(
        "evaluation",
        {f"{options.images} images, {len(rows)} detections": samples},
        baseline="pycocotools",
        settings={
            "images": options.images,
            "objects": len(truth["annotations"]),
            "detections": len(rows),
            "seed": options.seed,
            "AP": last["ours"][0],
            "largest_difference": difference,
        },
        out=options.out,
    )


def synthetic_set(num_images: int, num_detections: int, seed: int) -> tuple[dict[str, Any], list[Detections]]:
    """Return a ground truth and one `Detections` an image, highest score first."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    records: list[Detections] = []
    for image_id in range(1, num_images + 1):
        count = min(int(rng.geometric(1 / 8)), 60)
        boxes_xywh = random_boxes(rng, count)
        # A photo shows few kinds of things; so do the wrong detections on it.
        kinds = rng.choice(NUM_CATEGORIES, size=16, replace=False) + 1
        labels = kinds[rng.integers(3, size=count)]
        for box, label in zip(boxes_xywh.tolist(), labels.tolist(), strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label, "bbox": box}
            annotations.append(annotation | {"area": 0.6 * box[2] * box[3], "iscrowd": int(rng.random() < 0.01)})
        records.append(random_detections(rng, image_id, boxes_xywh, labels, kinds, num_detections))
    height, width = SIZE_HW
    return {
        "images": [{"id": i, "height": height, "width": width} for i in range(1, num_images + 1)],
        "categories": [{"id": k, "name": f"category {k}"} for k in range(1, NUM_CATEGORIES + 1)],
        "annotations": annotations,
    }, records


def random_detections(
    rng: np.random.Generator,
    image_id: int,
    boxes_xywh: NDArray[np.float64],
    labels: NDArray[np.int64],
    kinds: NDArray[np.int64],
    count: int,
) -> Detections:
    """Return detections of which up to 60 are shifted copies of the objects."""
    source = rng.integers(len(boxes_xywh), size=min(60, count))
    shift = rng.normal(0, 0.12, size=(len(source), 4)) * boxes_xywh[source][:, [2, 3, 2, 3]]
    found = boxes_xywh[source] + shift
    found[:, 2:] = np.maximum(found[:, 2:], 1.0)
    boxes = np.concatenate([found, random_boxes(rng, count - len(source))])
    quality = np.exp(-3 * np.abs(shift / boxes_xywh[source][:, [2, 3, 2, 3]]).sum(1))
    scores = np.concatenate([quality * rng.uniform(0.5, 1, len(source)), rng.beta(1, 6, count - len(source))])
    categories = np.concatenate([labels[source], rng.choice(kinds, count - len(source))])
    order = np.argsort(-scores, kind="stable")
    boxes_xyxy = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return Detections(
        boxes_xyxy=boxes_xyxy[order].astype(np.float32),
        scores=scores[order].astype(np.float32),
        labels=categories[order].astype(np.int64),
        image_id=image_id,
    )


def random_boxes(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Return boxes (left, top, width, height) within the image, with sides log-uniform from 8 to 400 pixels."""
    height, width = SIZE_HW
    sides = np.exp(rng.uniform(np.log(8), np.log(400), size=(count, 2)))
    corners = rng.uniform(size=(count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([corners, sides], axis=1)


def as_rows(record: Detections) -> NDArray[np.float64]:
    """Return (image id, left, top, width, height, score, category id) of each detection."""
    boxes = record.boxes_xyxy.astype(np.float64)
    sizes = boxes[:, 2:] - boxes[:, :2]
    ids = np.full(len(record), record.image_id)
    return np.column_stack([ids, boxes[:, :2], sizes, record.scores.astype(np.float64), record.labels])


if __name__ == "__main__":
    main()
