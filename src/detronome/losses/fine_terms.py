"""D-FINE's terms: boxes and edges learnt by all queries that ever matched, and earlier layers learn from the last.

Which queries those are follows from the matchings of all layers together (global optimal localization
self-distillation, arXiv 2410.13842, 4.2). Here they are a mask over all queries instead of a list, whose length would
have to be read from the device. Each image weighs as much as it has objects, so that the sum does not depend on how a
batch is cut; the authors divide by the number of such queries in the whole batch, which is the same for one image.

Shape letters: `L` decoder layers, `B` batch, `Q` queries, `S` shifts of an edge, `N` targets of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from detronome.losses.matcher import Matching
from detronome.losses.terms import BatchTotals
from detronome.ops.boxes import cxcywh_to_xyxy, elementwise_giou, elementwise_iou
from detronome.types import EdgeDistributions, Target

__all__ = [
    "Answers",
    "answers_of",
    "distillation_loss",
    "edge_loss",
    "weighted_box_losses",
    "weights_of_objects",
    "weights_of_queries",
]

_TEMPERATURE = 5.0
_EMPTY = 1e-9
"""Size below which a reference box counts as having none."""


@dataclass(frozen=True)
class Answers:
    """Which queries answer for an object, the same in all layers."""

    is_matched: Bool[Tensor, "B Q"]
    boxes_cxcywh: Float[Tensor, "B Q 4"]
    """The object of each matched query; any box elsewhere."""


def answers_of(matchings: Sequence[Matching], targets: Sequence[Target], num_queries: int) -> Answers:
    """Return the union of matchings: each query answers for the object it was matched with most often, and of several
    with the first. An object may have several queries, and those of other objects leave it none."""
    device = targets[0].boxes_cxcywh.device
    counts = [target.num_objects for target in targets]
    most = max(1, *counts)
    first = torch.tensor([0, *counts[:-1]]).cumsum(0).to(device, non_blocking=True)
    votes = torch.zeros(len(targets), most, num_queries, device=device)
    truth = torch.zeros(len(targets), most, 4, device=device)
    for i, target in enumerate(targets):
        truth[i, : counts[i]] = target.boxes_cxcywh
    for matching in matchings:
        image = matching.image_index.expand_as(matching.query_index)
        one = torch.ones((), device=device)
        votes.index_put_((image, matching.target_index - first[image], matching.query_index), one, accumulate=True)
    chosen = votes.argmax(1)
    return Answers(votes.amax(1) > 0, truth.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 4)))


def weights_of_objects(answers: Answers, targets: Sequence[Target], totals: BatchTotals) -> Float[Tensor, "B Q"]:
    """Return what each query counts: those of an image together as many objects as it has, of all the batch's."""
    objects = torch.tensor([target.num_objects for target in targets], dtype=torch.float32)
    share = (objects / max(totals.num_objects, 1)).to(answers.is_matched.device, non_blocking=True)
    return answers.is_matched * (share / answers.is_matched.sum(1).clamp(min=1)).unsqueeze(-1)


def weights_of_queries(answers: Answers, totals: BatchTotals) -> Float[Tensor, "B Q"]:
    """Return what each query counts where an object has its own in every denoising group: all the same."""
    return answers.is_matched / max(totals.num_objects, 1)


def weighted_box_losses(
    boxes_cxcywh: Float[Tensor, "L B Q 4"], answers: Answers, weights: Float[Tensor, "B Q"]
) -> tuple[Float[Tensor, " L"], Float[Tensor, " L"]]:
    """Return the L1 distance and 1 - GIoU of boxes to their objects, weighted sums over queries."""
    boxes = boxes_cxcywh.float()
    truth = answers.boxes_cxcywh.expand_as(boxes)
    l1 = (boxes - truth).abs().sum(-1)
    giou = elementwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth))
    return (l1 * weights).sum((1, 2)), ((1 - giou) * weights).sum((1, 2))


def edge_loss(
    edges: Sequence[EdgeDistributions],
    boxes_cxcywh: Float[Tensor, "L B Q 4"],
    answers: Answers,
    weights: Float[Tensor, "B Q"],
) -> Float[Tensor, " L"]:
    """Cross-entropy of each edge's distribution with the two shifts around the true one, each counted by its nearness
    to it, weighted by the IoU of the box (fine-grained localization loss, FGL, equation 6).

    Args:
        edges: of each layer, with the same reference boxes.
        boxes_cxcywh: of each layer.
        answers: which queries have an object.
        weights: of the queries.
    """
    reference = edges[0].reference_boxes
    size = reference[..., 2:].repeat(1, 1, 2).clamp(min=_EMPTY)
    moved = (cxcywh_to_xyxy(answers.boxes_cxcywh) - cxcywh_to_xyxy(reference)) / size
    shifts = edges[0].shifts
    wanted = torch.cat((-moved[..., :2], moved[..., 2:]), dim=-1).clamp(shifts[0], shifts[-1])
    lower = (torch.searchsorted(shifts, wanted, right=True) - 1).clamp(0, len(shifts) - 2)
    nearness = (wanted - shifts[lower]) / (shifts[lower + 1] - shifts[lower])
    nearest = torch.stack((lower, lower + 1), dim=-1)
    truth = cxcywh_to_xyxy(answers.boxes_cxcywh).expand_as(boxes_cxcywh)
    iou = elementwise_iou(cxcywh_to_xyxy(boxes_cxcywh.detach().float()), truth)
    losses = []
    for layer, quality in zip(edges, iou, strict=True):
        below, above = layer.logits.log_softmax(-1).gather(-1, nearest).unbind(-1)
        entropy = -(below * (1 - nearness) + above * nearness)
        losses.append((entropy.sum(-1) * quality * weights).sum())
    return torch.stack(losses)


def distillation_loss(
    edges: Sequence[EdgeDistributions],
    boxes_cxcywh: Float[Tensor, "L B Q 4"],
    teacher_logits: Float[Tensor, "B Q _"],
    answers: Answers,
    balance: Answers,
    totals: BatchTotals,
    *,
    num_unmatched: Int64[Tensor, " B"],
) -> Float[Tensor, ""]:
    """Divergence of the earlier layers' distributions from the last one's, summed over layers, a mean over images
    (decoupled distillation focal loss, DDF, equation 8).

    A query with an object counts as much as its box overlaps it, another as much as the last layer is sure of anything.
    The means over both kinds are weighted by the square roots of their numbers.

    Args:
        edges: of each layer; the last one teaches.
        boxes_cxcywh: of each layer.
        teacher_logits: the last layer's.
        answers: which queries have an object.
        balance: whose numbers of both kinds weight the means: those of the ordinary queries.
        totals: of the whole effective batch.
        num_unmatched: queries of each image that have no object.
    """
    *students, teacher = [layer.logits for layer in edges]
    matched = answers.is_matched
    num_matched = matched.sum(1)
    wanted = (teacher.detach() / _TEMPERATURE).softmax(-1)
    truth = cxcywh_to_xyxy(answers.boxes_cxcywh)
    sureness = teacher_logits.detach().float().sigmoid().amax(-1)
    share = _root_share(balance.is_matched)
    losses = torch.zeros(len(wanted), device=wanted.device)
    for student, boxes in zip(students, boxes_cxcywh.detach().float(), strict=False):
        learnt = (student / _TEMPERATURE).log_softmax(-1)
        divergence = F.kl_div(learnt, wanted, reduction="none").sum(-1).mean(-1) * _TEMPERATURE**2
        divergence = divergence * torch.where(matched, elementwise_iou(cxcywh_to_xyxy(boxes), truth), sureness)
        mean_matched = (divergence * matched).sum(1) / num_matched.clamp(min=1)
        mean_unmatched = (divergence * ~matched).sum(1) / num_unmatched.clamp(min=1)
        losses = losses + share * mean_matched + (1 - share) * mean_unmatched
    return losses.sum() / max(totals.num_images, 1)


def _root_share(is_matched: Bool[Tensor, "B Q"]) -> Float[Tensor, " B"]:
    matched = is_matched.sum(1).sqrt()
    return matched / (matched + (~is_matched).sum(1).sqrt())
