"""Augmentation applied to one image and its boxes in a loader worker.

Shape letters: `H W` height and width of the image as decoded, `h w` after augmentation, `N` boxes, `K` those kept,
`S` segments of a map.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int32, UInt8
from torch import Tensor
from torch.nn import functional

from detronome.data.augment.params import AugmentParams, place

__all__ = ["apply_to_boxes", "apply_to_image", "apply_to_map", "resize"]

_LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601 weights of red, green and blue in grey."""


def apply_to_image(image: UInt8[np.ndarray, "H W 3"], params: AugmentParams) -> UInt8[Tensor, "3 h w"]:
    """Return the augmented image; with nothing to do it shares the memory of `image`.

    The result keeps the colours of a pixel side by side in memory (channels last): resizing, collating and the model's
    convolutions are all faster so.

    Args:
        image: the decoded image, or a reduced copy of it.
        params: as drawn for the image.
    """
    placement = place(params, (image.shape[0], image.shape[1]))
    top, left, height, width = placement.window
    pixels = torch.from_numpy(image)[top : top + height, left : left + width]
    flipped = [axis for axis, flip in enumerate((placement.vertical_flip, placement.horizontal_flip)) if flip]
    if flipped:
        pixels = pixels.flip(flipped)
    pixels = _resize(pixels, placement.final_hw)
    if (params.brightness, params.contrast, params.saturation) != (1.0, 1.0, 1.0):
        pixels = _jitter(pixels, params)
    return pixels.permute(2, 0, 1)


def apply_to_boxes(
    boxes_xyxy: Float64[np.ndarray, "N 4"], params: AugmentParams, pixels_hw: tuple[int, int] | None = None
) -> tuple[Float64[np.ndarray, "K 4"], Bool[np.ndarray, " N"]]:
    """Return the boxes in pixels of the augmented image, and which of the given ones they are.

    Only a crop drops boxes: those of which nothing is left in the window.

    Args:
        boxes_xyxy: corners in pixels of the image as annotated.
        params: what is applied to the image.
        pixels_hw: height and width of the pixels it is applied to, where they are a reduced copy.
    """
    placement = place(params, pixels_hw or params.size_hw)
    top, left, height, width = placement.window
    boxes = boxes_xyxy * _ratios(params.size_hw, pixels_hw or params.size_hw)
    boxes = (boxes - np.array([left, top, left, top])).clip(0.0, np.array([width, height] * 2))
    keep = np.ones(len(boxes), np.bool_)
    if params.crop is not None:
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes = boxes[keep]
    if placement.horizontal_flip:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    if placement.vertical_flip:
        boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    return boxes * _ratios((height, width), placement.final_hw), keep


def apply_to_map(
    rows: Int32[np.ndarray, "H W"], num_segments: int, params: AugmentParams, pixels_hw: tuple[int, int]
) -> tuple[Int32[np.ndarray, "h w"], Bool[np.ndarray, " S"]]:
    """Return a map of segments in the geometry of the augmented image, and which segments are in the picture.

    Each pixel takes the segment of the nearest one, so no new ones arise at edges. Only a crop takes segments out of
    the picture: those without a pixel in the window.

    Args:
        rows: of each pixel, 1 + the number of its segment; 0 for none. Of the image as annotated.
        num_segments: how many there are.
        params: what is applied to the image.
        pixels_hw: height and width of the pixels it is applied to, which may be a reduced copy.
    """
    placement = place(params, pixels_hw)
    top, left, height, width = placement.window
    window = _nearest(rows, pixels_hw)[top : top + height, left : left + width]
    keep = np.ones(num_segments, np.bool_)
    if params.crop is not None:
        keep = np.bincount(window.ravel(), minlength=num_segments + 1)[1:] > 0
    window = window[:: -1 if placement.vertical_flip else 1, :: -1 if placement.horizontal_flip else 1]
    return np.ascontiguousarray(_nearest(window, placement.final_hw)), keep


def resize(image: UInt8[np.ndarray, "H W 3"], to_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image resized bilinearly with antialiasing; the image itself when it has that size."""
    return _resize(torch.from_numpy(image), to_hw).numpy()


def _ratios(from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Float64[np.ndarray, " 4"]:
    x, y = to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]
    return np.array([x, y, x, y])


def _nearest(rows: Int32[np.ndarray, "a b"], to_hw: tuple[int, int]) -> Int32[np.ndarray, "c d"]:
    """Resize to the nearest pixels, centre to centre, as the image is resized."""
    if rows.shape == to_hw:
        return rows
    y, x = ((2 * np.arange(to) + 1) * size // (2 * to) for size, to in zip(rows.shape, to_hw, strict=True))
    return rows.take(x, 1).take(y, 0)  # four times as fast as one look-up by pairs


def _resize(pixels: UInt8[Tensor, "a b 3"], to_hw: tuple[int, int]) -> UInt8[Tensor, "c d 3"]:
    """Resize bilinearly with antialiasing: at most 2 levels from Pillow's, in a fraction of the time."""
    if tuple(pixels.shape[:2]) == to_hw:
        return pixels
    # The batch axis is added before the permutation: only so does torch see channels-last memory, and is 3x faster.
    planes = pixels[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(planes, to_hw, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0)


def _jitter(pixels: UInt8[Tensor, "h w 3"], params: AugmentParams) -> UInt8[Tensor, "h w 3"]:
    """Scale brightness, then contrast about the mean grey, then saturation about each pixel's grey."""
    luma = torch.tensor(_LUMA)
    values = pixels.float()
    if params.brightness != 1.0:
        values = (values * params.brightness).clamp_(0.0, 255.0)
    if params.contrast != 1.0:
        # By numpy, which adds up in one order: torch's order, and with it the last bit, follows the number of threads.
        mean = torch.from_numpy((values @ luma).numpy().mean(keepdims=True))
        values = torch.lerp(mean, values, params.contrast).clamp_(0.0, 255.0)
    if params.saturation != 1.0:
        values = torch.lerp((values @ luma)[..., None], values, params.saturation).clamp_(0.0, 255.0)
    return values.round_().to(torch.uint8)
