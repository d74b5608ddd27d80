"""Denoising queries: noised truth boxes trained to find their way back, without matching (arXiv 2203.01305).

Shape letters: `B` batch, `R` denoising queries (groups x most targets of one image), `Q` ordinary queries,
`A` = R + Q, `D` hidden dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detronome.types import Target

__all__ = ["DenoisingQueries", "make_denoising_queries"]


@dataclass(frozen=True)
class DenoisingQueries:
    """Queries to put before the ordinary ones."""

    content: Float[Tensor, "B R D"]
    reference_boxes: Float[Tensor, "B R 4"]
    """Noised truth, cxcywh, 0-1 of the unpadded image."""
    padding_mask: Bool[Tensor, "B R"]
    """True for queries without an object: images have as many queries as the fullest one."""
    attention_mask: Bool[Tensor, "B A A"]
    """True where attention is forbidden: groups see only themselves, ordinary queries see no denoising query, and
    nothing sees a query without an object, so that an image's neighbours in the batch do not matter."""
    matches: tuple[tuple[Tensor, Tensor], ...]
    """For each image (query index, target index)."""


def make_denoising_queries(
    targets: Sequence[Target],
    label_embedding: nn.Embedding,
    *,
    num_queries: int,
    num_groups: int,
    box_noise: float,
    label_noise: float,
) -> DenoisingQueries | None:
    """Noise the truth of a batch; None when no image has an object.

    Args:
        targets: the truth.
        label_embedding: content of a query for each class.
        num_queries: ordinary queries that follow.
        num_groups: how often each object is noised.
        box_noise: centres move by up to this part of half the size, sizes change by up to this part.
        label_noise: probability of a random label.
    """
    counts = [target.num_objects for target in targets]
    longest = max(counts, default=0)
    if longest == 0:
        return None
    device = targets[0].labels.device
    labels = torch.zeros(len(targets), longest, dtype=torch.int64, device=device)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2], device=device).repeat(len(targets), longest, 1)
    for i, target in enumerate(targets):
        labels[i, : counts[i]] = target.labels
        boxes[i, : counts[i]] = target.boxes_cxcywh
    labels, boxes = labels.repeat(1, num_groups), boxes.repeat(1, num_groups, 1)
    position = torch.arange(longest, device=device).repeat(num_groups)
    padding_mask = position >= torch.tensor(counts, device=device).unsqueeze(-1)

    flip = torch.rand(labels.shape, device=device) < label_noise
    labels = torch.where(flip, torch.randint_like(labels, label_embedding.num_embeddings), labels)
    noise = (torch.rand(boxes.shape, device=device) * 2 - 1) * box_noise
    centre = boxes[..., :2] + noise[..., :2] * boxes[..., 2:] * 0.5
    size = boxes[..., 2:] * (1 + noise[..., 2:])
    matches = tuple(
        (
            torch.cat([torch.arange(count, device=device) + group * longest for group in range(num_groups)]),
            torch.arange(count, device=device).repeat(num_groups),
        )
        for count in counts
    )
    return DenoisingQueries(
        content=label_embedding(labels),
        reference_boxes=torch.cat((centre, size), dim=-1).clamp(1e-3, 1 - 1e-3),
        padding_mask=padding_mask,
        attention_mask=_attention_mask(padding_mask, num_groups, num_queries),
        matches=matches,
    )


def _attention_mask(padding_mask: Bool[Tensor, "B R"], num_groups: int, num_queries: int) -> Bool[Tensor, "B A A"]:
    num_images, num_denoising = padding_mask.shape
    total, device = num_denoising + num_queries, padding_mask.device
    group = torch.arange(num_denoising, device=device) // (num_denoising // num_groups)
    mask = torch.zeros(num_images, total, total, dtype=torch.bool, device=device)
    mask[:, :num_denoising, :num_denoising] = (group[:, None] != group[None, :]) | padding_mask[:, None]
    mask[:, num_denoising:, :num_denoising] = True
    # A query that may look at nothing would be NaN; one without an object looks at itself.
    mask.diagonal(dim1=1, dim2=2).fill_(False)
    return mask
