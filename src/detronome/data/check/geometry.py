"""What the boxes of a file are: empty, outside, overhanging, in another format. Thresholds that check and fix share.

Shape letters: `A` annotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

__all__ = ["OVERHANG_PX", "ROUNDING_PX", "BoxFormat", "BoxGeometry", "is_plausible_area"]

BoxFormat = Literal["xyxy", "cxcywh", "normalised"]
"""What boxes may be by mistake: corners, centre with width and height, or shares of the image's size."""

OVERHANG_PX = 1.0
"""A box that reaches further beyond the image was not rounded: it is wrong."""
ROUNDING_PX = 1e-3
"""A box that reaches no further than this is inside: decimals do not add up better."""
_LARGEST_SIZE = (800, 1333)
"""The short and the long side of the usual evaluation size, in pixels."""
_ALL_BUT_A_FEW = 0.98
_MANY = 0.2
_MANY_CENTRES = 0.1
_FEWEST = 3
_SMALLEST_PHOTO_PX = 16


@dataclass(frozen=True)
class BoxGeometry:
    """Boxes against their images, as training takes them: clamped to the image, left out where nothing remains.

    Every mask is False where the box cannot be read, and those about images where the image's size is unknown.
    """

    boxes_xywh: Float64[np.ndarray, "A 4"]
    """NaN where unreadable."""
    sizes_wh: Float64[np.ndarray, "A 2"]
    """Of each box's image; NaN where unknown."""

    @cached_property
    def is_readable(self) -> Bool[np.ndarray, " A"]:
        """The box is four finite numbers."""
        return np.isfinite(self.boxes_xywh).all(1)

    @cached_property
    def is_placed(self) -> Bool[np.ndarray, " A"]:
        """The box is readable and the size of its image known."""
        return self.is_readable & np.isfinite(self.sizes_wh).all(1)

    @cached_property
    def has_negative_size(self) -> Bool[np.ndarray, " A"]:
        """Width or height is below zero."""
        return self.is_readable & (self.boxes_xywh[:, 2:] < 0).any(1)

    @cached_property
    def has_zero_size(self) -> Bool[np.ndarray, " A"]:
        """Width or height is zero, or vanishes beside left and top."""
        return self.is_readable & ~self.has_negative_size & (self.ends_xy <= self.boxes_xywh[:, :2]).any(1)

    @cached_property
    def is_solid(self) -> Bool[np.ndarray, " A"]:
        """The box has an area."""
        return self.is_readable & ~self.has_negative_size & ~self.has_zero_size

    @cached_property
    def ends_xy(self) -> Float64[np.ndarray, "A 2"]:
        """Right and bottom."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:]

    @cached_property
    def overhang_px(self) -> Float64[np.ndarray, " A"]:
        """How far the box reaches beyond its image at the worst side; negative inside."""
        return np.maximum(-self.boxes_xywh[:, :2], self.ends_xy - self.sizes_wh).max(1)

    @cached_property
    def clamped_wh(self) -> Float64[np.ndarray, "A 2"]:
        """Width and height of what lies inside the image."""
        with np.errstate(invalid="ignore"):
            return self.ends_xy.clip(0, self.sizes_wh) - self.boxes_xywh[:, :2].clip(0, self.sizes_wh)

    @cached_property
    def is_outside(self) -> Bool[np.ndarray, " A"]:
        """The box has an area, and nothing of it lies inside the image."""
        return self.is_solid & self.is_placed & (self.clamped_wh <= 0).any(1)

    @cached_property
    def reaches_beyond(self) -> Bool[np.ndarray, " A"]:
        """A part of the box lies outside the image, by more than rounding."""
        return self.is_solid & self.is_placed & ~self.is_outside & (self.overhang_px > OVERHANG_PX)

    @cached_property
    def is_rounded_beyond(self) -> Bool[np.ndarray, " A"]:
        """The box reaches beyond the image by a rounding."""
        over = self.overhang_px
        return self.is_solid & self.is_placed & ~self.is_outside & (over > ROUNDING_PX) & (over <= OVERHANG_PX)

    @cached_property
    def is_tiny(self) -> Bool[np.ndarray, " A"]:
        """What training sees of the box is narrower than a pixel after the usual resize."""
        short, long = self.sizes_wh.min(1), self.sizes_wh.max(1)
        scale = np.minimum(_LARGEST_SIZE[0] / short, _LARGEST_SIZE[1] / long)
        return self.is_solid & self.is_placed & ~self.is_outside & (self.clamped_wh.min(1) * scale < 1)

    @cached_property
    def look_like_xyxy(self) -> bool:
        """The last two numbers read as right and bottom, and often cannot be width and height."""
        boxes, sizes_wh = self.boxes_xywh[self.is_placed], self.sizes_wh[self.is_placed]
        is_over = self.overhang_px[self.is_placed] > OVERHANG_PX
        if is_over.sum() < max(_FEWEST, _MANY * len(boxes)):
            return False
        is_inside = (boxes[:, :2] >= -OVERHANG_PX).all(1) & (boxes[:, 2:] <= sizes_wh + OVERHANG_PX).all(1)
        is_ordered = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return bool((is_inside & is_ordered).mean() >= _ALL_BUT_A_FEW)

    @cached_property
    def look_like_cxcywh(self) -> bool:
        """The first two numbers read as the centre, and often cannot be left and top.

        Read as left and top, centres make boxes stick out at the right and the bottom, and never at the left or the
        top; boxes that really stick out there are met by others that begin at the left or the top edge, which no
        centre of a box in the image can do.
        """
        boxes, sizes_wh = self.boxes_xywh[self.is_placed], self.sizes_wh[self.is_placed]
        num_over = int((self.overhang_px[self.is_placed] > OVERHANG_PX).sum())
        if num_over < max(_FEWEST, _MANY_CENTRES * len(boxes)):
            return False
        with np.errstate(over="ignore", invalid="ignore"):
            halves = boxes[:, 2:] / 2
            begins = (boxes[:, :2] - halves >= -OVERHANG_PX).all(1)
            ends = (boxes[:, :2] + halves <= sizes_wh + OVERHANG_PX).all(1)
        return bool((begins & ends & (boxes[:, 2:] > 0).all(1)).mean() >= _ALL_BUT_A_FEW)

    def suspected_format(self, assume_xyxy: bool | None) -> BoxFormat | None:
        """Return what the boxes look like, if not like COCO's.

        Args:
            assume_xyxy: True where corners were said to be what the boxes are, and they were turned into COCO's; False
                where they were said to be as COCO has them; None where nobody said.
        """
        if assume_xyxy is None and self.look_like_xyxy:
            return "xyxy"
        if assume_xyxy is not False and self.look_normalised:
            return "normalised"
        if assume_xyxy is None and self.look_like_cxcywh:
            return "cxcywh"
        return None

    @cached_property
    def look_normalised(self) -> bool:
        """The numbers read as shares of the image's size."""
        boxes, sizes_wh = self.boxes_xywh[self.is_placed], self.sizes_wh[self.is_placed]
        if not len(boxes):
            return False
        is_share = (boxes >= 0).all(1) & (boxes <= 1).all(1) & (sizes_wh >= _SMALLEST_PHOTO_PX).all(1)
        return bool(is_share.mean() >= _ALL_BUT_A_FEW and (boxes % 1 != 0).any())


def is_plausible_area(
    area: Float64[np.ndarray, " A"], box_area: Float64[np.ndarray, " A"], segment_area: Float64[np.ndarray, " A"]
) -> Bool[np.ndarray, " A"]:
    """Return where an area may be that of the object: at most twice its box, at least half its outline.

    Without an outline (NaN) any area below the box's is possible: it may be that of a mask which the file lacks.
    """
    least = np.nan_to_num(np.minimum(box_area, segment_area), nan=0.0)
    most = np.fmax(box_area, segment_area)
    return (area >= least / 2 - 16) & (area <= 2 * most + 16)
