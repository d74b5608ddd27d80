"""Images of a data folder as an exported network is given them: to calibrate it, and to compare it on.

Shape letters: `B` batch, `H W` padded image height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from detronome.config.convert import apply_overrides
from detronome.config.schema import RunConfig
from detronome.data.augment.cpu import apply_to_image
from detronome.data.augment.params import evaluation_params
from detronome.data.build import augment_policy, padded_shapes
from detronome.data.collate import collate
from detronome.data.split import DataSplit
from detronome.data.store.pixels import PixelReader
from detronome.deploy.export.self_check import Accuracy, Images
from detronome.deploy.predictor import build_predictor
from detronome.errors import DataError
from detronome.evaluation.detection import DetectionEvaluator
from detronome.models.detector import Detector
from detronome.runtime.clock import StageClock
from detronome.runtime.seeding import generator
from detronome.types import Categories, Target

__all__ = ["compare_accuracy", "readable_images", "real_batches"]

_AT_ONCE = 8


def readable_images(split: DataSplit, most: int) -> list[int]:
    """Return positions of images in a fixed random order, without those that cannot be read.

    Raises:
        DataError: none can.
    """
    pixels = PixelReader(split.index, split.source)
    found: list[int] = []
    for i in generator("export", 0).permutation(len(split.index)).tolist():
        if len(found) == most:
            break
        try:
            pixels.read(i, StageClock(), _size_hw(split, i))
        except DataError:
            continue
        found.append(i)
    if not found:
        raise DataError(
            "no image of the split can be read",
            where=str(split.files.annotation_file),
            fix="detronome data check DATA says what is wrong with each",
        )
    return found


def real_batches(config: RunConfig, split: DataSplit, images: Sequence[int]) -> Iterator[Images]:
    """Yield images one by one, resized and padded as in evaluation.

    Args:
        config: of the model.
        split: of a data folder.
        images: positions in its index.
    """
    pixels = PixelReader(split.index, split.source)
    policy, buckets = augment_policy(config.augment), padded_shapes(config)
    for i in images:
        orig_size_hw = _size_hw(split, i)
        image = apply_to_image(pixels.read(i, StageClock(), orig_size_hw), evaluation_params(policy, orig_size_hw))
        target = Target(
            boxes_cxcywh=torch.empty(0, 4),
            labels=torch.empty(0, dtype=torch.int64),
            image_id=i,
            size_hw=(image.shape[1], image.shape[2]),
            orig_size_hw=orig_size_hw,
        )
        (batch,) = collate([(image, target)], buckets).parts
        yield batch.images, batch.padding_mask


def compare_accuracy(
    original: Detector,
    exported: Detector,
    *,
    config: RunConfig,
    categories: Categories,
    split: DataSplit,
    images: Sequence[int],
    device: torch.device,
) -> Accuracy:
    """Return the AP of two models on the same images, computed in full precision.

    Args:
        original: on `device`.
        exported: runs on `device`.
        config: of both.
        categories: of both.
        split: of a data folder.
        images: positions in its index, at least one.
        device: where both compute.

    Raises:
        DataError: there is no object to find in these images.
    """
    config = apply_overrides(config, {"train.precision": "fp32"})
    pixels = PixelReader(split.index, split.source)
    ids = [split.index.image(i).image_id for i in images]
    numbers = []
    for detector in (original, exported):
        predictor = build_predictor(config, detector, categories, device)
        evaluator = DetectionEvaluator(split.box_truth(), image_ids=ids, unknown_categories="drop")
        for start in range(0, len(images), _AT_ONCE):
            stretch = images[start : start + _AT_ONCE]
            found = predictor.predict([pixels.read(i, StageClock(), _size_hw(split, i)) for i in stretch])
            evaluator.add([replace(one, image_id=ids[start + n]) for n, one in enumerate(found)])
        numbers.append(evaluator.compute(max_detections=config.eval.max_detections).numbers["AP"])
    if math.isnan(numbers[0]):
        raise DataError(
            f"AP cannot be compared: in {len(images)} images there is no object of the model's categories",
            where=str(split.files.annotation_file),
            fix="compare on more images with --images, or check the annotations: detronome data check DATA",
        )
    return Accuracy(num_images=len(images), split=split.files.name, original=numbers[0], exported=numbers[1])


def _size_hw(split: DataSplit, i: int) -> tuple[int, int]:
    height, width = split.index.sizes_hw[i].tolist()
    return height, width
