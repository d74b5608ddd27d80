"""From masks to a panoptic map: every pixel of the original image to one query, or to none.

Shape letters: `K` kept queries of an image, `h w` height and width of the resized image, `H W` of the original one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from PIL import Image
from torch import Tensor

from detronome.types import Categories, ModelOutput, PanopticPrediction, Segment

__all__ = ["panoptic_postprocess"]

_LARGEST_DROPPED_PX = 4
_QUERIES_AT_ONCE = 16
"""Masks are wide while they are made: this many at a time keep what an image needs within bounds."""


def panoptic_postprocess(
    output: ModelOutput,
    sizes_hw: Sequence[tuple[int, int]],
    orig_sizes_hw: Sequence[tuple[int, int]],
    image_ids: Sequence[int],
    categories: Categories,
    *,
    min_score: float = 0.85,
) -> list[PanopticPrediction]:
    """Turn predictions into one segment for each confident query, and one for each kind of stuff.

    As the reference does it (arXiv 2005.12872, section 5), with its quirks. A pixel goes to the query with the largest
    mask logit, and queries of the same stuff class are merged. Then segments of 4 pixels or less are dropped and the
    map is made anew, until there are none; but these maps are made without the merging, and a merged query has no
    pixels of its own, so wherever something is dropped, pixels of merged stuff go to other queries.

    Where images are padded, masks are cut to the image; the reference squeezes the padded mask into the image's size,
    which is the same without padding alone.

    Args:
        output: the last decoder layer's logits and masks are read; the masks of confident queries alone are computed.
        sizes_hw: height and width in pixels of each image as the model saw it, unpadded.
        orig_sizes_hw: height and width in pixels of each original image: the size of its map.
        image_ids: ids to put into the predictions.
        categories: what each class index means; where it does not tell things from stuff, all are things.
        min_score: queries at or below this probability of their best class are left out.

    Returns:
        One prediction for each image. Segments are numbered from 1; without a confident query all is void.
    """
    scores, labels = output.pred_logits.float().softmax(-1).max(-1)
    table = torch.stack((scores, labels.float()), dim=-1).cpu().numpy()
    no_object = output.pred_logits.shape[-1] - 1

    predictions = []
    for b, rows in enumerate(table):
        queries = np.flatnonzero((rows[:, 1] != no_object) & (rows[:, 0] > min_score))
        found = rows[queries, 1].astype(np.int64).tolist()
        is_thing = [categories.is_thing is None or categories.is_thing[label] for label in found]
        masks = _masks(output, b, torch.from_numpy(queries).to(scores.device), sizes_hw[b])
        ids, places = _segments(masks, _merged(found, is_thing), orig_sizes_hw[b])
        areas = np.bincount(ids.ravel(), minlength=len(places) + 1)
        segments = tuple(
            Segment(
                id=number,
                category_id=categories.ids[found[place]],
                is_thing=is_thing[place],
                area=int(areas[number]),
                score=float(rows[queries[place], 0]),
            )
            for number, place in enumerate(places.tolist(), start=1)
        )
        predictions.append(PanopticPrediction(segment_ids=ids, segments=segments, image_id=image_ids[b]))
    return predictions


def _masks(
    output: ModelOutput, image: int, queries: Int64[Tensor, " K"], size_hw: tuple[int, int]
) -> Float[Tensor, "K h w"]:
    """Return the masks of some queries of an image, over the image as the model saw it."""
    assert output.masks is not None, "the model makes no masks"
    height, width = size_hw
    fitted = [queries.new_empty(0, height, width, dtype=torch.float32)]
    for some in queries.split(_QUERIES_AT_ONCE):
        logits = output.masks.of(torch.full_like(some, image), some)[:, None]
        padded = F.interpolate(logits, size=output.masks.padded_size_hw, mode="bilinear", align_corners=False)
        fitted.append(padded[:, 0, :height, :width])
    return torch.cat(fitted)


def _merged(labels: Sequence[int], is_thing: Sequence[bool]) -> Int64[np.ndarray, " K"]:
    """Return the query that each query is merged into: for stuff, the first of its class; for things, itself."""
    first: dict[int, int] = {}
    into = [
        k if thing else first.setdefault(label, k)
        for k, (label, thing) in enumerate(zip(labels, is_thing, strict=True))
    ]
    return np.array(into, np.int64)


def _segments(
    masks: Float[Tensor, "K h w"], merged: Int64[np.ndarray, " K"], orig_size_hw: tuple[int, int]
) -> tuple[Int32[np.ndarray, "H W"], Int64[np.ndarray, " N"]]:
    """Return the map, with segments numbered from 1, and the query of each segment."""
    places = np.arange(len(masks))
    winners = _winners(masks, orig_size_hw, merged)
    while len(places):
        is_large = np.bincount(winners.ravel(), minlength=len(places)) > _LARGEST_DROPPED_PX
        if is_large.all():
            return winners + 1, places
        places = places[is_large]
        winners = _winners(masks[torch.from_numpy(places).to(masks.device)], orig_size_hw, np.arange(len(places)))
    return np.zeros(orig_size_hw, np.int32), places


def _winners(
    masks: Float[Tensor, "K h w"], orig_size_hw: tuple[int, int], merged: Int64[np.ndarray, " K"]
) -> Int32[np.ndarray, "H W"]:
    """Return the query of each pixel of the original image."""
    if not len(masks):
        return np.zeros(orig_size_hw, np.int32)
    # The reference compares their softmax over the queries, which has the same order.
    winners = merged[masks.argmax(0).cpu().numpy()].astype(np.int32)
    resized = Image.fromarray(winners).resize((orig_size_hw[1], orig_size_hw[0]), Image.Resampling.NEAREST)
    return np.array(resized, np.int32)
