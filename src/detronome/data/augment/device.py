"""Augmentation applied to one decoded image on the device that holds it: the same parameters, the same picture.

Where processors are few and the GPU waits, a worker only decodes and the rest happens here. Nothing is read back from
the device, so the host runs ahead. Values stay floating until the end and are rounded once, half up; `cpu.py` rounds
between resize and colours too, so results differ from it by a level or two.

Shape letters: `H W` height and width of the image as decoded, `a b` of the window, `h w` after augmentation.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional

from detronome.data.augment.params import AugmentParams, Placement, place

__all__ = ["apply_on_device"]

_LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601 weights of red, green and blue in grey."""
_LARGEST_REDUCTION = 64
"""CUDA's kernel keeps its weights in shared memory, which at 94 source pixels to one runs out."""


def apply_on_device(pixels: UInt8[Tensor, "H W 3"], params: AugmentParams) -> UInt8[Tensor, "3 h w"]:
    """Return the augmented image, on the device of `pixels`; with nothing to do it shares their memory.

    The result keeps the colours of a pixel side by side in memory (channels last), as `Batch` does.

    Args:
        pixels: the decoded image, or a reduced copy of it; left as it is.
        params: as drawn for the image.
    """
    placement = place(params, (pixels.shape[0], pixels.shape[1]))
    window = _cut(pixels, placement)
    is_jittered = (params.brightness, params.contrast, params.saturation) != (1.0, 1.0, 1.0)
    if tuple(window.shape[:2]) == placement.final_hw and not is_jittered:
        return window.permute(2, 0, 1)
    values = _resize(window, placement.final_hw)
    if is_jittered:
        values = _jitter(values, params)
    return values.add_(0.5).to(torch.uint8)


def _cut(pixels: UInt8[Tensor, "H W 3"], placement: Placement) -> UInt8[Tensor, "a b 3"]:
    """Return the window, flipped. Flipping comes first, while a colour is one byte and the window not enlarged."""
    top, left, height, width = placement.window
    window = pixels[top : top + height, left : left + width]
    flipped = [axis for axis, flip in enumerate((placement.vertical_flip, placement.horizontal_flip)) if flip]
    return window.flip(flipped) if flipped else window


def _resize(window: UInt8[Tensor, "a b 3"], to_hw: tuple[int, int]) -> Float32[Tensor, "3 h w"]:
    """Resize bilinearly with antialiasing, in float32: CUDA has no kernel for bytes, and half precision is too coarse.

    Half-precision numbers near 255 are an eighth of a level apart, so that rounding would often go the other way.
    """
    # The batch axis is added before the permutation: only so does torch see channels-last memory.
    planes = window[None].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    from_hw = tuple(window.shape[:2])
    if from_hw == to_hw:
        return planes[0]
    # Only the longest of panoramas are reduced so much: they may cost the host a wait.
    is_too_much = max(a / b for a, b in zip(from_hw, to_hw, strict=True)) > _LARGEST_REDUCTION
    source = planes.cpu() if planes.is_cuda and is_too_much else planes
    resized = functional.interpolate(source, to_hw, mode="bilinear", antialias=True, align_corners=False)
    return resized.to(planes.device)[0]


def _jitter(values: Float32[Tensor, "3 h w"], params: AugmentParams) -> Float32[Tensor, "3 h w"]:
    """Scale brightness, then contrast about the mean grey, then saturation about each pixel's grey; in place at times.

    Factors travel as arguments of the kernels: a tensor made of them would be a copy that the host waits for.
    """
    if params.brightness != 1.0:
        values = values.mul_(params.brightness).clamp_(0.0, 255.0)
    if params.contrast != 1.0:
        values = torch.lerp(_grey(values).mean(), values, params.contrast).clamp_(0.0, 255.0)
    if params.saturation != 1.0:
        values = torch.lerp(_grey(values), values, params.saturation).clamp_(0.0, 255.0)
    return values


def _grey(values: Float32[Tensor, "3 h w"]) -> Float32[Tensor, "h w"]:
    red, green, blue = values
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
