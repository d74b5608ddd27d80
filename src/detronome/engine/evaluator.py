"""Evaluating a model: batches in, metrics out."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from detronome.evaluation.detection import DetectionEvaluator, DetectionMetrics
from detronome.models.detector import Detector
from detronome.models.postprocess import postprocess
from detronome.runtime.precision import Precision, autocast
from detronome.types import Batch, Categories, Detections, EffectiveBatch

__all__ = ["detect_batch", "evaluate"]


@torch.inference_mode()
def detect_batch(
    model: Detector,
    batch: Batch,
    *,
    categories: Categories,
    max_detections: int,
    precision: Precision,
    device: torch.device,
) -> list[Detections]:
    """Return the detections of one batch in pixels of the original images. The model must be in eval mode."""
    batch = batch.to(device)
    with autocast(precision, device):
        output = model(batch.images, batch.padding_mask)
    return postprocess(
        output,
        [target.orig_size_hw for target in batch.targets],
        batch.image_ids,
        categories,
        activation=model.activation,
        max_detections=max_detections,
    )


def evaluate(
    model: Detector,
    batches: Iterable[EffectiveBatch],
    evaluator: DetectionEvaluator,
    *,
    categories: Categories,
    max_detections: int,
    precision: Precision,
    device: torch.device,
) -> DetectionMetrics:
    """Return the metrics of a model on a split. The model's mode is restored afterwards."""
    was_training = model.training
    model.eval()
    evaluator.reset()
    try:
        for batch in batches:
            for part in batch.parts:
                evaluator.add(
                    detect_batch(
                        model,
                        part,
                        categories=categories,
                        max_detections=max_detections,
                        precision=precision,
                        device=device,
                    )
                )
    finally:
        model.train(was_training)
    return evaluator.compute(max_detections=max_detections)
