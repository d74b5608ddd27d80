"""D-FINE's criterion: classes by each layer's own matching, boxes and edges by all matchings together.

Names are those of `SetCriterion`, whose layers here begin with the boxes from which all layers start. There is also
`loss_fgl`, 0 for those, and `loss_ddf`, one value for all layers together; see `losses.fine_terms`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detronome.losses.fine_terms import (
    Answers,
    answers_of,
    distillation_loss,
    edge_loss,
    weighted_box_losses,
    weights_of_objects,
    weights_of_queries,
)
from detronome.losses.matcher import HungarianMatcher, LayerStack, Matching
from detronome.losses.set_criterion import SetCriterion, name_layers, scaled
from detronome.losses.terms import BatchTotals, varifocal_loss
from detronome.types import EdgeDistributions, ModelOutput, Target

__all__ = ["FineCriterion"]


class FineCriterion(SetCriterion):
    """Computes the losses of D-FINE (arXiv 2410.13842, section 4).

    Args:
        matcher: assigns targets to queries.
        weight_class: weight of `loss_ce`, varifocal, in the total.
        weight_bbox: weight of `loss_bbox` in the total.
        weight_giou: weight of `loss_giou` in the total.
        weight_fgl: weight of `loss_fgl` in the total.
        weight_ddf: weight of `loss_ddf` in the total.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        weight_class: float,
        weight_bbox: float,
        weight_giou: float,
        weight_fgl: float,
        weight_ddf: float,
    ) -> None:
        super().__init__(
            matcher=matcher,
            classification="vfl",
            weight_class=weight_class,
            weight_bbox=weight_bbox,
            weight_giou=weight_giou,
        )
        self.weights |= {"loss_fgl": weight_fgl, "loss_ddf": weight_ddf}

    @property
    def evaluation_weights(self) -> dict[str, float]:
        """See `SetCriterion`; distributions of edges are given in training alone."""
        return {name: weight for name, weight in self.weights.items() if name not in ("loss_fgl", "loss_ddf")}

    def forward(
        self,
        output: ModelOutput,
        targets: Sequence[Target],
        matchings: Mapping[str, Matching] | None = None,
        *,
        totals: BatchTotals | None = None,
        progress: float = 1.0,
    ) -> dict[str, Tensor]:
        """Return the unweighted losses of one micro-batch, each a scalar; see `SetCriterion.forward`."""
        num_queries = output.pred_logits.shape[1]
        totals = totals or BatchTotals.of(targets, num_queries)
        if matchings is None:
            matchings = self.match(output, targets)
        ordinary = [matching for suffix, matching in matchings.items() if suffix != "_dn"]
        union = answers_of(ordinary, targets, num_queries)
        losses: dict[str, Tensor] = {}
        for suffix, stack in self._stacks(output).items():
            matching = matchings[suffix]
            if suffix == "_dn":
                layers: Sequence[ModelOutput] = output.dn_outputs
                share = scaled(totals, matching, targets)
                answers = answers_of([matching], targets, stack.logits.shape[2])
                weights = weights_of_queries(answers, share)
            else:
                layers = () if suffix == "_enc" else [*output.aux_outputs, output]
                share, answers = totals, union
                weights = weights_of_objects(union, targets, totals)
            terms = self._box_terms(stack, matching, targets, share, answers, weights)
            losses.update(name_layers(terms, suffix))
            edges = [layer.edges for layer in layers if layer.edges is not None]
            if edges:
                losses.update(_edge_terms(edges, stack, answers, union, weights, totals, suffix))
        return losses

    def _box_terms(
        self,
        stack: LayerStack,
        matching: Matching,
        targets: Sequence[Target],
        totals: BatchTotals,
        answers: Answers,
        weights: Tensor,
    ) -> dict[str, Tensor]:
        labels = torch.cat([target.labels for target in targets])
        truth = torch.cat([target.boxes_cxcywh for target in targets])
        loss_ce = varifocal_loss(stack.logits, stack.boxes_cxcywh, matching, labels, truth, totals)
        loss_bbox, loss_giou = weighted_box_losses(stack.boxes_cxcywh, answers, weights)
        if not matching.is_finite:
            # The solver needed finite numbers; the step guard must still see that there were none.
            loss_bbox = loss_bbox * torch.nan
        return {"loss_ce": loss_ce, "loss_bbox": loss_bbox, "loss_giou": loss_giou}


def _edge_terms(
    edges: Sequence[EdgeDistributions],
    stack: LayerStack,
    answers: Answers,
    union: Answers,
    weights: Tensor,
    totals: BatchTotals,
    suffix: str,
) -> dict[str, Tensor]:
    num_layers = len(stack.logits)
    boxes = stack.boxes_cxcywh[num_layers - len(edges) :]
    # Of denoising queries half have an object. There are more, of images with fewer objects: they predict nothing.
    rest = answers.is_matched if suffix == "_dn" else ~answers.is_matched
    loss_fgl = F.pad(edge_loss(edges, boxes, answers, weights), (num_layers - len(edges), 0))
    loss_ddf = distillation_loss(edges, boxes, stack.logits[-1], answers, union, totals, num_unmatched=rest.sum(1))
    return name_layers({"loss_fgl": loss_fgl}, suffix) | {f"loss_ddf{suffix}": loss_ddf}
