"""From a model's output to detections in the pixels of the original images.

Shape letters: `B` batch, `Q` queries, `C` class logits, `N` detections of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from detronome.ops.boxes import cxcywh_to_xyxy
from detronome.types import Categories, Detections, ModelOutput

__all__ = ["postprocess"]


def postprocess(
    output: ModelOutput,
    orig_sizes_hw: Sequence[tuple[int, int]],
    image_ids: Sequence[int],
    categories: Categories,
    *,
    activation: Literal["softmax", "sigmoid"],
    max_detections: int = 100,
) -> list[Detections]:
    """Turn predictions into at most `max_detections` scored boxes for each image, best first.

    There is no score threshold and no suppression of overlaps, and boxes may reach over the image's border, all as in
    the reference. Costs one transfer to the host for the whole batch.

    Args:
        output: the last decoder layer's logits and boxes are read.
        orig_sizes_hw: height and width in pixels of each original image.
        image_ids: ids to put into the detections.
        categories: what each class index means.
        activation: `softmax`: each query gives its best class, the last logit being no-object. `sigmoid`: the best of
            all query-class pairs, so that a query can give several.
        max_detections: the most detections of one image.
    """
    if activation == "softmax":
        scores, labels, boxes_cxcywh = _best_class_of_each_query(output)
    else:
        scores, labels, boxes_cxcywh = _best_pairs(output, max_detections)
    sizes_hw = torch.tensor(orig_sizes_hw, dtype=torch.float32).view(-1, 2)
    scale = sizes_hw.flip(-1).repeat(1, 2).to(scores.device, non_blocking=True)
    boxes_xyxy = cxcywh_to_xyxy(boxes_cxcywh) * scale[:, None]
    table = torch.cat((boxes_xyxy, scores[..., None], labels[..., None].float()), dim=-1).cpu().numpy()

    category_ids = np.asarray(categories.ids, dtype=np.int64)
    detections = []
    for rows, image_id in zip(table, image_ids, strict=True):
        # Stable, so that equal scores keep the order of the queries, as in COCO's own evaluation.
        rows = rows[np.argsort(-rows[:, 4], kind="stable")[:max_detections]]
        detections.append(
            Detections(
                boxes_xyxy=np.ascontiguousarray(rows[:, :4]),
                scores=np.ascontiguousarray(rows[:, 4]),
                labels=category_ids[rows[:, 5].astype(np.int64)],
                image_id=image_id,
            )
        )
    return detections


_Selected = tuple[Float[Tensor, "B N"], Tensor, Float[Tensor, "B N 4"]]


def _best_class_of_each_query(output: ModelOutput) -> _Selected:
    scores, labels = output.pred_logits.float().softmax(-1)[..., :-1].max(-1)
    return scores, labels, output.pred_boxes.float()


def _best_pairs(output: ModelOutput, max_detections: int) -> _Selected:
    logits = output.pred_logits.float()
    num_classes = logits.shape[-1]
    flat = logits.flatten(1)
    best, index = flat.topk(min(max_detections, flat.shape[1]), dim=1)
    query = index.div(num_classes, rounding_mode="floor")
    boxes = output.pred_boxes.float().gather(1, query[..., None].expand(-1, -1, 4))
    return best.sigmoid(), index % num_classes, boxes
