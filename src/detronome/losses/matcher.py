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
from torch.nn.utils.rnn import pad_sequence

from detronome.ops.assignment import assign
from detronome.ops.boxes import pairwise_l1_and_giou
from detronome.types import Target

__all__ = ["HungarianMatcher", "LayerStack", "Matching"]

_UNUSABLE_COST = 1e6
"""Stands for a non-finite cost in the solver; `Matching.is_finite` says that it happened."""
_CACHED_NUMBERS = 2**17


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
        labels, boxes = _pad_targets(targets)
        costs = [self.cost(stack, labels, boxes) for stack in stacks]
        flat = [cost.flatten() for cost in costs]
        on_host = (torch.cat(flat) if len(flat) > 1 else flat[0]).double().cpu().numpy()
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
        l1, giou = pairwise_l1_and_giou(boxes_cxcywh.unsqueeze(0), stack.boxes_cxcywh.float())
        cost = l1.mul_(self.cost_bbox).sub_(giou, alpha=self.cost_giou)
        chosen = labels.unsqueeze(-2).expand(-1, stack.logits.shape[2], -1)
        # In pieces that stay in the processor's cache: a large batch's softmax is bound by memory.
        layers_at_once = max(1, _CACHED_NUMBERS // stack.logits[0].numel())
        for logits, part in zip(stack.logits.split(layers_at_once), cost.split(layers_at_once), strict=True):
            classification = self._class_cost(logits.float(), chosen.expand(len(logits), -1, -1, -1))
            part.add_(classification.transpose(-1, -2), alpha=self.cost_class)
        return cost

    def _class_cost(self, logits: Float[Tensor, "l B Q C"], chosen: Int64[Tensor, "l B Q T"]) -> Tensor:
        if self.class_cost == "focal":
            return _focal_cost(logits.gather(-1, chosen))
        # On a CPU the whole softmax is twice as fast as logsumexp, which alone would do.
        return logits.softmax(-1).gather(-1, chosen).neg_()


def _focal_cost(logits: Tensor) -> Tensor:
    probability = logits.sigmoid()
    present = 0.25 * (1 - probability) ** 2 * torch.nn.functional.softplus(-logits)
    absent = 0.75 * probability**2 * torch.nn.functional.softplus(logits)
    return present - absent


def _pad_targets(targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """Stack labels and boxes of all images to the longest; the padding's costs are never read."""
    labels = pad_sequence([target.labels for target in targets], batch_first=True)
    boxes = pad_sequence([target.boxes_cxcywh for target in targets], batch_first=True, padding_value=0.5)
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
