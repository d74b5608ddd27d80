"""One-to-one matching of predictions to targets: every decoder layer in one cost tensor and one transfer.

The reference computes, for each layer apart, the cost of every prediction of the batch against every target of
the batch (arXiv 2005.12872, section 3.1) and uses only the diagonal blocks. Here each image meets its own targets
alone, all layers at once: same assignment, O(B) instead of O(B^2), and one host sync a step instead of one a layer.

Shape letters: `L` decoder layers, `B` batch, `Q` queries, `C` class logits, `T` most targets of one image,
`M` matches of one layer over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from detronome.ops.assignment import assign
from detronome.ops.boxes import cxcywh_to_xyxy, pairwise_giou
from detronome.types import Target

__all__ = ["HungarianMatcher", "LayerStack", "Matching"]

_UNUSABLE_COST = 1e6
"""Stands for a non-finite cost in the solver; `Matching.is_finite` says that it happened."""


@dataclass(frozen=True)
class LayerStack:
    """The predictions of several layers that share their queries."""

    logits: Float[Tensor, "L B Q C"]
    boxes_cxcywh: Float[Tensor, "L B Q 4"]


@dataclass(frozen=True)
class Matching:
    """Which query answers for which target; an image has as many matches in every layer."""

    image_index: Int64[Tensor, " M"]
    query_index: Int64[Tensor, "L M"]
    target_index: Int64[Tensor, "L M"]
    """Index into the targets of the whole batch, concatenated."""
    is_finite: bool = True
    """False when a cost was NaN or infinite: the assignment is then arbitrary and the step worthless."""


class HungarianMatcher:
    """Finds the cheapest one-to-one assignment under `cost_class`, `cost_bbox` (L1) and `cost_giou`.

    Args:
        cost_class: weight of the classification cost.
        cost_bbox: weight of the L1 distance of cxcywh boxes.
        cost_giou: weight of the negative generalised IoU.
        class_cost: `softmax`: minus the probability of the target's class (DETR). `focal`: difference of the focal
            terms for present and absent, alpha 0.25, gamma 2 (Deformable DETR).
    """

    def __init__(
        self, *, cost_class: float, cost_bbox: float, cost_giou: float, class_cost: Literal["softmax", "focal"]
    ) -> None:
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.class_cost = class_cost

    @torch.no_grad()
    def __call__(self, stacks: Sequence[LayerStack], targets: Sequence[Target]) -> list[Matching]:
        """Match every stack against the same targets. Costs one host sync, whatever the number of stacks."""
        counts = [target.num_objects for target in targets]
        if max(counts, default=0) == 0:
            return [_empty_matching(stack) for stack in stacks]
        labels, boxes = _pad_targets(targets, max(counts))
        costs = [self.cost(stack, labels, boxes) for stack in stacks]
        on_host = torch.cat([cost.flatten() for cost in costs]).cpu().numpy().astype(np.float64)
        matchings = []
        start = 0
        for cost in costs:
            block = on_host[start : start + cost.numel()].reshape(cost.shape)
            start += cost.numel()
            matchings.append(_solve(block, counts, labels.device))
        return matchings

    def cost(
        self, stack: LayerStack, labels: Int64[Tensor, "B T"], boxes_cxcywh: Float[Tensor, "B T 4"]
    ) -> Float[Tensor, "L B T Q"]:
        """Return the cost of each query for each target of its own image, in float32."""
        logits = stack.logits.float()
        predicted = stack.boxes_cxcywh.float()
        l1 = torch.zeros(())
        for predicted_plane, target_plane in zip(predicted.unbind(-1), boxes_cxcywh.unbind(-1), strict=True):
            difference = (predicted_plane.unsqueeze(-2) - target_plane.unsqueeze(-1)).abs_()
            l1 = difference if l1.ndim == 0 else l1.add_(difference)
        giou = pairwise_giou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(predicted))
        chosen = labels.unsqueeze(-2).expand(*logits.shape[:-1], labels.shape[-1])
        if self.class_cost == "softmax":
            log_probability = logits.gather(-1, chosen) - logits.logsumexp(-1, keepdim=True)
            classification = -log_probability.exp()
        else:
            classification = _focal_cost(logits.gather(-1, chosen))
        return (
            l1.mul_(self.cost_bbox)
            .sub_(giou, alpha=self.cost_giou)
            .add_(classification.transpose(-1, -2), alpha=self.cost_class)
        )


def _focal_cost(logits: Tensor) -> Tensor:
    probability = logits.sigmoid()
    present = 0.25 * (1 - probability) ** 2 * torch.nn.functional.softplus(-logits)
    absent = 0.75 * probability**2 * torch.nn.functional.softplus(logits)
    return present - absent


def _pad_targets(targets: Sequence[Target], length: int) -> tuple[Tensor, Tensor]:
    """Stack labels and boxes of all images to one length; the padding's costs are never read."""
    device = targets[0].labels.device
    labels = torch.zeros(len(targets), length, dtype=torch.int64, device=device)
    boxes = torch.full((len(targets), length, 4), 0.5, device=device)
    for i, target in enumerate(targets):
        labels[i, : target.num_objects] = target.labels
        boxes[i, : target.num_objects] = target.boxes_cxcywh
    return labels, boxes


def _solve(cost: np.ndarray, counts: Sequence[int], device: torch.device) -> Matching:
    num_layers, num_images, longest, num_queries = cost.shape
    is_finite = bool(np.isfinite(cost).all())
    if not is_finite:
        cost = np.nan_to_num(cost, nan=_UNUSABLE_COST, posinf=_UNUSABLE_COST, neginf=_UNUSABLE_COST)
    solved = assign(cost.reshape(-1, longest, num_queries), list(counts) * num_layers)
    first_target = np.concatenate(([0], np.cumsum(counts)[:-1]))
    matches_per_image = [min(count, num_queries) for count in counts]
    num_matches = sum(matches_per_image)
    target_index = np.concatenate([t + first_target[i % num_images] for i, (t, _) in enumerate(solved)])
    query_index = np.concatenate([q for _, q in solved])
    image_index = np.repeat(np.arange(num_images), matches_per_image)
    packed = np.concatenate((image_index, query_index, target_index)).astype(np.int64)
    on_device = torch.from_numpy(packed).to(device, non_blocking=True)
    image, query, target = on_device.split([num_matches, num_layers * num_matches, num_layers * num_matches])
    return Matching(
        image_index=image,
        query_index=query.view(num_layers, num_matches),
        target_index=target.view(num_layers, num_matches),
        is_finite=is_finite,
    )


def _empty_matching(stack: LayerStack) -> Matching:
    device = stack.logits.device
    none = torch.empty(stack.logits.shape[0], 0, dtype=torch.int64, device=device)
    return Matching(image_index=none[0], query_index=none, target_index=none)
