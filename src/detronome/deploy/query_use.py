"""Which of a model's learned queries find objects, measured on images whose objects are known.

Shape letters: `Q` queries, `C` class logits, `T` objects of one image.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from detronome.models.detector import Detector
from detronome.ops.boxes import cxcywh_to_xyxy, elementwise_iou
from detronome.runtime.precision import Precision, autocast
from detronome.types import EffectiveBatch, Target

__all__ = ["queries_by_use"]

_FOUND_IOU = 0.5


@torch.inference_mode()
def queries_by_use(
    model: Detector, batches: Iterable[EffectiveBatch], *, precision: Precision, device: torch.device
) -> list[int]:
    """Return the places of all queries, the one that found most objects first.

    An object counts for the query with the highest score among those that give its class and a box with an IoU of at
    least 0.5. Queries that found equally many are ordered by the sum of their scores.

    Args:
        model: a softmax family's, in eval mode on `device`.
        batches: images with their objects, resized for evaluation.
        precision: of the forward pass.
        device: where the model is.
    """
    found = torch.zeros(model.num_queries, dtype=torch.float64)
    confidence = torch.zeros(model.num_queries, dtype=torch.float64)
    for effective in batches:
        for part in effective.parts:
            batch = part.to(device)
            with autocast(precision, device):
                output = model(batch.images, batch.padding_mask)
            for logits, boxes, target in zip(output.pred_logits, output.pred_boxes, batch.targets, strict=True):
                scores, classes = logits.float().softmax(-1)[:, :-1].max(-1)
                confidence += scores.double().cpu()
                finders = _finders(scores, classes, boxes.float(), target)
                found += torch.bincount(finders, minlength=model.num_queries).double().cpu()
    # One number: a whole for each object, and the scores, which add up to less than one, for ties.
    use = found + confidence / (1 + confidence.sum())
    return torch.argsort(use, descending=True, stable=True).tolist()


def _finders(
    scores: Float[Tensor, " Q"], classes: Int64[Tensor, " Q"], boxes_cxcywh: Float[Tensor, "Q 4"], target: Target
) -> Int64[Tensor, " F"]:
    """Return the query that found each object that was found."""
    if target.num_objects == 0:
        return classes[:0]
    # The overlap is the same in parts of the image as in its pixels.
    truth = cxcywh_to_xyxy(target.boxes_cxcywh)[None].expand(len(scores), -1, -1)
    iou = elementwise_iou(cxcywh_to_xyxy(boxes_cxcywh)[:, None].expand_as(truth), truth)
    is_right = (iou >= _FOUND_IOU) & (classes[:, None] == target.labels)
    best, finder = torch.where(is_right, scores[:, None], -1.0).max(0)
    return finder[best >= 0]
