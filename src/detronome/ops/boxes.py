"""Box arithmetic. The format is in the name: `xyxy` corners, `cxcywh` centre and size, `xywh` corner and size.

Shape letters: `*S` any leading shape (`*#S`: shapes that broadcast), `N M` numbers of boxes, which may be 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["cxcywh_to_xyxy", "elementwise_giou", "elementwise_iou", "pairwise_l1_and_giou", "xyxy_to_cxcywh"]


def cxcywh_to_xyxy(boxes_cxcywh: Float[Tensor, "*S 4"]) -> Float[Tensor, "*S 4"]:
    """Return corners for boxes given as centre and size."""
    cx, cy, w, h = boxes_cxcywh.unbind(-1)
    return torch.stack((cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h), dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Float[Tensor, "*S 4"]) -> Float[Tensor, "*S 4"]:
    """Return centre and size for boxes given as corners."""
    x0, y0, x1, y1 = boxes_xyxy.unbind(-1)
    return torch.stack(((x0 + x1) * 0.5, (y0 + y1) * 0.5, x1 - x0, y1 - y0), dim=-1)


def elementwise_iou(a_xyxy: Float[Tensor, "*S 4"], b_xyxy: Float[Tensor, "*S 4"]) -> Float[Tensor, "*S"]:
    """Return the IoU of each box in `a` with its partner in `b` (0 where both are empty)."""
    intersection, union, _ = _areas(a_xyxy, b_xyxy)
    return intersection / union.clamp(min=_EPSILON)


def elementwise_giou(a_xyxy: Float[Tensor, "*S 4"], b_xyxy: Float[Tensor, "*S 4"]) -> Float[Tensor, "*S"]:
    """Return the generalised IoU (arXiv 1902.09630) of each box in `a` with its partner in `b`, -1 to 1."""
    return _giou(*_areas(a_xyxy, b_xyxy))


def pairwise_l1_and_giou(
    a_cxcywh: Float[Tensor, "*#S N 4"], b_cxcywh: Float[Tensor, "*#S M 4"]
) -> tuple[Float[Tensor, "*#S N M"], Float[Tensor, "*#S N M"]]:
    """Return the L1 distance and the generalised IoU of every box in `a` with every box in `b`.

    `a` and `b` must have as many dimensions. Works with the coordinate as the outermost dimension, x and y at once:
    broadcasting a trailing dimension of 4 is several times slower.
    """
    a = a_cxcywh.movedim(-1, 0).contiguous().unsqueeze(-1)
    b = b_cxcywh.movedim(-1, 0).contiguous().unsqueeze(-2)
    size_a, size_b = a[2:], b[2:]
    distance = (a - b).abs_()
    l1 = distance.sum(0)
    # Two intervals overlap by half their lengths' sum less the distance of their centres, or, where one holds the
    # other, less half the lengths' difference. Their hull is longer than that half sum by what the overlap is shorter.
    half_sum = (size_a + size_b).mul_(0.5)
    reach = torch.maximum(distance[:2], distance[2:].mul_(0.5))
    intersection = (half_sum - reach).clamp_(min=0).prod(0)
    union = (size_a.prod(0) + size_b.prod(0)).sub_(intersection)
    return l1, _giou(intersection, union, half_sum.add_(reach).prod(0))


_EPSILON = 1e-9
"""Area below which a box counts as empty; keeps 0/0 out of the loss without changing any real value."""


def _areas(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the areas of intersection, union and hull of each box with its partner."""
    size_a, size_b = a_xyxy[..., 2:] - a_xyxy[..., :2], b_xyxy[..., 2:] - b_xyxy[..., :2]
    overlap = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    # Two intervals and their signed overlap (negative: the gap) add up to their hull.
    hull = size_a + size_b - overlap
    overlap = overlap.clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = size_a[..., 0] * size_a[..., 1] + size_b[..., 0] * size_b[..., 1] - intersection
    return intersection, union, hull[..., 0] * hull[..., 1]


def _giou(intersection: Tensor, union: Tensor, hull: Tensor) -> Tensor:
    # 1 is subtracted last: union / hull is 1 when the hull holds nothing but the boxes.
    return intersection / union.clamp(min=_EPSILON) + (union / hull.clamp(min=_EPSILON) - 1)
