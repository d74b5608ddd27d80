"""The terms of the set loss for masks: focal and dice, of the last decoder layer's matched queries.

Masks are compared at the padded image's full size, and padding counts as background, as in the reference. Both terms
divide by the objects of the whole effective batch.

Shape letters: `M` matched masks, `h w` height and width of predicted masks, `H W` of the padded images, `N` targets of
the whole micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from detronome.losses.terms import BatchTotals
from detronome.types import Target

__all__ = ["mask_dice_loss", "mask_focal_loss", "padded_masks", "upsampled"]

_ALPHA = 0.25


def padded_masks(targets: Sequence[Target], size_hw: tuple[int, int]) -> Bool[Tensor, "N H W"]:
    """Return the masks of all targets in turn, padded right and bottom to one size."""
    height, width = size_hw
    padded = []
    for target in targets:
        assert target.masks is not None, "the model makes masks, the data has none"
        padded.append(F.pad(target.masks, (0, width - target.masks.shape[2], 0, height - target.masks.shape[1])))
    return torch.cat(padded)


def upsampled(logits: Float[Tensor, "M h w"], size_hw: tuple[int, int]) -> Float[Tensor, "M H W"]:
    """Return predicted masks at the padded image's size."""
    return F.interpolate(logits[:, None], size=size_hw, mode="bilinear", align_corners=False)[:, 0]


def mask_focal_loss(
    logits: Float[Tensor, "M H W"], truth: Bool[Tensor, "M H W"], totals: BatchTotals
) -> Float[Tensor, ""]:
    """Focal loss (arXiv 1708.02002; alpha 0.25, gamma 2): mean over a mask's pixels, summed over masks, per object."""
    # Positive where the prediction is wrong: its sigmoid is the probability of the wrong answer.
    wrong = torch.where(truth, -logits, logits)
    balance = torch.where(truth, _ALPHA, 1 - _ALPHA)
    focal = balance * wrong.sigmoid().square() * F.softplus(wrong)
    return focal.mean((1, 2)).sum() / max(totals.num_objects, 1)


def mask_dice_loss(
    logits: Float[Tensor, "M H W"], truth: Bool[Tensor, "M H W"], totals: BatchTotals
) -> Float[Tensor, ""]:
    """1 - dice coefficient (arXiv 1606.04797) with 1 added above and below, summed over masks, per object."""
    probability = logits.sigmoid()
    both = torch.where(truth, probability, 0).sum((1, 2))
    either = probability.sum((1, 2)) + truth.sum((1, 2))
    return (1 - (2 * both + 1) / (either + 1)).sum() / max(totals.num_objects, 1)
