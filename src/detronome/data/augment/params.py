"""Which augmentation an image gets: numbers drawn once, applied anywhere.

The geometry is DETR's (arXiv 2005.12872, section A.4): flip, then either a multi-scale resize, or a resize to 400-600,
a random window of 384-600 pixels, and the multi-scale resize. A second kind of window keeps the aspect of small images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["AugmentParams", "AugmentPolicy", "draw", "evaluation_params", "resized_hw"]

_NUM_DRAWS = 12


@dataclass(frozen=True, kw_only=True)
class AugmentPolicy:
    """What may be drawn. Sizes are short sides in pixels; the meaning of each field is that of `AugmentConfig`."""

    sizes: tuple[int, ...]
    max_size: int
    horizontal_flip: float
    vertical_flip: float
    crop: Literal["none", "detr", "fraction"]
    crop_probability: float
    crop_resize: tuple[int, ...]
    crop_px: tuple[int, int]
    crop_fraction: tuple[float, float]
    brightness: float
    contrast: float
    saturation: float
    eval_size: int
    eval_max_size: int


@dataclass(frozen=True, kw_only=True)
class AugmentParams:
    """What one image gets, applied from top to bottom."""

    horizontal_flip: bool = False
    vertical_flip: bool = False
    resize_hw: tuple[int, int] | None = None
    """Height and width in pixels before the crop."""
    crop: tuple[int, int, int, int] | None = None
    """(top, left, height, width) in pixels of the flipped and resized image."""
    final_hw: tuple[int, int]
    """Height and width in pixels of the result."""
    brightness: float = 1.0
    """Factor; 1 changes nothing. Likewise below."""
    contrast: float = 1.0
    saturation: float = 1.0

    @property
    def cropped_to_hw(self) -> tuple[int, int] | None:
        return None if self.crop is None else self.crop[2:]


def draw(policy: AugmentPolicy, size_hw: tuple[int, int], rng: np.random.Generator) -> AugmentParams:
    """Draw the augmentation of one training image.

    Twelve numbers are drawn whatever is decided, each with its own meaning, so that a setting changed for one decision
    leaves all the others as they were.

    Args:
        policy: what may be drawn.
        size_hw: height and width of the image in pixels.
        rng: the image's own generator, `generator("augment", seed, epoch, image_id)`.
    """
    u = rng.random(_NUM_DRAWS).tolist()
    short_side = _choose(policy.sizes, u[3])
    resize_hw, crop = None, None
    if policy.crop != "none" and u[2] < policy.crop_probability:
        if policy.crop == "detr":
            resize_hw = resized_hw(size_hw, _choose(policy.crop_resize, u[4]))
            height, width = resize_hw
            low, high = policy.crop_px
            window_width = _integer(min(low, width), min(high, width), u[5])
            window_height = _integer(min(low, height), min(high, height), u[6])
        else:
            height, width = size_hw
            low_fraction, high_fraction = policy.crop_fraction
            fraction = low_fraction + u[5] * (high_fraction - low_fraction)
            window_height = min(max(round(height * fraction), 1), height)
            window_width = min(max(round(width * fraction), 1), width)
        top = _integer(0, height - window_height, u[7])
        left = _integer(0, width - window_width, u[8])
        crop = (top, left, window_height, window_width)
    return AugmentParams(
        horizontal_flip=u[0] < policy.horizontal_flip,
        vertical_flip=u[1] < policy.vertical_flip,
        resize_hw=resize_hw,
        crop=crop,
        final_hw=resized_hw(crop[2:] if crop else size_hw, short_side, policy.max_size),
        brightness=1.0 + policy.brightness * (2.0 * u[9] - 1.0),
        contrast=1.0 + policy.contrast * (2.0 * u[10] - 1.0),
        saturation=1.0 + policy.saturation * (2.0 * u[11] - 1.0),
    )


def evaluation_params(policy: AugmentPolicy, size_hw: tuple[int, int]) -> AugmentParams:
    """Return what every image gets at evaluation and prediction: the resize alone."""
    return AugmentParams(final_hw=resized_hw(size_hw, policy.eval_size, policy.eval_max_size))


def resized_hw(size_hw: tuple[int, int], short_side: int, max_size: int | None = None) -> tuple[int, int]:
    """Return the size after DETR's resize: the short side becomes `short_side`, or less for the long side's sake.

    Args:
        size_hw: height and width in pixels.
        short_side: wanted length of the shorter side.
        max_size: what the longer side may not exceed, to within one pixel of rounding; no bound when None.
    """
    height, width = size_hw
    shorter, longer = float(min(size_hw)), float(max(size_hw))
    if max_size is not None and longer / shorter * short_side > max_size:
        short_side = max(round(max_size * shorter / longer), 1)
    if shorter == short_side:
        return size_hw
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def _choose(options: tuple[int, ...], u: float) -> int:
    return options[int(u * len(options))]


def _integer(low: int, high: int, u: float) -> int:
    """Map `u` in [0, 1) to a whole number from `low` to `high`, both included."""
    return low + int(u * (high - low + 1))
