"""The predictor: images of any size in, detections in their pixels out, from any form of a detector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from detronome.config.schema import RunConfig
from detronome.data.augment.cpu import apply_to_image
from detronome.data.augment.params import AugmentPolicy, evaluation_params
from detronome.data.buckets import Bucket, bucket_of
from detronome.data.build import augment_policy, padded_shapes
from detronome.data.collate import Sample, collate
from detronome.engine.evaluator import detect_batch, detect_in_pieces
from detronome.engine.micro_batches import MicroBatchSizes
from detronome.models.detector import Detector
from detronome.runtime.precision import Precision, resolve_precision
from detronome.types import Batch, Categories, Detections, Target

__all__ = ["Predictor", "build_predictor"]

_BATCH_SIZE = 4
"""Images at once where nothing else is said: most of what batches gain, at a quarter of the memory of large ones."""


class Predictor:
    """Finds objects with a detector, eager, optimised or exported.

    Only images of one padded shape share a batch, and that shape follows from each image's own size: what is found in
    an image does not depend on the other images, but for rounding. Only the images of one batch are in memory a second
    time.

    Args:
        model: a trained detector; put into eval mode.
        categories: what its labels mean.
        policy: resizes images as the model's evaluation did.
        device: where to compute.
        precision: of the forward pass.
        max_detections: the most detections of one image.
        buckets: the shapes that images are padded to; without any, an image is not padded.
        panoptic_score: probability above which a query takes part in the panoptic map, where the model makes masks.
        batch_size: the most images that go through the model at once; fewer where memory has no room for them.
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
        batch_size: int = _BATCH_SIZE,
    ) -> None:
        self.model = model.to(device).eval()
        self.categories = categories
        self.policy = policy
        self.device = device
        self.precision: Precision = precision
        self.max_detections = max_detections
        self.buckets = buckets
        self.panoptic_score = panoptic_score
        self.batch_size = batch_size
        self._sizes = MicroBatchSizes(batch_size, purpose="evaluation")

    def predict(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[Detections]:
        """Return one `Detections` per RGB image, in order.

        Raises:
            TrainingError: memory has no room for a single image.
        """
        found: dict[int, Detections] = {}
        for members in self._batches([(image.shape[0], image.shape[1]) for image in images]):
            found.update(zip(members, self._detect([images[n] for n in members]), strict=True))
        return [found[n] for n in range(len(images))]

    def _batches(self, sizes_hw: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
        """Cut images into batches of one padded shape each; give their positions."""
        groups: dict[Bucket, list[int]] = {}
        for n, size_hw in enumerate(sizes_hw):
            final_hw = evaluation_params(self.policy, size_hw).final_hw
            groups.setdefault(bucket_of(final_hw, self.buckets) if self.buckets else final_hw, []).append(n)
        for members in groups.values():
            for start in range(0, len(members), self.batch_size):
                yield members[start : start + self.batch_size]

    def _detect(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[Detections]:
        """Return the detections in images of one padded shape."""
        return detect_in_pieces(
            collate([self._sample(image) for image in images], self.buckets),
            self._detect_batch,
            self._sizes,
            device=self.device,
        )

    def _sample(self, image: UInt8[np.ndarray, "H W 3"]) -> Sample:
        orig_size_hw = (image.shape[0], image.shape[1])
        pixels = apply_to_image(image, evaluation_params(self.policy, orig_size_hw))
        target = Target(
            boxes_cxcywh=torch.empty(0, 4),
            labels=torch.empty(0, dtype=torch.int64),
            image_id=-1,
            size_hw=(pixels.shape[1], pixels.shape[2]),
            orig_size_hw=orig_size_hw,
        )
        return pixels, target

    def _detect_batch(self, batch: Batch) -> list[Detections]:
        return detect_batch(
            self.model,
            batch,
            categories=self.categories,
            max_detections=self.max_detections,
            precision=self.precision,
            device=self.device,
            panoptic_score=self.panoptic_score,
        )


def build_predictor(
    config: RunConfig,
    model: Detector,
    categories: Categories,
    device: torch.device,
    *,
    batch_size: int = _BATCH_SIZE,
) -> Predictor:
    """Return the predictor that sees images as the run's evaluation did.

    Args:
        config: of the run, resolved.
        model: its detector, in any form.
        categories: what its labels mean.
        device: where to compute.
        batch_size: the most images at once.
    """
    precision, _ = resolve_precision(config.train.precision, device)
    return Predictor(
        model,
        categories=categories,
        policy=augment_policy(config.augment),
        device=device,
        precision=precision,
        max_detections=config.eval.max_detections,
        buckets=padded_shapes(config),
        panoptic_score=config.eval.panoptic_score,
        batch_size=batch_size,
    )
