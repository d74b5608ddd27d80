"""Samples to one batch, in a form that crosses from a worker to the main process cheaply.

Shape letters: `B` images, `H W` padded height and width, `N` objects of the whole batch, `M` bytes of masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

from detronome.data.buckets import Bucket, bucket_of
from detronome.types import Batch, EffectiveBatch, Target

__all__ = ["PackedBatch", "PackedTargets", "Sample", "collate", "group_by_shape", "pack", "shared_zeros"]

Sample = tuple[UInt8[Tensor, "3 h w"], Target]
"""An augmented image and its target."""


@dataclass(frozen=True, kw_only=True)
class PackedTargets:
    """The targets of a batch in two arrays, and a bit for each pixel of each mask.

    Every tensor that leaves a worker costs a shared-memory file; with two per image, a few prefetched batches reach
    the limit of open files. Arrays travel through the pipe instead.
    """

    boxes_cxcywh: Float32[np.ndarray, "N 4"]
    labels: Int64[np.ndarray, " N"]
    num_objects: tuple[int, ...]
    image_ids: tuple[int, ...]
    sizes_hw: tuple[tuple[int, int], ...]
    orig_sizes_hw: tuple[tuple[int, int], ...]
    mask_bits: tuple[UInt8[np.ndarray, " M"] | None, ...]
    """The masks of each image, eight pixels a byte; None where there are none."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def of(cls, targets: Sequence[Target]) -> PackedTargets:
        """Join the targets of at least one image."""
        return cls(
            boxes_cxcywh=torch.cat([target.boxes_cxcywh for target in targets]).numpy(),
            labels=torch.cat([target.labels for target in targets]).numpy(),
            num_objects=tuple(target.num_objects for target in targets),
            image_ids=tuple(target.image_id for target in targets),
            sizes_hw=tuple(target.size_hw for target in targets),
            orig_sizes_hw=tuple(target.orig_size_hw for target in targets),
            mask_bits=tuple(None if t.masks is None else np.packbits(t.masks.numpy()) for t in targets),
        )

    def unpack(self) -> tuple[Target, ...]:
        """Return the targets themselves."""
        boxes = torch.split(torch.from_numpy(self.boxes_cxcywh), list(self.num_objects))
        labels = torch.split(torch.from_numpy(self.labels), list(self.num_objects))
        return tuple(
            Target(
                boxes_cxcywh=boxes[b],
                labels=labels[b],
                image_id=self.image_ids[b],
                size_hw=self.sizes_hw[b],
                orig_size_hw=self.orig_sizes_hw[b],
                masks=self._masks(b),
            )
            for b in range(len(self))
        )

    def _masks(self, b: int) -> Bool[Tensor, "T h w"] | None:
        bits = self.mask_bits[b]
        if bits is None:
            return None
        shape = (self.num_objects[b], *self.sizes_hw[b])
        return torch.from_numpy(np.unpackbits(bits, count=math.prod(shape)).view(np.bool_)).view(shape)


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """A batch as it leaves a worker."""

    images: UInt8[Tensor, "B 3 H W"]
    padding_mask: Bool[Tensor, "B H W"]
    targets: PackedTargets

    def __len__(self) -> int:
        return len(self.targets)

    def unpack(self) -> Batch:
        """Return the batch itself."""
        return Batch(images=self.images, padding_mask=self.padding_mask, targets=self.targets.unpack())


def pack(samples: Sequence[Sample], buckets: tuple[Bucket, ...] = ()) -> tuple[PackedBatch, ...]:
    """Pad images right and bottom with 0 and join their targets: one batch for each padded shape.

    Args:
        samples: images with their targets.
        buckets: the shapes to pad to; without any, all images are padded to the largest height and width among them.
    """
    groups = group_by_shape([target.size_hw for _, target in samples], buckets)
    return tuple(_pack_group([samples[n] for n in members], shape) for shape, members in groups)


def collate(samples: Sequence[Sample], buckets: tuple[Bucket, ...] = ()) -> EffectiveBatch:
    """Return a batch of the samples; see `pack` for the padding."""
    return EffectiveBatch(tuple(part.unpack() for part in pack(samples, buckets)))


def group_by_shape(sizes_hw: Sequence[tuple[int, int]], buckets: tuple[Bucket, ...]) -> list[tuple[Bucket, list[int]]]:
    """Return (padded shape, positions of the images that get it) by ascending shape; see `pack`."""
    if not sizes_hw:
        return []
    if not buckets:
        return [((max(h for h, _ in sizes_hw), max(w for _, w in sizes_hw)), list(range(len(sizes_hw))))]
    groups: dict[Bucket, list[int]] = {}
    for n, size_hw in enumerate(sizes_hw):
        groups.setdefault(bucket_of(size_hw, buckets), []).append(n)
    return sorted(groups.items())


def _pack_group(samples: Sequence[Sample], shape_hw: Bucket) -> PackedBatch:
    images = shared_zeros((len(samples), *shape_hw, 3)).permute(0, 3, 1, 2)
    padding_mask = torch.ones((len(samples), *shape_hw), dtype=torch.bool)
    for b, (image, target) in enumerate(samples):
        h, w = target.size_hw
        images[b, :, :h, :w] = image
        padding_mask[b, :h, :w] = False
    return PackedBatch(
        images=images, padding_mask=padding_mask, targets=PackedTargets.of([target for _, target in samples])
    )


def shared_zeros(shape: tuple[int, ...]) -> UInt8[Tensor, ...]:
    """Return zeroed bytes: in a worker, in the shared memory through which they leave it, saving a copy of them all."""
    if get_worker_info() is None:
        return torch.from_numpy(np.zeros(shape, np.uint8))  # the system zeroes what is touched, torch would all of it
    # As in torch's own collate functions; the system hands out such memory zeroed.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
