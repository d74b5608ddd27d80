"""Samples to one batch, in a form that crosses from a worker to the main process cheaply.

Shape letters: `B` images, `H W` padded height and width, `N` objects of the whole batch.
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

from detronome.types import Batch, Target

__all__ = ["PackedBatch", "collate", "pack"]


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """A batch with all targets in two arrays.

    Every tensor that leaves a worker costs a shared-memory file; with two per image, a few prefetched batches reach
    the limit of open files. Arrays travel through the pipe instead.
    """

    images: UInt8[Tensor, "B 3 H W"]
    padding_mask: Bool[Tensor, "B H W"]
    boxes_cxcywh: Float32[np.ndarray, "N 4"]
    labels: Int64[np.ndarray, " N"]
    num_objects: tuple[int, ...]
    image_ids: tuple[int, ...]
    sizes_hw: tuple[tuple[int, int], ...]
    orig_sizes_hw: tuple[tuple[int, int], ...]

    def unpack(self) -> Batch:
        """Return the batch itself."""
        boxes = torch.split(torch.from_numpy(self.boxes_cxcywh), list(self.num_objects))
        labels = torch.split(torch.from_numpy(self.labels), list(self.num_objects))
        return Batch(
            images=self.images,
            padding_mask=self.padding_mask,
            targets=tuple(
                Target(
                    boxes_cxcywh=boxes[b],
                    labels=labels[b],
                    image_id=self.image_ids[b],
                    size_hw=self.sizes_hw[b],
                    orig_size_hw=self.orig_sizes_hw[b],
                )
                for b in range(len(self.image_ids))
            ),
        )

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; torch's loader calls this by name, in a thread of its own."""
        return self.unpack().pin_memory()


def pack(samples: Sequence[tuple[UInt8[Tensor, "3 _ _"], Target]], *, pad_multiple: int = 1) -> PackedBatch:
    """Pad images right and bottom with 0 to the largest height and width, and join their targets.

    Args:
        samples: at least one image with its target.
        pad_multiple: round the padded height and width up to a multiple of this many pixels.
    """
    sizes = [target.size_hw for _, target in samples]
    height, width = (-(-max(side) // pad_multiple) * pad_multiple for side in zip(*sizes, strict=True))
    images = _zero_images(len(samples), height, width)
    padding_mask = torch.ones((len(samples), height, width), dtype=torch.bool)
    for b, (image, target) in enumerate(samples):
        h, w = target.size_hw
        images[b, :, :h, :w] = image
        padding_mask[b, :h, :w] = False
    targets = [target for _, target in samples]
    return PackedBatch(
        images=images,
        padding_mask=padding_mask,
        boxes_cxcywh=torch.cat([target.boxes_cxcywh for target in targets]).numpy(),
        labels=torch.cat([target.labels for target in targets]).numpy(),
        num_objects=tuple(target.num_objects for target in targets),
        image_ids=tuple(target.image_id for target in targets),
        sizes_hw=tuple(sizes),
        orig_sizes_hw=tuple(target.orig_size_hw for target in targets),
    )


def _zero_images(num_images: int, height: int, width: int) -> UInt8[Tensor, "B 3 H W"]:
    """Return black images: in a worker, in the shared memory through which they leave it, saving a copy of them all."""
    shape = (num_images, 3, height, width)
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=torch.uint8)
    # As in torch's own collate functions; the system hands out such memory zeroed.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def collate(samples: Sequence[tuple[UInt8[Tensor, "3 _ _"], Target]], *, pad_multiple: int = 1) -> Batch:
    """Return a batch of the samples; see `pack` for the padding."""
    return pack(samples, pad_multiple=pad_multiple).unpack()
