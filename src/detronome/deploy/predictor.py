"""The eager predictor: images of any size in, detections in their pixels out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from detronome.config.schema import RunConfig
from detronome.data.augment.cpu import apply_to_image
from detronome.data.augment.params import AugmentPolicy, evaluation_params
from detronome.data.buckets import Bucket
from detronome.data.build import augment_policy, padded_shapes
from detronome.data.collate import collate
from detronome.engine.evaluator import detect_batch
from detronome.models.detector import Detector
from detronome.runtime.precision import Precision, resolve_precision
from detronome.types import Categories, Detections, Target

__all__ = ["EagerPredictor", "build_predictor"]


class EagerPredictor:
    """Runs a model as PyTorch runs it, one image at a time, so that no image's result depends on another's padding.

    Args:
        model: a trained detector; put into eval mode.
        categories: what its labels mean.
        policy: resizes images as the model's evaluation did.
        device: where to compute.
        precision: of the forward pass.
        max_detections: the most detections of one image.
        panoptic_score: probability above which a query takes part in the panoptic map, where the model makes masks.
    """

    def __init__(
        self,
        model: Detector,
        *,
        categories: Categories,
        policy: AugmentPolicy,
        device: torch.device,
        precision: Precision = "fp32",
        max_detections: int = 100,
        buckets: tuple[Bucket, ...] = (),
        panoptic_score: float = 0.85,
    ) -> None:
        self.model = model.to(device).eval()
        self.categories = categories
        self.policy = policy
        self.device = device
        self.precision: Precision = precision
        self.max_detections = max_detections
        self.buckets = buckets
        self.panoptic_score = panoptic_score

    def predict(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[Detections]:
        """Return one `Detections` per RGB image, in order."""
        return [self._predict_one(image) for image in images]

    def _predict_one(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        height, width = image.shape[:2]
        pixels = apply_to_image(image, evaluation_params(self.policy, (height, width)))
        target = Target(
            boxes_cxcywh=torch.empty(0, 4),
            labels=torch.empty(0, dtype=torch.int64),
            image_id=-1,
            size_hw=(pixels.shape[1], pixels.shape[2]),
            orig_size_hw=(height, width),
        )
        (batch,) = collate([(pixels, target)], self.buckets).parts
        (detections,) = detect_batch(
            self.model,
            batch,
            categories=self.categories,
            max_detections=self.max_detections,
            precision=self.precision,
            device=self.device,
            panoptic_score=self.panoptic_score,
        )
        return detections


def build_predictor(config: RunConfig, model: Detector, categories: Categories, device: torch.device) -> EagerPredictor:
    """Return the predictor that sees images as the run's evaluation did."""
    precision, _ = resolve_precision(config.train.precision, device)
    return EagerPredictor(
        model,
        categories=categories,
        policy=augment_policy(config.augment),
        device=device,
        precision=precision,
        max_detections=config.eval.max_detections,
        buckets=padded_shapes(config),
        panoptic_score=config.eval.panoptic_score,
    )
