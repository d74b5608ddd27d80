"""One-to-one matching of predictions to targets: every decoder layer in one cost tensor and one transfer.

The reference computes, for each layer apart, the cost of every prediction of the batch against every target of
the batch (arXiv 2005.12872, section 3.1) and uses only the diagonal blocks. Here each image meets its own targets
alone, all layers at once: same assignment, O(B) instead of O(B^2), and one host sync a step instead of one a layer.

Shape letters: `L` decoder layers, `B` batch, `Q` queries, `C` class logits, `N` targets of the whole batch,
`M` matches of one layer over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from detronome.ops.assignment import assign
from detronome.ops.boxes import pairwise_l1_and_giou
from detronome.types import Target

__all__ = ["HungarianMatcher", "LayerStack", "Matching"]

_UNUSABLE_COST = 1e6
"""Stands for a non-finite cost in the solver; `Matching.is_finite` says that it happened."""
_CACHED_NUMBERS = 2**17
_LOG2_E = math.log2(math.e)


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
        counts = np.array([target.num_objects for target in targets])
        if not counts.any():
            return [_empty_matching(stack) for stack in stacks]
        labels = torch.cat([target.labels for target in targets])
        boxes = torch.cat([target.boxes_cxcywh for target in targets])
        image = _on_device(np.arange(len(counts)).repeat(counts), labels.device)
        costs = [self.cost(stack, image, labels, boxes).flatten() for stack in stacks]
        on_host = (torch.cat(costs) if len(costs) > 1 else costs[0]).cpu().numpy()
        matchings = []
        start = 0
        for stack, cost in zip(stacks, costs, strict=True):
            num_layers, _, num_queries = stack.logits.shape[:3]
            block = on_host[start : start + len(cost)].reshape(len(labels), num_layers, num_queries)
            matchings.append(_solve(block, counts, labels.device))
            start += len(cost)
        return matchings

    def cost(
        self, stack: LayerStack, image: Int64[Tensor, " N"], labels: Int64[Tensor, " N"], boxes: Float[Tensor, "N 4"]
    ) -> Float[Tensor, "N L Q"]:
        """Return the cost of each query for each target, which is in the image `image`, in float32."""
        num_layers, _, num_queries, _ = stack.logits.shape
        # The coordinate outermost before the boxes are repeated for each target: `pairwise_l1_and_giou` wants it there.
        planes = stack.boxes_cxcywh.float().permute(3, 1, 0, 2).flatten(2)
        predicted = planes.contiguous().index_select(1, image).movedim(0, -1)
        l1, giou = pairwise_l1_and_giou(boxes.unsqueeze(1), predicted)
        cost = l1.mul_(self.cost_bbox).sub_(giou, alpha=self.cost_giou).view(-1, num_layers, num_queries)
        return cost.add_(self._class_cost(stack.logits, image, labels), alpha=self.cost_class)

    def _class_cost(
        self, logits: Float[Tensor, "L B Q C"], image: Int64[Tensor, " N"], labels: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N L Q"]:
        # Indices that a slice parts put their own dimension first: `N L Q`.
        if self.class_cost == "focal":
            return _focal_cost(logits[:, image, :, labels].float())
        # In pieces that stay in the processor's cache: a large batch's softmax is bound by memory. Its logarithm is
        # faster to compute, and leaves the exponential for the few numbers that are chosen.
        pieces = logits.split(max(1, _CACHED_NUMBERS // logits[0].numel()))
        chosen = [piece.float().log_softmax(-1)[:, image, :, labels] for piece in pieces]
        # torch's exp wakes all threads for 2048 numbers, which costs more than the work; exp2 does not.
        return torch.cat(chosen, dim=1).mul_(_LOG2_E).exp2_().neg_()


def _focal_cost(logits: Tensor) -> Tensor:
    probability = logits.sigmoid()
    present = 0.25 * (1 - probability) ** 2 * torch.nn.functional.softplus(-logits)
    absent = 0.75 * probability**2 * torch.nn.functional.softplus(logits)
    return present - absent


def _solve(cost: Float[np.ndarray, "N L Q"], counts: Int64[np.ndarray, " B"], device: torch.device) -> Matching:
    is_finite = bool(np.isfinite(cost).all())
    if not is_finite:
        cost = np.nan_to_num(cost, nan=_UNUSABLE_COST, posinf=_UNUSABLE_COST, neginf=_UNUSABLE_COST)
    _, num_layers, num_queries = cost.shape
    image_index = np.arange(len(counts)).repeat(np.minimum(counts, num_queries))
    last = counts.cumsum()
    first = last - counts
    spans = [slice(*span) for span in zip(first.tolist(), last.tolist(), strict=True)]
    target, query = assign([cost[span, layer] for layer in range(num_layers) for span in spans])
    packed = np.concatenate((image_index, *query, *target)).reshape(1 + 2 * num_layers, len(image_index))
    packed[1 + num_layers :] += first[image_index]
    image, query_index, target_index = _on_device(packed, device).split([1, num_layers, num_layers])
    return Matching(image[0], query_index, target_index, is_finite)


def _on_device(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def _empty_matching(stack: LayerStack) -> Matching:
    device = stack.logits.device
    none = torch.empty(stack.logits.shape[0], 0, dtype=torch.int64, device=device)
    return Matching(image_index=none[0], query_index=none, target_index=none)
