"""A batch whose images are decoded and no more: augmentation and padding happen where the model is.

For hosts with few processors beside a fast GPU. The parameters are drawn in the worker as ever, so the batch is the
same to within a level or two of 255.

Shape letters: `P` bytes of all images, `B` images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from detronome.data.augment.device import apply_on_device
from detronome.data.augment.params import AugmentParams
from detronome.data.buckets import Bucket
from detronome.data.collate import PackedTargets, group_by_shape, shared_zeros
from detronome.types import Batch, Target

__all__ = ["RawBatch", "RawSample", "pack_raw"]

RawSample = tuple[UInt8[np.ndarray, "H W 3"], AugmentParams, Target]
"""A decoded image, what is to be done to it, and the target as it will be after that."""


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """Images of one padded shape, one after another in one piece of memory."""

    pixels: UInt8[Tensor, " P"]
    pixels_hw: tuple[tuple[int, int], ...]
    """Height and width of each decoded image."""
    params: tuple[AugmentParams, ...]
    shape_hw: Bucket
    targets: PackedTargets

    def __len__(self) -> int:
        return len(self.targets)

    def pin_memory(self) -> RawBatch:
        """Return the batch in page-locked memory."""
        return replace(self, pixels=self.pixels.pin_memory())

    def augment(self, device: torch.device) -> Batch:
        """Return the batch on the device, augmented and padded there. No host sync."""
        pixels = self.pixels.to(device, non_blocking=True)
        images = torch.zeros((len(self), *self.shape_hw, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
        padding_mask = torch.ones((len(self), *self.shape_hw), dtype=torch.bool, device=device)
        sizes = [height * width * 3 for height, width in self.pixels_hw]
        for b, image in enumerate(torch.split(pixels, sizes)):
            height, width = self.params[b].final_hw
            images[b, :, :height, :width] = apply_on_device(image.view(*self.pixels_hw[b], 3), self.params[b])
            padding_mask[b, :height, :width] = False
        targets = tuple(target.to(device) for target in self.targets.unpack())
        return Batch(images=images, padding_mask=padding_mask, targets=targets)


def pack_raw(samples: Sequence[RawSample], buckets: tuple[Bucket, ...] = ()) -> tuple[RawBatch, ...]:
    """Join decoded images, one batch for each padded shape; see `collate.pack`."""
    groups = group_by_shape([target.size_hw for _, _, target in samples], buckets)
    return tuple(_pack_group([samples[n] for n in members], shape) for shape, members in groups)


def _pack_group(samples: Sequence[RawSample], shape_hw: Bucket) -> RawBatch:
    images = [image for image, _, _ in samples]
    pixels = shared_zeros((sum(image.size for image in images),))
    for room, image in zip(torch.split(pixels, [image.size for image in images]), images, strict=True):
        room.copy_(torch.from_numpy(image).view(-1))
    return RawBatch(
        pixels=pixels,
        pixels_hw=tuple((image.shape[0], image.shape[1]) for image in images),
        params=tuple(params for _, params, _ in samples),
        shape_hw=shape_hw,
        targets=PackedTargets.of([target for _, _, target in samples]),
    )
