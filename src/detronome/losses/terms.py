"""The terms of the set loss: classification (three kinds), box L1, box GIoU; each a value per decoder layer.

Every term divides by totals of the *whole effective batch*, so that micro-batches and ranks add up to the same
gradient however the batch is cut.

Shape letters: `L` decoder layers, `B` batch, `Q` queries, `C` class logits, `M` matches of a layer, `N` targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from detronome.losses.matcher import Matching
from detronome.ops.boxes import cxcywh_to_xyxy, elementwise_giou, elementwise_iou
from detronome.types import Target

__all__ = ["BatchTotals", "box_giou_loss", "box_l1_loss", "quality_loss", "softmax_loss", "varifocal_loss"]


@dataclass(frozen=True)
class BatchTotals:
    """What the losses of one effective batch are divided by: sums over its micro-batches and ranks."""

    num_images: int
    num_objects: int
    num_matches: int
    """Objects that get a query; fewer than `num_objects` where an image has more objects than queries."""

    @classmethod
    def of(cls, targets: Sequence[Target], num_queries: int) -> BatchTotals:
        counts = [target.num_objects for target in targets]
        return cls(len(counts), sum(counts), sum(min(count, num_queries) for count in counts))


def softmax_loss(
    logits: Float[Tensor, "L B Q C"],
    matching: Matching,
    labels: Int64[Tensor, " N"],
    totals: BatchTotals,
    *,
    no_object_weight: float,
) -> Float[Tensor, " L"]:
    """Cross-entropy over classes and no-object (the last logit), a weighted mean as in DETR.

    Queries without a match count `no_object_weight`, matched ones 1, and the sum is divided by all the weights.
    """
    num_layers, _, num_queries, num_logits = logits.shape
    wanted = torch.full(logits.shape[:3], num_logits - 1, dtype=torch.int64, device=logits.device)
    layer = torch.arange(num_layers, device=logits.device).unsqueeze(-1)
    wanted[layer, matching.image_index, matching.query_index] = labels[matching.target_index]
    weights = torch.ones(num_logits, device=logits.device)
    weights[-1] = no_object_weight
    entropy = F.cross_entropy(logits.float().flatten(0, 2), wanted.flatten(), weights, reduction="none")
    unmatched = totals.num_images * num_queries - totals.num_matches
    return entropy.view(num_layers, -1).sum(1) / (totals.num_matches + no_object_weight * unmatched)


def quality_loss(
    logits: Float[Tensor, "L B Q C"],
    boxes_cxcywh: Float[Tensor, "L B Q 4"],
    matching: Matching,
    labels: Int64[Tensor, " N"],
    target_boxes_cxcywh: Float[Tensor, "N 4"],
    totals: BatchTotals,
    *,
    exponent: float,
) -> Float[Tensor, " L"]:
    """Binary cross-entropy whose positive target is IoU^exponent, so that scores rank boxes by quality.

    Negatives are weighted by their probability squared (focal, arXiv 1708.02002), positives by 1. An exponent of 0
    makes every match's target 1: quality targets from the start would all be near 0 and teach nothing.
    """
    logits = logits.float()
    wanted = torch.zeros_like(logits)
    weight = logits.detach().sigmoid().square_()
    if matching.image_index.shape[0] > 0:
        positive, iou = _positives(boxes_cxcywh, matching, labels, target_boxes_cxcywh)
        wanted[positive] = iou**exponent
        weight[positive] = 1.0
    return _weighted_entropy(logits, wanted, weight, totals)


def varifocal_loss(
    logits: Float[Tensor, "L B Q C"],
    boxes_cxcywh: Float[Tensor, "L B Q 4"],
    matching: Matching,
    labels: Int64[Tensor, " N"],
    target_boxes_cxcywh: Float[Tensor, "N 4"],
    totals: BatchTotals,
    *,
    alpha: float = 0.75,
) -> Float[Tensor, " L"]:
    """Binary cross-entropy whose positives have the box's IoU as target and as weight (VFL, arXiv 2008.13367).

    Negatives are weighted by `alpha` times their probability squared.
    """
    logits = logits.float()
    wanted = torch.zeros_like(logits)
    weight = logits.detach().sigmoid().square_().mul_(alpha)
    if matching.image_index.shape[0] > 0:
        positive, iou = _positives(boxes_cxcywh, matching, labels, target_boxes_cxcywh)
        wanted[positive] = iou
        weight[positive] = iou
    return _weighted_entropy(logits, wanted, weight, totals)


def _positives(
    boxes_cxcywh: Float[Tensor, "L B Q 4"],
    matching: Matching,
    labels: Int64[Tensor, " N"],
    target_boxes_cxcywh: Float[Tensor, "N 4"],
) -> tuple[tuple[Tensor, ...], Float[Tensor, "L M"]]:
    """Return the index of each matched logit, and the IoU of its box with the truth."""
    layer = torch.arange(boxes_cxcywh.shape[0], device=boxes_cxcywh.device).unsqueeze(-1)
    matched = (layer, matching.image_index, matching.query_index)
    predicted = cxcywh_to_xyxy(boxes_cxcywh[matched].detach().float())
    truth = cxcywh_to_xyxy(target_boxes_cxcywh[matching.target_index])
    return (*matched, labels[matching.target_index]), elementwise_iou(predicted, truth).clamp(0, 1)


def _weighted_entropy(
    logits: Float[Tensor, "L B Q C"],
    wanted: Float[Tensor, "L B Q C"],
    weight: Float[Tensor, "L B Q C"],
    totals: BatchTotals,
) -> Float[Tensor, " L"]:
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="none")
    return entropy.flatten(1).sum(1) / max(totals.num_objects, 1)


def box_l1_loss(
    predicted_cxcywh: Float[Tensor, "L M 4"], truth_cxcywh: Float[Tensor, "L M 4"], totals: BatchTotals
) -> Float[Tensor, " L"]:
    """Sum of absolute differences of matched boxes, per object."""
    return (predicted_cxcywh - truth_cxcywh).abs().sum((1, 2)) / max(totals.num_objects, 1)


def box_giou_loss(
    predicted_cxcywh: Float[Tensor, "L M 4"], truth_cxcywh: Float[Tensor, "L M 4"], totals: BatchTotals
) -> Float[Tensor, " L"]:
    """Sum of 1 - GIoU of matched boxes, per object."""
    giou = elementwise_giou(cxcywh_to_xyxy(predicted_cxcywh), cxcywh_to_xyxy(truth_cxcywh))
    return (1 - giou).sum(1) / max(totals.num_objects, 1)
