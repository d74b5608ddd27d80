"""Whatever lies between files and batch, the batch is the same: cache, reduced copies, augmentation on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from detronome.config.convert import apply_overrides
from detronome.config.schema import AugmentConfig, BatchConfig, RunConfig
from detronome.data.build import build_train_batches
from detronome.data.prefetch import DeviceStream
from detronome.data.split import open_split
from detronome.data.store.cache import PixelCache
from detronome.types import EffectiveBatch

WriteCoco = Callable[..., Path]
CPU = torch.device("cpu")
CONFIG = RunConfig(
    augment=AugmentConfig(sizes=(32, 40), max_size=64, crop="fraction", brightness=0.2, eval_size=32, eval_max_size=64),
    batch=BatchConfig(global_batch_size=3),
)


@pytest.fixture
def folder(tmp_path: Path, write_coco: WriteCoco) -> Path:
    return write_coco(tmp_path, 9)


def batches(folder: Path, workers: int = 0, steps: int = 9, **settings: Any) -> list[EffectiveBatch]:
    config = apply_overrides(CONFIG, {f"data.{name}": value for name, value in settings.items()})
    split = open_split(folder, "train")
    stream = build_train_batches(config, split, split.index.categories, 0, steps, workers, CPU)
    with DeviceStream(stream, CPU) as found:
        return list(found)


def largest_difference(ones: list[EffectiveBatch], others: list[EffectiveBatch]) -> int:
    largest = 0
    for one, other in zip(ones, others, strict=True):
        assert one.image_ids == other.image_ids
        for target, other_target in zip(one.targets, other.targets, strict=True):
            assert torch.equal(target.boxes_cxcywh, other_target.boxes_cxcywh)
            assert (target.size_hw, target.image_id) == (other_target.size_hw, other_target.image_id)
        for part, other_part in zip(one.parts, other.parts, strict=True):
            assert torch.equal(part.padding_mask, other_part.padding_mask)
            assert part.images.stride() == other_part.images.stride()
            largest = max(largest, int((part.images.int() - other_part.images.int()).abs().max()))
    return largest


@pytest.mark.parametrize("cache", ["ram", "disk"])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_cache_changes_no_pixel(folder: Path, cache: str, workers: int) -> None:
    plain = batches(folder)
    assert largest_difference(batches(folder, workers, cache=cache), plain) == 0
    assert largest_difference(batches(folder, workers, cache=cache), plain) == 0, "also when it is full"


def test_from_the_second_epoch_on_nothing_is_decoded(folder: Path) -> None:
    config = apply_overrides(CONFIG, {"data.cache": "ram"})
    split = open_split(folder, "train")
    with build_train_batches(config, split, split.index.categories, 0, 9, 0, CPU) as stream:
        for step in range(9):
            stream.meter.reset()
            next(stream)
            assert ("decode" in stream.meter.stage_s) == (step < 3)


@pytest.mark.parametrize(("cache", "budgets"), [("ram", {2**30}), ("disk", {2**32})])
def test_ranks_of_a_machine_divide_the_memory_of_the_cache_but_not_its_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cache: str, budgets: set[int]
) -> None:
    create = PixelCache.create
    given = set()

    def spy(**options: Any) -> PixelCache:
        given.add(options["budget_bytes"])
        return create(**options)

    monkeypatch.setattr(PixelCache, "create", spy)
    config = apply_overrides(CONFIG, {"data.cache": cache, "data.cache_gib": 4.0})
    split = open_split(folder, "train")
    with build_train_batches(config, split, split.index.categories, 0, 1, 0, CPU, local_size=4) as stream:
        next(stream)
    assert given == budgets


def test_a_changed_file_is_not_served_from_the_cache(folder: Path) -> None:
    first = batches(folder, cache="disk")
    for photo in (folder / "images").iterdir():
        with Image.open(photo) as picture:
            turned = picture.transpose(Image.Transpose.ROTATE_180)
        turned.save(photo)
    assert largest_difference(batches(folder, cache="disk"), batches(folder)) == 0
    assert largest_difference(batches(folder), first) > 0


def test_reduced_copies_are_alike_cached_or_not(folder: Path) -> None:
    reduced = {"augment.crop": "none", "augment.sizes": [8], "augment.eval_size": 8}
    config = apply_overrides(CONFIG, {**reduced, "data.cache_reduced": True})
    split = open_split(folder, "train")

    def run(config: RunConfig) -> list[EffectiveBatch]:
        with build_train_batches(config, split, split.index.categories, 0, 6, 0, CPU) as stream:
            return list(stream)

    without = run(config)
    assert largest_difference(run(replace(config, data=replace(config.data, cache="ram"))), without) == 0
    assert largest_difference(run(replace(config, data=replace(config.data, cache="ram", cache_gib=0.0))), without) == 0


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("buckets", [[], ["32x64", "64x64"]])
def test_augmentation_on_the_device_is_the_same_batch(folder: Path, workers: int, buckets: list[str]) -> None:
    plain = batches(folder, buckets=buckets)
    assert largest_difference(batches(folder, workers, augment_on="device", buckets=buckets), plain) <= 3


@pytest.mark.gpu
def test_batches_arrive_on_the_gpu_unharmed(folder: Path) -> None:
    plain = batches(folder)
    device = torch.device("cuda")
    split = open_split(folder, "train")
    for augment_on, tolerance in (("cpu", 0), ("device", 3)):
        config = apply_overrides(CONFIG, {"data.augment_on": augment_on})
        stream = build_train_batches(config, split, split.index.categories, 0, 9, 2, device)
        with DeviceStream(stream, device) as found:
            ahead = [batch.to(CPU) for batch in found]
        assert largest_difference(ahead, plain) <= tolerance
