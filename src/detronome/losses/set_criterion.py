"""The set-prediction criterion: match, then sum the terms over decoder layers, proposals and denoising queries.

Loss names are the field's: `loss_ce`, `loss_bbox`, `loss_giou` for the last decoder layer, with the suffix `_0`,
`_1`, ... for earlier layers, `_enc` for encoder proposals and `_dn_0`, ... for denoising; `loss_mask` and `loss_dice`,
of the last decoder layer alone. All are unweighted; `SetCriterion.total` applies the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detronome.losses.mask_terms import mask_dice_loss, mask_focal_loss, padded_masks, upsampled
from detronome.losses.matcher import HungarianMatcher, LayerStack, Matching
from detronome.losses.terms import BatchTotals, box_giou_loss, box_l1_loss, quality_loss, softmax_loss, varifocal_loss
from detronome.types import MaskDecoder, ModelOutput, Target

__all__ = ["SetCriterion", "name_layers", "scaled"]


class SetCriterion(nn.Module):
    """Computes the losses of a detector (arXiv 2005.12872, section 3.1).

    Args:
        matcher: assigns targets to queries.
        classification: `softmax` with a no-object class, `quality` or `vfl`, see `losses.terms`.
        weight_class: weight of `loss_ce` in the total.
        weight_bbox: weight of `loss_bbox` in the total.
        weight_giou: weight of `loss_giou` in the total.
        no_object_weight: weight of unmatched queries in the softmax loss.
        quality_exponent: final exponent of the `quality` target.
        quality_ramp: the exponent grows with progress and is full at 1/ramp.
        aux_loss: supervise every decoder layer.
        weight_mask: weight of `loss_mask` in the total; None where no masks are learnt.
        weight_dice: weight of `loss_dice` in the total; None likewise.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        classification: Literal["softmax", "quality", "vfl"],
        weight_class: float,
        weight_bbox: float,
        weight_giou: float,
        no_object_weight: float = 0.1,
        quality_exponent: float = 1.5,
        quality_ramp: float = 1.5,
        aux_loss: bool = True,
        weight_mask: float | None = None,
        weight_dice: float | None = None,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.classification = classification
        self.weights = {"loss_ce": weight_class, "loss_bbox": weight_bbox, "loss_giou": weight_giou}
        if weight_mask is not None and weight_dice is not None:
            self.weights |= {"loss_mask": weight_mask, "loss_dice": weight_dice}
        self.no_object_weight = no_object_weight
        self.quality_exponent = quality_exponent
        self.quality_ramp = quality_ramp
        self.aux_loss = aux_loss

    @torch.no_grad()
    def match(self, output: ModelOutput, targets: Sequence[Target]) -> dict[str, Matching]:
        """Return which query answers for which target, by what predicts: decoder layers (""), proposals (`_enc`) and
        denoising queries (`_dn`). Costs one host sync."""
        stacks = self._stacks(output)
        matched = {suffix: stack for suffix, stack in stacks.items() if suffix != "_dn"}
        matchings = dict(zip(matched, self.matcher(list(matched.values()), targets), strict=True))
        if "_dn" in stacks:
            matchings["_dn"] = _denoising_matching(output, targets)
        return matchings

    def forward(
        self,
        output: ModelOutput,
        targets: Sequence[Target],
        matchings: Mapping[str, Matching] | None = None,
        *,
        totals: BatchTotals | None = None,
        progress: float = 1.0,
    ) -> dict[str, Tensor]:
        """Return the unweighted losses of one micro-batch, each a scalar.

        Args:
            output: the model's predictions.
            targets: one per image; an image may have no objects.
            matchings: from `match`, whoever times it apart; None makes them here.
            totals: of the whole effective batch; by default this micro-batch is all of it.
            progress: part of the training done, 0-1.
        """
        totals = totals or BatchTotals.of(targets, output.pred_logits.shape[1])
        if matchings is None:
            matchings = self.match(output, targets)
        labels = torch.cat([target.labels for target in targets])
        boxes_cxcywh = torch.cat([target.boxes_cxcywh for target in targets])
        losses: dict[str, Tensor] = {}
        for suffix, stack in self._stacks(output).items():
            share = totals if suffix != "_dn" else scaled(totals, matchings["_dn"], targets)
            terms = self._terms(stack, matchings[suffix], labels, boxes_cxcywh, share, progress)
            losses.update(name_layers(terms, suffix))
        if output.masks is not None and "loss_mask" in self.weights:
            losses.update(_mask_terms(output.masks, matchings[""], targets, totals))
        return losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum that is minimised."""
        return torch.stack([self.weights[_base_name(name)] * loss for name, loss in losses.items()]).sum()

    @property
    def evaluation_weights(self) -> dict[str, float]:
        """Weights of the terms that an output in evaluation mode has too."""
        return self.weights

    def _stacks(self, output: ModelOutput) -> dict[str, LayerStack]:
        """Return the predictions by suffix of their losses' names."""
        stacks = {"": _stack([*(output.aux_outputs if self.aux_loss else ()), output])}
        if output.enc_outputs is not None:
            stacks["_enc"] = _stack([output.enc_outputs])
        if output.dn_outputs:
            stacks["_dn"] = _stack(output.dn_outputs)
        return stacks

    def _terms(
        self,
        stack: LayerStack,
        matching: Matching,
        labels: Tensor,
        boxes_cxcywh: Tensor,
        totals: BatchTotals,
        progress: float,
    ) -> dict[str, Tensor]:
        layer = torch.arange(stack.logits.shape[0], device=stack.logits.device).unsqueeze(-1)
        predicted = stack.boxes_cxcywh[layer, matching.image_index, matching.query_index].float()
        truth = boxes_cxcywh[matching.target_index]
        if self.classification == "softmax":
            loss_ce = softmax_loss(stack.logits, matching, labels, totals, no_object_weight=self.no_object_weight)
        elif self.classification == "vfl":
            loss_ce = varifocal_loss(stack.logits, stack.boxes_cxcywh, matching, labels, boxes_cxcywh, totals)
        else:
            exponent = self.quality_exponent * min(1.0, self.quality_ramp * progress)
            loss_ce = quality_loss(
                stack.logits, stack.boxes_cxcywh, matching, labels, boxes_cxcywh, totals, exponent=exponent
            )
        loss_bbox = box_l1_loss(predicted, truth, totals)
        if not matching.is_finite:
            # The solver needed finite numbers; the step guard must still see that there were none.
            loss_bbox = loss_bbox * torch.nan
        return {"loss_ce": loss_ce, "loss_bbox": loss_bbox, "loss_giou": box_giou_loss(predicted, truth, totals)}


def _mask_terms(
    masks: MaskDecoder, matching: Matching, targets: Sequence[Target], totals: BatchTotals
) -> dict[str, Tensor]:
    """Return the terms of the last decoder layer's matched queries; the masks of the others are never made."""
    size_hw = masks.padded_size_hw
    logits = upsampled(masks.of(matching.image_index, matching.query_index[-1]), size_hw)
    truth = padded_masks(targets, size_hw)[matching.target_index[-1]]
    return {"loss_mask": mask_focal_loss(logits, truth, totals), "loss_dice": mask_dice_loss(logits, truth, totals)}


def _stack(outputs: Sequence[ModelOutput]) -> LayerStack:
    return LayerStack(
        torch.stack([output.pred_logits for output in outputs]),
        torch.stack([output.pred_boxes for output in outputs]),
    )


def _denoising_matching(output: ModelOutput, targets: Sequence[Target]) -> Matching:
    """Return the matching that denoising queries have by construction, the same in every layer."""
    image, query, target, first = [], [], [], 0
    for i, (query_index, target_index) in enumerate(output.dn_matches):
        image.append(torch.full_like(query_index, i))
        query.append(query_index)
        target.append(target_index + first)
        first += targets[i].num_objects
    num_layers = len(output.dn_outputs)
    return Matching(
        image_index=torch.cat(image),
        query_index=torch.cat(query).expand(num_layers, -1),
        target_index=torch.cat(target).expand(num_layers, -1),
    )


def scaled(totals: BatchTotals, matching: Matching, targets: Sequence[Target]) -> BatchTotals:
    """Multiply the totals by the denoising groups: each object is answered once in every group."""
    num_objects = sum(target.num_objects for target in targets)
    groups = matching.image_index.shape[0] // max(num_objects, 1)
    return BatchTotals(totals.num_images, totals.num_objects * groups, totals.num_matches * groups)


def name_layers(terms: Mapping[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """Return each layer's value of each term under its name; see above."""
    named = {}
    for name, values in terms.items():
        for i, value in enumerate(values.unbind()):
            is_last_decoder_layer = suffix == "" and i == len(values) - 1
            layer_suffix = "" if is_last_decoder_layer or suffix == "_enc" else f"_{i}"
            named[f"{name}{suffix}{layer_suffix}"] = value
    return named


def _base_name(name: str) -> str:
    return "_".join(name.split("_")[:2])
