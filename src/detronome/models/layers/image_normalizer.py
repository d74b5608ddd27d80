"""From bytes to what the backbone was trained on, on the model's device.

Shape letters: `B` batch, `H W` padded image height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ImageNormalizer"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of RGB values 0-1."""


class ImageNormalizer(nn.Module):
    """Subtracts a mean and divides by a standard deviation per channel; padding becomes exactly 0.

    The reference pads after normalising, so padding is the mean colour, not black. The buffers are not part of the
    state dict.

    Args:
        mean: of the red, green and blue values, 0-1.
        std: likewise.
        channels_last: give images in channels-last memory, the layout in which convolutions are fastest.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        mean_rgb, std_rgb = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std_rgb), persistent=False)
        self.register_buffer("shift", -mean_rgb / std_rgb, persistent=False)

    def forward(
        self, images: UInt8[Tensor, "B 3 H W"], padding_mask: Bool[Tensor, "B H W"]
    ) -> Float[Tensor, "B 3 H W"]:
        """Return normalised images."""
        pixels = images.to(self.scale.dtype, memory_format=self.memory_format)
        # In place, so that the small operands cannot choose the result's memory layout.
        return pixels.mul_(self.scale).add_(self.shift).masked_fill_(padding_mask[:, None], 0.0)
