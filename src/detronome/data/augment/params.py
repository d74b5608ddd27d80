"""Which augmentation an image gets: numbers drawn once, applied anywhere.

`place` turns them into the least work on the pixels: one window of the decoded image, resized once.

The geometry is DETR's (arXiv 2005.12872, section A.4): flip, then either a multi-scale resize, or a resize to 400-600,
a random window of 384-600 pixels, and the multi-scale resize. A second kind of window keeps the aspect of small images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = [
    "AugmentParams",
    "AugmentPolicy",
    "Placement",
    "draw",
    "evaluation_params",
    "largest_short_side",
    "place",
    "resized_hw",
    "step_side",
]

_NUM_DRAWS = 12


@dataclass(frozen=True, kw_only=True)
class AugmentPolicy:
    """What may be drawn. Sizes are short sides, or sides of squares, in pixels; fields are those of `AugmentConfig`."""

    sizes: tuple[int, ...]
    max_size: int
    square: bool
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

    size_hw: tuple[int, int]
    """Height and width in pixels of the image that this was drawn for."""
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
    def enough_hw(self) -> tuple[int, int]:
        """Height and width of the whole image from which on its window need not be enlarged."""
        if self.crop is None:
            return self.final_hw
        full_hw = self.resize_hw or self.size_hw
        height, width = (
            math.ceil(full * final / part)
            for full, final, part in zip(full_hw, self.final_hw, self.crop[2:], strict=True)
        )
        return height, width


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The geometry of one augmentation on the pixels at hand: cut the window, flip it, resize it once.

    The reference resizes, crops and resizes again. One resize of the same part of the image costs half the time and
    blurs less; the window's edges fall on whole pixels, and boxes are placed by the window as it was cut.
    """

    window: tuple[int, int, int, int]
    """(top, left, height, width) in pixels of the decoded image, not flipped."""
    horizontal_flip: bool
    vertical_flip: bool
    final_hw: tuple[int, int]


def place(params: AugmentParams, pixels_hw: tuple[int, int]) -> Placement:
    """Return what to do with the pixels of an image.

    Args:
        params: as drawn for the image.
        pixels_hw: height and width of the decoded image; a reduced copy of it gets the same part in its own pixels.
    """
    height, width = pixels_hw
    top, left, bottom, right = 0, 0, height, width
    if params.crop is not None:
        crop_top, crop_left, crop_height, crop_width = params.crop
        full_height, full_width = params.resize_hw or params.size_hw
        top, bottom = _whole_pixels(crop_top, crop_height, full_height, height)
        left, right = _whole_pixels(crop_left, crop_width, full_width, width)
        if params.vertical_flip:
            top, bottom = height - bottom, height - top
        if params.horizontal_flip:
            left, right = width - right, width - left
    return Placement(
        window=(top, left, bottom - top, right - left),
        horizontal_flip=params.horizontal_flip,
        vertical_flip=params.vertical_flip,
        final_hw=params.final_hw,
    )


def draw(
    policy: AugmentPolicy, size_hw: tuple[int, int], rng: np.random.Generator, *, side: int | None = None
) -> AugmentParams:
    """Draw the augmentation of one training image.

    Twelve numbers are drawn whatever is decided, each with its own meaning, so that a setting changed for one decision
    leaves all the others as they were.

    Args:
        policy: what may be drawn.
        size_hw: height and width of the image in pixels.
        rng: the image's own generator, `generator("augment", seed, epoch, image_id)`.
        side: one of the policy's sizes that was drawn for the image's whole step; None draws one for it alone.
    """
    u = rng.random(_NUM_DRAWS).tolist()
    short_side = side or _choose(policy.sizes, u[3])
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
        size_hw=size_hw,
        horizontal_flip=u[0] < policy.horizontal_flip,
        vertical_flip=u[1] < policy.vertical_flip,
        resize_hw=resize_hw,
        crop=crop,
        final_hw=_final_hw(policy, crop[2:] if crop else size_hw, short_side, policy.max_size),
        brightness=1.0 + policy.brightness * (2.0 * u[9] - 1.0),
        contrast=1.0 + policy.contrast * (2.0 * u[10] - 1.0),
        saturation=1.0 + policy.saturation * (2.0 * u[11] - 1.0),
    )


def step_side(policy: AugmentPolicy, rng: np.random.Generator) -> int:
    """Draw the size of all images of a training step: squares of one size need no padding.

    Args:
        policy: what may be drawn.
        rng: the step's own generator, `generator("side", seed, epoch, step of the epoch)`.
    """
    return _choose(policy.sizes, rng.random())


def evaluation_params(policy: AugmentPolicy, size_hw: tuple[int, int]) -> AugmentParams:
    """Return what every image gets at evaluation and prediction: the resize alone."""
    return AugmentParams(size_hw=size_hw, final_hw=_final_hw(policy, size_hw, policy.eval_size, policy.eval_max_size))


def largest_short_side(policy: AugmentPolicy) -> int:
    """Return the short side in pixels beyond which no image, training or evaluation, gains from being larger.

    A `detr` crop is cut from an image of one of the `crop_resize`, in the reference too; a `fraction` crop is enlarged.
    """
    sides = [float(policy.eval_size), *map(float, policy.sizes)]
    if policy.crop == "detr":
        sides += policy.crop_resize
    elif policy.crop == "fraction":
        sides += [side / policy.crop_fraction[0] for side in policy.sizes]
    return math.ceil(max(sides))


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


def _final_hw(policy: AugmentPolicy, size_hw: tuple[int, int], side: int, max_size: int) -> tuple[int, int]:
    return (side, side) if policy.square else resized_hw(size_hw, side, max_size)


def _choose(options: tuple[int, ...], u: float) -> int:
    return options[int(u * len(options))]


def _integer(low: int, high: int, u: float) -> int:
    """Map `u` in [0, 1) to a whole number from `low` to `high`, both included."""
    return low + int(u * (high - low + 1))


def _whole_pixels(start: int, length: int, of: int, size: int) -> tuple[int, int]:
    """Map the stretch `start`, `length` of a side `of` to a side of `size`; at least one pixel."""
    first = min(round(start * size / of), size - 1)
    return first, min(max(round((start + length) * size / of), first + 1), size)
