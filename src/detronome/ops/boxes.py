"""Box arithmetic. The format is in the name: `xyxy` corners, `cxcywh` centre and size, `xywh` corner and size.

Shape letters: `*S` any leading shape (`*#S`: shapes that broadcast), `N M` numbers of boxes. All functions accept zero boxes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["cxcywh_to_xyxy", "elementwise_giou", "elementwise_iou", "pairwise_giou", "xyxy_to_cxcywh"]


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
    intersection, union, _ = _areas(a_xyxy.unbind(-1), b_xyxy.unbind(-1))
    return intersection / union.clamp(min=_EPSILON)


def elementwise_giou(a_xyxy: Float[Tensor, "*S 4"], b_xyxy: Float[Tensor, "*S 4"]) -> Float[Tensor, "*S"]:
    """Return the generalised IoU (arXiv 1902.09630) of each box in `a` with its partner in `b`, -1 to 1."""
    return _giou(a_xyxy.unbind(-1), b_xyxy.unbind(-1))


def pairwise_giou(a_xyxy: Float[Tensor, "*#S N 4"], b_xyxy: Float[Tensor, "*#S M 4"]) -> Float[Tensor, "*#S N M"]:
    """Return the generalised IoU of every box in `a` with every box in `b`, -1 to 1.

    Works on coordinate planes: broadcasting a trailing dimension of 4 is about twice as slow.
    """
    a = tuple(plane.unsqueeze(-1) for plane in a_xyxy.unbind(-1))
    b = tuple(plane.unsqueeze(-2) for plane in b_xyxy.unbind(-1))
    return _giou(a, b)


_EPSILON = 1e-9
"""Area below which a box counts as empty; keeps 0/0 out of the loss without changing any real value."""

_Planes = tuple[Tensor, ...]


def _areas(a: _Planes, b: _Planes) -> tuple[Tensor, Tensor, Tensor]:
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a, b
    intersection = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp(min=0) * (
        torch.minimum(ay1, by1) - torch.maximum(ay0, by0)
    ).clamp(min=0)
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    hull = (torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)) * (torch.maximum(ay1, by1) - torch.minimum(ay0, by0))
    return intersection, union, hull


def _giou(a: _Planes, b: _Planes) -> Tensor:
    intersection, union, hull = _areas(a, b)
    return intersection / union.clamp(min=_EPSILON) - (hull - union) / hull.clamp(min=_EPSILON)
