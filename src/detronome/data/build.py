"""From a run's configuration and a data folder to batches."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Collection
from dataclasses import asdict

import numpy as np
import torch
from jaxtyping import Int32

from detronome.config.schema import AugmentConfig, RunConfig
from detronome.data.augment.params import AugmentPolicy, draw, evaluation_params, largest_short_side
from detronome.data.buckets import Bucket, choose_buckets, padding_waste, parse_buckets
from detronome.data.dataset import DetectionDataset
from detronome.data.loader import BatchLoader, BatchStream, eval_batches, train_batches
from detronome.data.quarantine import Quarantine
from detronome.data.sampler import ALONE, Share, StepOfImage, epoch_order
from detronome.data.split import DataSplit, label_map
from detronome.data.store.cache import PixelCache, stored_size_hw
from detronome.data.store.cache_folder import cache_folders
from detronome.data.store.pixels import PixelReader
from detronome.data.store.shards.source import ShardSource
from detronome.errors import ConfigError, Problem
from detronome.runtime.host_memory import host_memory
from detronome.runtime.processors import usable_cpus
from detronome.runtime.seeding import generator
from detronome.types import Categories

__all__ = [
    "augment_policy",
    "build_eval_batches",
    "build_quarantine",
    "build_train_batches",
    "cached_bytes",
    "padded_shapes",
    "resolve_buckets",
    "resolve_workers",
]

_MAX_AUTO_WORKERS = 8
_SHARED_MEMORY = "/dev/shm"
_NUM_BUCKETS = 6
"""On COCO's sizes 24 % of the pixels are padding then, against 51 % in batches of 16 padded to their largest image; and
compilers give up after eight shapes."""
_SAMPLED_SIZES = 2000


def build_train_batches(
    config: RunConfig,
    split: DataSplit,
    categories: Categories,
    start_step: int,
    total_steps: int,
    workers: int,
    device: torch.device,
    quarantine: Quarantine | None = None,
    *,
    share: Share = ALONE,
    excluded: Collection[int] = (),
    local_size: int = 1,
) -> BatchStream:
    """Return a rank's effective batches of the steps from `start_step` to `total_steps`; see `loader.train_batches`.

    The ranks of this machine, `local_size`, divide the memory that the pixel cache may take.

    Raises:
        ConfigError: the augmentation's settings or the buckets make no sense.
        DataError: the data has categories that the model does not know.
    """
    shard_of = split.source.shard_of if isinstance(split.source, ShardSource) else None
    order = epoch_order(config.train.seed, len(split.index), shard_of=shard_of, window=config.data.shard_window)
    return train_batches(
        _dataset(config, split, categories, training=True, local_size=local_size),
        order,
        seed=config.train.seed,
        start_step=start_step,
        total_steps=total_steps,
        global_batch_size=config.batch.global_batch_size,
        workers=workers,
        prefetch=config.data.prefetch,
        pin_memory=device.type == "cuda",
        buckets=padded_shapes(config),
        on_bad_image=config.data.on_bad_image,
        quarantine=quarantine,
        augment_on=device if config.data.augment_on == "device" else None,
        share=share,
        excluded=excluded,
    )


def build_eval_batches(
    config: RunConfig,
    split: DataSplit,
    categories: Categories,
    batch_size: int,
    workers: int,
    device: torch.device,
    quarantine: Quarantine | None = None,
    *,
    share: Share = ALONE,
) -> BatchLoader:
    """Return a rank's batches of the split, resized for evaluation; see `loader.eval_batches`.

    Raises:
        ConfigError: the augmentation's settings or the buckets make no sense.
        DataError: the data has categories that the model does not know.
    """
    return eval_batches(
        _dataset(config, split, categories, training=False),
        batch_size=batch_size,
        workers=workers,
        prefetch=config.data.prefetch,
        pin_memory=device.type == "cuda",
        buckets=padded_shapes(config),
        on_bad_image=config.data.on_bad_image,
        quarantine=quarantine,
        share=share,
    )


def build_quarantine(config: RunConfig, split: DataSplit) -> Quarantine:
    """Return what counts the bad images of a split."""
    return Quarantine(split.files.name, len(split.index), config.data.bad_image_budget)


def padded_shapes(config: RunConfig) -> tuple[Bucket, ...]:
    """Return the shapes that images are padded to; none where a step is padded to its largest image."""
    return () if config.data.buckets == "auto" else parse_buckets(config.data.buckets)


def resolve_buckets(config: RunConfig, split: DataSplit) -> tuple[tuple[str, ...], str]:
    """Return (padded shapes, the reason for them) for a split, from a sample of the sizes that training will draw."""
    if config.model.family != "detr" or config.model.backbone_norm != "frozen":
        return (), "BatchNorm learns from whole batches; a step is padded to its largest image"
    policy = augment_policy(config.augment)
    sizes = split.index.sizes_hw
    drawn = []
    for n in range(_SAMPLED_SIZES):
        rng = generator("buckets", config.train.seed, n)
        height, width = sizes[rng.integers(len(sizes))].tolist()
        drawn.append(draw(policy, (height, width), rng).final_hw)
        drawn.append(evaluation_params(policy, (height, width)).final_hw)
    sample = np.array(drawn, np.int64)
    buckets = choose_buckets(sample, _NUM_BUCKETS)
    waste = padding_waste(sample, buckets)
    return tuple(f"{h}x{w}" for h, w in buckets), f"shapes that fit the data: {waste:.0%} of the pixels are padding"


def resolve_workers(
    config: RunConfig, device_type: str, sizes_hw: Int32[np.ndarray, "I 2"], local_size: int = 1
) -> tuple[int, str]:
    """Return (number of worker processes of each rank, the reason for it).

    `auto` leaves the processors to the model where it computes on them, and never asks for more shared memory than
    there is: a container with 64 MiB of it kills its workers otherwise. The ranks of a machine divide both.

    Args:
        config: with or without its padded shapes resolved.
        device_type: where the model computes.
        sizes_hw: heights and widths of the split's images.
        local_size: ranks on this machine.

    Raises:
        ConfigError: the number is negative.
    """
    if config.data.workers != "auto":
        if config.data.workers < 0:
            raise ConfigError(
                f"{config.data.workers} workers", where="data.workers", fix='give a number from 0, or "auto"'
            )
        return config.data.workers, "set by data.workers"
    cpus = max(1, usable_cpus() // local_size)
    among = f" for each of {local_size} ranks" if local_size > 1 else ""
    if device_type == "cpu":
        workers = 0 if cpus <= 2 else min(_MAX_AUTO_WORKERS, max(1, cpus // 4))
        reason = f"the model computes on the same {cpus} processors{among}"
    else:
        workers = min(_MAX_AUTO_WORKERS, max(1, cpus - 1))
        reason = f"one per processor but one, at most {_MAX_AUTO_WORKERS}; there are {cpus}{among}"
    num_images = -(-config.batch.global_batch_size // local_size)
    held = max(1, _batch_bytes(config, num_images, sizes_hw) * config.data.prefetch)
    fitting = _free_shared_memory_bytes() // local_size // held
    if fitting < workers:
        return fitting, f"{_SHARED_MEMORY} has room for the prefetched batches of {fitting} workers{among}"
    return workers, reason


def cached_bytes(config: RunConfig, split: DataSplit) -> int:
    """Return what the pixel cache would take if it held all images of a split."""
    stored_hw = _stored_hw(config, split)
    sizes_hw = split.index.sizes_hw if stored_hw is None else stored_hw
    return 3 * int(sizes_hw.astype(np.int64).prod(axis=1).sum())


def augment_policy(config: AugmentConfig) -> AugmentPolicy:
    """Return the augmentation that a configuration asks for.

    Raises:
        ConfigError: settings out of their range; all of them at once.
    """
    checks = [
        ("sizes", "at least one size of 1 pixel or more", _positive(config.sizes)),
        (
            "max_size",
            "at least the largest of sizes",
            config.square or config.max_size >= max(config.sizes, default=1),
        ),
        ("horizontal_flip", "a probability from 0 to 1", 0 <= config.horizontal_flip <= 1),
        ("vertical_flip", "a probability from 0 to 1", 0 <= config.vertical_flip <= 1),
        ("crop_probability", "a probability from 0 to 1", 0 <= config.crop_probability <= 1),
        ("crop_resize", "at least one size of 1 pixel or more", _positive(config.crop_resize)),
        ("crop_px", "a smallest side of 1 pixel or more, then a largest", _ascending(config.crop_px, 1, 2**31)),
        ("crop_fraction", "a smallest part above 0, then a largest up to 1", _ascending(config.crop_fraction, 1e-6, 1)),
        ("brightness", "a number from 0 to 1", 0 <= config.brightness <= 1),
        ("contrast", "a number from 0 to 1", 0 <= config.contrast <= 1),
        ("saturation", "a number from 0 to 1", 0 <= config.saturation <= 1),
        ("eval_size", "1 pixel or more", config.eval_size >= 1),
        ("eval_max_size", "at least eval_size", config.square or config.eval_max_size >= config.eval_size),
    ]
    problems = [
        Problem(what=f"{getattr(config, name)!r} is out of range", where=f"augment.{name}", fix=f"give {wanted}")
        for name, wanted, sound in checks
        if not sound
    ]
    if problems:
        raise ConfigError(problems)
    return AugmentPolicy(**asdict(config))


def _dataset(
    config: RunConfig, split: DataSplit, categories: Categories, *, training: bool, local_size: int = 1
) -> DetectionDataset:
    return DetectionDataset(
        split.index,
        _pixels(config, split, training=training, local_size=local_size),
        augment_policy(config.augment),
        training=training,
        seed=config.train.seed,
        label_map=label_map(split, categories),
        maps=split.maps,
        step_of=_step_of(config, split) if training and config.augment.square else None,
    )


def _step_of(config: RunConfig, split: DataSplit) -> StepOfImage:
    """Return what tells the images of a step: all get a square of one size."""
    return StepOfImage(
        config.train.seed,
        len(split.index),
        config.batch.global_batch_size,
        shard_of=split.source.shard_of if isinstance(split.source, ShardSource) else None,
        window=config.data.shard_window,
    )


def _stored_hw(config: RunConfig, split: DataSplit) -> Int32[np.ndarray, "I 2"] | None:
    """Return the sizes to which images are reduced when they are read, or None where they stay as they are."""
    if not config.data.cache_reduced:
        return None
    side = largest_short_side(augment_policy(config.augment))
    sizes = [stored_size_hw((h, w), side) for h, w in split.index.sizes_hw.tolist()]
    return np.array(sizes, np.int32).reshape(-1, 2)


def _pixels(config: RunConfig, split: DataSplit, *, training: bool, local_size: int) -> PixelReader:
    stored_hw = _stored_hw(config, split)
    cache = None
    if config.data.cache != "none" and training:
        decoding = (split.index.folder.name, str(split.files.images_dir), split.files.shards, config.data.decode)
        cache = PixelCache.create(
            where=config.data.cache,
            folder=cache_folders("pixels")[0],
            key=hashlib.blake2b(repr(decoding).encode(), digest_size=16).hexdigest(),
            sizes_hw=split.index.sizes_hw if stored_hw is None else stored_hw,
            # A file on disk is one for all ranks; in memory each has its own.
            budget_bytes=int(config.data.cache_gib * 2**30) // (local_size if config.data.cache == "ram" else 1),
        )
    is_fast = config.data.decode == "fast"
    return PixelReader(split.index, split.source, fast=is_fast, cache=cache, stored_hw=stored_hw)


def _positive(sizes: tuple[int, ...]) -> bool:
    return len(sizes) > 0 and min(sizes) >= 1


def _ascending(bounds: tuple[float, float], low: float, high: float) -> bool:
    return low <= bounds[0] <= bounds[1] <= high


def _batch_bytes(config: RunConfig, num_images: int, sizes_hw: Int32[np.ndarray, "I 2"]) -> int:
    """Return the size of the largest batch of so many images, as a worker sends it."""
    if config.data.augment_on == "device":
        return 3 * int(np.sort(sizes_hw.astype(np.int64).prod(axis=1))[-num_images:].sum())
    side = max(config.augment.sizes, default=1)
    unpadded = (side if config.augment.square else config.augment.max_size), side
    # Three colours and the mask, one byte each.
    return num_images * 4 * max(height * width for height, width in (unpadded, *padded_shapes(config)))


def _free_shared_memory_bytes() -> int:
    if sys.platform != "linux":  # processes share main memory there, and no folder bounds it
        return host_memory().available_bytes
    try:
        status = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize
