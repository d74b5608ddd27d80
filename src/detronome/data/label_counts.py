"""The labels of a split in numbers that a page can draw: how many of which class, how crowded, how large."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from detronome.data.stats import split_stats
from detronome.data.store.index import AnnotationIndex

__all__ = ["label_counts"]

_MAX_BINS = 60
_LARGEST_PX = 2.0**17


def label_counts(index: AnnotationIndex) -> dict[str, Any]:
    """Return plain data for JSON; histograms are `counts` between the edges `bins`, crowd regions aside.

    Objects per image have whole numbers as edges: a bin holds what is at least its left edge and below its right one.
    Box sizes are square roots of areas, in pixels of the image on disk, in bins that grow by the square root of 2;
    boxes without width or height are in none.
    """
    stats = split_stats("", index)
    sides_px = index.boxes_xywh[index.is_object, 2:]
    with np.errstate(over="ignore"):
        sizes_px = np.sqrt(np.prod(sides_px[(sides_px > 0).all(axis=1)], axis=1)).clip(1.0, _LARGEST_PX)
    per_image = index.num_objects_per_image
    return {
        "num_images": stats.images,
        "num_objects": stats.objects,
        "objects_per_image": _histogram(per_image, _whole_edges(int(per_image.max(initial=0)))),
        "classes": [{"name": one.name, "num_objects": one.objects, "num_images": one.images} for one in stats.classes],
        "box_size_px": _histogram(sizes_px, _growing_edges(sizes_px)),
        "areas": {"small": stats.small, "medium": stats.medium, "large": stats.large},
    }


def _whole_edges(most: int) -> Float64[np.ndarray, " E"]:
    return np.unique(np.linspace(0, most + 1, min(most + 1, _MAX_BINS) + 1).round())


def _growing_edges(sizes_px: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " E"]:
    if len(sizes_px) == 0:
        return np.zeros(0)
    first, last = (int(np.floor(2 * np.log2(size))) for size in (sizes_px.min(), sizes_px.max()))
    edges: Float64[np.ndarray, " E"] = 2.0 ** (np.arange(first, last + 2) / 2)
    return edges


def _histogram(
    values: Float64[np.ndarray, " N"] | Int64[np.ndarray, " N"], edges: Float64[np.ndarray, " E"]
) -> dict[str, list[Any]]:
    if len(edges) == 0:
        return {"bins": [], "counts": []}
    return {"bins": edges.round(2).tolist(), "counts": np.histogram(values, edges)[0].tolist()}
