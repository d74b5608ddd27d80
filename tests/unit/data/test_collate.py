"""Batches hold each image untouched in their upper left corner."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from detronome.data.buckets import Bucket
from detronome.data.collate import collate, pack
from detronome.types import Target


def sample(image_id: int, height: int, width: int, num_objects: int) -> tuple[Tensor, Target]:
    generator = torch.Generator().manual_seed(image_id)
    target = Target(
        boxes_cxcywh=torch.rand(num_objects, 4, generator=generator),
        labels=torch.arange(num_objects),
        image_id=image_id,
        size_hw=(height, width),
        orig_size_hw=(2 * height, 2 * width),
    )
    return torch.randint(1, 256, (3, height, width), dtype=torch.uint8, generator=generator), target


def test_no_objects_in_any_image() -> None:
    (batch,) = collate([sample(1, 4, 5, 0), sample(2, 4, 5, 0)]).parts
    assert batch.num_objects == 0
    assert [target.boxes_cxcywh.shape for target in batch.targets] == [(0, 4), (0, 4)]
    assert batch.targets[0].labels.dtype == torch.int64


def test_no_images_are_no_batch() -> None:
    assert collate([]).parts == ()


@pytest.mark.parametrize(("buckets", "shape"), [((), (7, 9)), (((8, 12), (64, 64)), (8, 12)), (((4, 4),), (32, 32))])
def test_images_are_padded_right_and_bottom(buckets: tuple[Bucket, ...], shape: tuple[int, int]) -> None:
    samples = [sample(1, 7, 5, 2), sample(2, 5, 9, 0), sample(3, 5, 5, 3)]
    (batch,) = collate(samples, buckets).parts
    assert batch.images.shape == (3, 3, *shape)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for b, (image, target) in enumerate(samples):
        h, w = target.size_hw
        assert torch.equal(batch.images[b, :, :h, :w], image)
        assert (batch.images[b] != 0).sum() == image.numel()
        assert not batch.padding_mask[b, :h, :w].any()
        assert (~batch.padding_mask[b]).sum() == h * w
        unpacked = batch.targets[b]
        assert torch.equal(unpacked.boxes_cxcywh, target.boxes_cxcywh)
        assert torch.equal(unpacked.labels, target.labels)
        assert (unpacked.image_id, unpacked.size_hw, unpacked.orig_size_hw) == (
            target.image_id,
            target.size_hw,
            target.orig_size_hw,
        )


def test_each_bucket_is_a_batch() -> None:
    samples = [sample(1, 40, 30, 2), sample(2, 30, 40, 1), sample(3, 40, 20, 0), sample(4, 41, 20, 3)]
    effective = collate(samples, ((64, 32), (32, 64)))
    assert [part.image_ids for part in effective.parts] == [[2], [1, 3, 4]]
    assert [part.images.shape[2:] for part in effective.parts] == [(32, 64), (64, 32)]
    assert (len(effective), effective.num_objects, effective.image_ids) == (4, 6, [2, 1, 3, 4])
    assert [micro.image_ids for micro in effective.split(2)] == [[2], [1, 3], [4]]


def test_a_packed_batch_survives_a_pipe() -> None:
    (packed,) = pack([sample(1, 4, 5, 2), sample(2, 5, 4, 1)])
    batch = pickle.loads(pickle.dumps(packed)).unpack()
    assert batch.image_ids == [1, 2]
    assert torch.equal(batch.targets[1].boxes_cxcywh, packed.unpack().targets[1].boxes_cxcywh)
    batch.targets[0].boxes_cxcywh.mul_(2)
