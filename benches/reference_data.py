"""The reference's way from a JPEG to a batch, re-created from its published behaviour (facebookresearch/detr): Pillow
decodes and resizes, torchvision's functions make floats and normalise, each batch is padded after that.

The random numbers are ours, so that both ways do the same to each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from detronome.data.augment.params import AugmentParams
from detronome.models.layers.image_normalizer import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["reference_batch", "reference_sample", "reference_transform"]


def reference_sample(path: Path, annotations: Any, params: AugmentParams) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the normalised image `[3, h, w]` and its target."""
    image = Image.open(path).convert("RGB")
    return reference_transform(image, _prepare(image, *annotations), params)


def reference_transform(
    image: Image.Image, target: dict[str, Tensor], params: AugmentParams
) -> tuple[Tensor, dict[str, Tensor]]:
    """Flip, then resize, or resize, crop and resize again; then to floats, normalised."""
    if params.horizontal_flip:
        image = functional.hflip(image)
        boxes = target["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
        target = {**target, "boxes": boxes + torch.tensor([image.width, 0, image.width, 0])}
    if params.crop is not None:
        assert params.resize_hw is not None
        image, target = _resize(image, target, params.resize_hw)
        image, target = _crop(image, target, params.crop)
    image, target = _resize(image, target, params.final_hw)
    pixels = functional.normalize(functional.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)
    height, width = pixels.shape[-2:]
    x0, y0, x1, y1 = target["boxes"].unbind(-1)
    boxes = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)
    return pixels, {**target, "boxes": boxes / torch.tensor([width, height, width, height], dtype=torch.float32)}


def reference_batch(samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, Tensor]:
    """Return (images, mask) padded to the largest height and width."""
    images = [image for image, _ in samples]
    height, width = (max(sides) for sides in zip(*(image.shape[-2:] for image in images), strict=True))
    batch = torch.zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for image, room, padding in zip(images, batch, mask, strict=True):
        room[:, : image.shape[1], : image.shape[2]].copy_(image)
        padding[: image.shape[1], : image.shape[2]] = False
    return batch, mask


def _prepare(
    image: Image.Image,
    boxes_xywh: NDArray[np.float64],
    labels: NDArray[np.int32],
    area: NDArray[np.float64],
    iscrowd: NDArray[np.bool_],
) -> dict[str, Tensor]:
    boxes = torch.as_tensor(boxes_xywh.tolist(), dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=image.width)
    boxes[:, 1::2].clamp_(min=0, max=image.height)
    keep = (
        (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0]) & ~torch.as_tensor(iscrowd.tolist(), dtype=torch.bool)
    )
    return {
        "boxes": boxes[keep],
        "labels": torch.as_tensor(labels.tolist(), dtype=torch.int64)[keep],
        "area": torch.as_tensor(area.tolist())[keep],
    }


def _resize(
    image: Image.Image, target: dict[str, Tensor], to_hw: tuple[int, int]
) -> tuple[Image.Image, dict[str, Tensor]]:
    x, y = to_hw[1] / image.width, to_hw[0] / image.height
    return functional.resize(image, list(to_hw)), {
        **target,
        "boxes": target["boxes"] * torch.as_tensor([x, y, x, y]),
        "area": target["area"] * (x * y),
    }


def _crop(
    image: Image.Image, target: dict[str, Tensor], window: tuple[int, int, int, int]
) -> tuple[Image.Image, dict[str, Tensor]]:
    top, left, height, width = window
    size = torch.as_tensor([width, height], dtype=torch.float32)
    boxes = target["boxes"] - torch.as_tensor([left, top, left, top])
    corners = torch.min(boxes.reshape(-1, 2, 2), size).clamp(min=0)
    keep = (corners[:, 1] > corners[:, 0]).all(dim=1)
    area = (corners[:, 1] - corners[:, 0]).prod(dim=1)
    return functional.crop(image, top, left, height, width), {
        "boxes": corners.reshape(-1, 4)[keep],
        "labels": target["labels"][keep],
        "area": area[keep],
    }
