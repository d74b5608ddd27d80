"""What padding does to a detector's predictions: the same images, each with more and more padding beside it.

A transformer that masks its padding should not care. Its backbone does: at the image's edge it sees the padding, and a
feature map's last column may be half image. Each image is predicted alone, padded to the right and at the bottom as a
larger neighbour in its batch would make it; what changes is counted against no padding, on confident detections (score
of 0.5 or more), each with the query whose box is nearest.

    python benches/measure_padding.py                     # a small DETR, trained here on scenes of digits for minutes
    python benches/measure_padding.py detr-r50 DATA       # published weights on a folder's validation split
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import detronome as dt
from detronome.data.augment.cpu import apply_to_image
from detronome.data.augment.params import evaluation_params
from detronome.data.build import augment_policy
from detronome.data.scenes import write_scenes
from detronome.data.split import open_split
from detronome.data.store.decode import read_image
from detronome.engine.evaluator import detect_batch
from detronome.evaluation.detection import DetectionEvaluator
from detronome.types import Batch, Target

SCORE = 0.5
SETTINGS: dict[str, Any] = {
    "model.backbone_weights": "none",
    "model.backbone_norm": "trainable",
    "model.frozen_stages": 0,
    "model.hidden_dim": 128,
    "model.num_heads": 4,
    "model.ffn_dim": 256,
    "model.num_encoder_layers": 2,
    "model.num_decoder_layers": 2,
    "model.num_queries": 20,
    "model.dropout": 0.0,
    "augment.sizes": [96, 112, 128],
    "augment.max_size": 128,
    "augment.crop": "none",
    "augment.horizontal_flip": 0.0,
    "augment.eval_size": 128,
    "augment.eval_max_size": 128,
    "data.buckets": ["128x128", "160x160"],
    "data.val_split": "train",
    "batch.global_batch_size": 8,
    "optim.lr": 3e-4,
    "optim.backbone_lr": 3e-4,
    "schedule.kind": "cosine",
    "schedule.warmup_steps": 20,
    "train.device": "cpu",
    "train.eval_epochs": 100,
}
"""DETR's recipe in small: sizes vary, so smaller images have learnt with padding beside them, as in the reference."""


@dataclass(frozen=True)
class Query:
    """What one query says of one image."""

    score: float
    label: int
    box_xyxy: np.ndarray


def main() -> None:
    """Measure, print a table and one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a run, or published weights; by default trained here")
    parser.add_argument("data", nargs="?", type=Path, help="data folder; its validation split is used")
    parser.add_argument("--images", type=int, default=100, help="the most that are looked at")
    parser.add_argument("--epochs", type=int, default=600, help="of the training here")
    parser.add_argument("--train-images", type=int, default=8)
    parser.add_argument("--paddings", type=int, nargs="+", default=[0, 1, 8, 16, 32, 64, 128], help="pixels")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            data, split = Path(folder) / "data", "train"
            write_scenes(data, num_train=options.train_images, num_val=8)
            run = dt.train(data, model="detr-r18", epochs=options.epochs, out=Path(folder) / "run", settings=SETTINGS)
            model = run.model
            print(f"trained here: AP {run.metrics['AP']:.3f} on its own training images")
        else:
            data, split, model = options.data, "val", dt.load(options.model)
        rows = measure(model, data, split, options.paddings, options.images)
    print(f"{'padding':>8} {'AP':>6} {'score moved':>12} {'95 %':>6} {'box moved, px':>14} {'95 %':>6} {'lost':>6}")
    for row in rows:
        print(
            f"{row['padding']:>8} {row['AP']:>6.3f} {row['score']:>12.4f} {row['score95']:>6.3f} "
            f"{row['box']:>14.3f} {row['box95']:>6.2f} {row['lost']:>6.1%}"
        )
    json.dump({"rows": rows}, sys.stdout)
    print()


def measure(model: dt.Model, data: Path, split: str, paddings: Sequence[int], most: int) -> list[dict[str, float]]:
    """Return, for each padding, AP and how far confident queries have moved from what they said without."""
    opened = open_split(data, split)
    policy = augment_policy(model.config.augment)
    files = [Path(opened.source.where(i)) for i in range(min(most, len(opened.index)))]
    rows: list[dict[str, float]] = []
    first: list[list[Query]] = []
    for padding in paddings:
        evaluator = DetectionEvaluator(opened.box_truth(), unknown_categories="drop")
        said = []
        for i, file in enumerate(files):
            image = read_image(file)
            params = evaluation_params(policy, (image.shape[0], image.shape[1]))
            pixels = apply_to_image(image, params)
            target = Target(
                boxes_cxcywh=torch.empty(0, 4),
                labels=torch.empty(0, dtype=torch.int64),
                image_id=opened.index.image(i).image_id,
                size_hw=(pixels.shape[1], pixels.shape[2]),
                orig_size_hw=(image.shape[0], image.shape[1]),
            )
            batch = padded(pixels, target, padding)
            detections = detect_batch(
                model.detector,
                batch,
                categories=model.categories,
                max_detections=model.config.eval.max_detections,
                precision="fp32",
                device=model.device,
            )
            evaluator.add(detections)
            said.append(queries(model, batch))
        first = first or said
        rows.append({"padding": padding, "AP": evaluator.compute().numbers["AP"], **moved(first, said)})
    return rows


def padded(pixels: torch.Tensor, target: Target, padding: int) -> Batch:
    """Return a batch of one image with padding at its right and bottom."""
    height, width = target.size_hw
    images = torch.zeros(1, 3, height + padding, width + padding, dtype=torch.uint8)
    images[0, :, :height, :width] = torch.as_tensor(pixels)
    mask = torch.ones(1, height + padding, width + padding, dtype=torch.bool)
    mask[0, :height, :width] = False
    return Batch(images=images, padding_mask=mask, targets=(target,))


@torch.no_grad()
def queries(model: dt.Model, batch: Batch) -> list[Query]:
    """Return what every query says, boxes in pixels of the resized image."""
    output = model.detector(batch.images.to(model.device), batch.padding_mask.to(model.device))
    logits = output.pred_logits[0].float().cpu()
    is_softmax = model.detector.activation == "softmax"
    scores = logits.softmax(-1)[:, :-1] if is_softmax else logits.sigmoid()
    best, labels = scores.max(-1)
    height, width = batch.targets[0].size_hw
    centre, size = output.pred_boxes[0].float().cpu().split(2, dim=-1)
    corners = torch.cat((centre - size / 2, centre + size / 2), dim=-1) * torch.tensor([width, height, width, height])
    return [
        Query(float(score), int(label), box.numpy()) for score, label, box in zip(best, labels, corners, strict=True)
    ]


def moved(first: Sequence[Sequence[Query]], now: Sequence[Sequence[Query]]) -> dict[str, float]:
    """Return how far the queries that were confident have moved: mean, 95th percentile, and the part that is no longer
    confident of the same class. Each is compared with the query whose box is nearest now, as queries may be chosen from
    the image."""
    scores, boxes, lost = [], [], []
    for before, after in zip(first, now, strict=True):
        after_boxes = np.stack([query.box_xyxy for query in after])
        for query in before:
            if query.score < SCORE:
                continue
            distances = np.abs(after_boxes - query.box_xyxy).max(-1)
            nearest = after[int(distances.argmin())]
            scores.append(abs(nearest.score - query.score))
            boxes.append(float(distances.min()))
            lost.append(nearest.score < SCORE or nearest.label != query.label)
    if not scores:
        return {"score": 0.0, "score95": 0.0, "box": 0.0, "box95": 0.0, "lost": 0.0}
    return {
        "score": float(np.mean(scores)),
        "score95": float(np.percentile(scores, 95)),
        "box": float(np.mean(boxes)),
        "box95": float(np.percentile(boxes, 95)),
        "lost": float(np.mean(lost)),
    }


if __name__ == "__main__":
    main()
