"""The largest padded shapes that a split's images can give, known before any is read: what memory must have room for.

Every size that augmentation can draw is listed, each once; there are some ten thousand of them.

Shape letters: `I` images, `S` sizes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, Int64

from detronome.data.augment.params import AugmentPolicy, evaluation_params
from detronome.data.buckets import Bucket, bucket_of

__all__ = ["evaluation_sizes", "largest_eval_shape", "largest_training_shape", "training_sizes"]


def largest_training_shape(
    policy: AugmentPolicy, sizes_hw: Int32[np.ndarray, "I 2"], buckets: tuple[Bucket, ...], *, num_images: int
) -> Bucket | None:
    """Return the padded shape with the most pixels that a training step can have; None without images.

    Args:
        policy: the augmentation.
        sizes_hw: heights and widths of the split's images.
        buckets: the shapes to pad to; without any, images are padded to the largest height and the largest width
            among those of a step, which may come from two images.
        num_images: images that are padded together, at least 1.
    """
    drawn = training_sizes(policy, sizes_hw)
    if len(drawn) == 0 or buckets or num_images == 1:
        return _largest(drawn, buckets)
    height, width = drawn.max(axis=0).tolist()
    return height, width


def largest_eval_shape(
    policy: AugmentPolicy, sizes_hw: Int32[np.ndarray, "I 2"], buckets: tuple[Bucket, ...]
) -> Bucket | None:
    """Return the padded shape with the most pixels in an evaluation, whose batches have one size each; None without
    images. Arguments as above."""
    return _largest(evaluation_sizes(policy, sizes_hw), buckets)


def training_sizes(policy: AugmentPolicy, sizes_hw: Int32[np.ndarray, "I 2"]) -> Int64[np.ndarray, "S 2"]:
    """Return every height and width that `draw` can give the images, each once."""
    whole = _distinct(sizes_hw.astype(np.int64).reshape(-1, 2))
    if policy.square and len(whole) > 0:
        return _distinct(np.array([(side, side) for side in policy.sizes], np.int64))
    probability = 0.0 if policy.crop == "none" else policy.crop_probability
    parts = [whole] if probability < 1 else []
    if probability > 0:
        parts.append(_detr_windows(policy, whole) if policy.crop == "detr" else _fraction_windows(policy, whole))
    windows = _distinct(np.concatenate(parts))
    return _distinct(np.concatenate([_resized(windows, side, policy.max_size) for side in policy.sizes]))


def evaluation_sizes(policy: AugmentPolicy, sizes_hw: Int32[np.ndarray, "I 2"]) -> Int64[np.ndarray, "S 2"]:
    """Return every height and width that the images have in evaluation, each once."""
    whole = _distinct(sizes_hw.astype(np.int64).reshape(-1, 2))
    final = [evaluation_params(policy, (height, width)).final_hw for height, width in whole.tolist()]
    return _distinct(np.array(final, np.int64).reshape(-1, 2))


def _largest(sizes_hw: Int64[np.ndarray, "S 2"], buckets: tuple[Bucket, ...]) -> Bucket | None:
    sizes = [(height, width) for height, width in sizes_hw.tolist()]
    shapes = {bucket_of(size, buckets) for size in sizes} if buckets else sizes
    return max(shapes, key=lambda shape: (shape[0] * shape[1], shape), default=None)


def _detr_windows(policy: AugmentPolicy, sizes_hw: Int64[np.ndarray, "S 2"]) -> Int64[np.ndarray, "W 2"]:
    """Return the windows of a `detr` crop: of the resized image, any height with any width from `crop_px`."""
    low, high = policy.crop_px
    resized = np.concatenate([_resized(sizes_hw, side, None) for side in policy.crop_resize])
    is_possible = np.zeros((high + 1, high + 1), np.bool_)
    for height, width in _distinct(np.minimum(resized, high)).tolist():
        is_possible[min(low, height) : height + 1, min(low, width) : width + 1] = True
    return np.argwhere(is_possible)


def _fraction_windows(policy: AugmentPolicy, sizes_hw: Int64[np.ndarray, "S 2"]) -> Int64[np.ndarray, "W 2"]:
    """Return the windows of a `fraction` crop: sides of the image times one fraction, rounded."""
    windows = [np.empty((0, 2), np.int64)]
    for size_hw in sizes_hw:
        steps = [_rounding_steps(int(side), *policy.crop_fraction) for side in size_hw]
        ends = np.unique(np.concatenate([policy.crop_fraction, *steps]))
        # Between two steps the window is the same, so one fraction stands for all; a step itself is never drawn.
        fractions = (ends[1:] + ends[:-1]) / 2 if len(ends) > 1 else ends
        sides = np.rint(fractions[:, None] * size_hw).astype(np.int64)
        windows.append(_distinct(sides.clip(1, size_hw)))
    return np.concatenate(windows)


def _rounding_steps(side: int, low: float, high: float) -> np.ndarray:
    """Return the fractions of a side, between the bounds, at which it is rounded to the next whole number."""
    steps = (np.arange(side) + 0.5) / side
    return steps[(steps > low) & (steps < high)]


def _resized(sizes_hw: Int64[np.ndarray, "S 2"], short_side: int, max_size: int | None) -> Int64[np.ndarray, "S 2"]:
    """Return `params.resized_hw` of many sizes, number for number."""
    shorter, longer = sizes_hw.min(axis=1).astype(np.float64), sizes_hw.max(axis=1).astype(np.float64)
    short = np.full(len(sizes_hw), float(short_side))
    if max_size is not None:
        bounded = np.maximum(np.rint(max_size * shorter / longer), 1.0)
        short = np.where(longer / shorter * short_side > max_size, bounded, short)
    long = np.trunc(short * longer / shorter)
    is_upright = sizes_hw[:, 1] < sizes_hw[:, 0]
    pairs = np.where(is_upright, np.stack((long, short)), np.stack((short, long)))
    return pairs.T.astype(np.int64)


def _distinct(sizes_hw: Int64[np.ndarray, "S 2"]) -> Int64[np.ndarray, "D 2"]:
    """Return each size once, ascending; many times faster than numpy's own way for rows."""
    keys = np.unique(sizes_hw[:, 0] << 32 | sizes_hw[:, 1])
    return np.stack((keys >> 32, keys & 0xFFFFFFFF), axis=1)
