"""Contrastive denoising: noised truth boxes to be put right, and worse ones to be called background (arXiv 2203.03605).

Shape letters: `B` batch, `R` denoising queries (groups x 2 x most objects of one image), `Q` ordinary queries,
`A` = R + Q, `D` hidden dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detronome.models.layers.attention import forbidden_scores
from detronome.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detronome.types import Target

__all__ = ["DenoisingQueries", "make_denoising_queries"]


@dataclass(frozen=True)
class DenoisingQueries:
    """Queries to put before the ordinary ones: in each group first all positives, then all negatives."""

    content: Float[Tensor, "B R D"]
    reference_boxes: Float[Tensor, "B R 4"]
    """Noised truth, cxcywh, 0-1 of the unpadded image."""
    padding_mask: Bool[Tensor, "B R"]
    """True for queries without an object: images have as many queries as the fullest one."""
    attention_mask: Float[Tensor, "B 1 A A"]
    """Added to attention scores: groups see only themselves, ordinary queries see no denoising query, and nothing sees
    a query without an object, so that an image's neighbours in the batch do not matter."""
    matches: tuple[tuple[Tensor, Tensor], ...]
    """For each image (query index, target index) of the positives; negatives answer for nothing."""


def make_denoising_queries(
    targets: Sequence[Target],
    class_embedding: nn.Embedding,
    *,
    num_queries: int,
    num_denoising: int,
    box_noise: float,
    label_noise: float,
) -> DenoisingQueries | None:
    """Noise the truth of a batch; None when no image has an object.

    Args:
        targets: the truth.
        class_embedding: content of a query for each class, and one more for no object.
        num_queries: ordinary queries that follow.
        num_denoising: positives of the fullest image, about: there are as many groups as fit, one at least.
        box_noise: a corner of a positive moves by up to this part of half the size, of a negative by one to two times
            that.
        label_noise: twice the probability of a random label.
    """
    counts = [target.num_objects for target in targets]
    longest = max(counts, default=0)
    if longest == 0:
        return None
    device = targets[0].labels.device
    num_groups = max(num_denoising // longest, 1)
    no_object = class_embedding.num_embeddings - 1
    labels = torch.full((len(targets), longest), no_object, device=device)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2], device=device).repeat(len(targets), longest, 1)
    for i, target in enumerate(targets):
        labels[i, : counts[i]] = target.labels
        boxes[i, : counts[i]] = target.boxes_cxcywh
    labels, boxes = labels.repeat(1, 2 * num_groups), boxes.repeat(1, 2 * num_groups, 1)
    position = torch.arange(2 * longest * num_groups, device=device)
    padding_mask = position % longest >= torch.tensor(counts, device=device).unsqueeze(-1)

    is_flipped = (torch.rand(labels.shape, device=device) < 0.5 * label_noise) & ~padding_mask
    labels = torch.where(is_flipped, torch.randint_like(labels, no_object), labels)
    is_negative = (position // longest % 2).unsqueeze(-1)
    size = torch.rand(boxes.shape, device=device) + is_negative
    sign = torch.randint_like(boxes, 2) * 2 - 1
    corners = cxcywh_to_xyxy(boxes) + size * sign * box_noise * 0.5 * boxes[..., 2:].repeat(1, 1, 2)
    # Edges of negatives may pass each other: that is a box too, as in the authors' program. A negative size would give
    # the background away.
    noised = xyxy_to_cxcywh(corners.clamp(0, 1)).abs()
    matches = tuple(
        (
            torch.cat([torch.arange(count, device=device) + 2 * longest * group for group in range(num_groups)]),
            torch.arange(count, device=device).repeat(num_groups),
        )
        for count in counts
    )
    return DenoisingQueries(
        content=class_embedding(labels),
        reference_boxes=noised,
        padding_mask=padding_mask,
        attention_mask=forbidden_scores(_forbidden(padding_mask, num_groups, num_queries)).unsqueeze(1),
        matches=matches,
    )


def _forbidden(padding_mask: Bool[Tensor, "B R"], num_groups: int, num_queries: int) -> Bool[Tensor, "B A A"]:
    num_images, num_denoising = padding_mask.shape
    total, device = num_denoising + num_queries, padding_mask.device
    group = torch.arange(num_denoising, device=device) // (num_denoising // num_groups)
    forbidden = torch.zeros(num_images, total, total, dtype=torch.bool, device=device)
    forbidden[:, :num_denoising, :num_denoising] = (group[:, None] != group[None, :]) | padding_mask[:, None]
    forbidden[:, num_denoising:, :num_denoising] = True
    return forbidden
