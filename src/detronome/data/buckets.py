"""Shape buckets: few fixed padded shapes, so that little is padded and kernels see the same sizes again and again.

Which bucket an image is padded to follows from its own size alone: neither its neighbours in a batch nor the way a
batch is cut have a say in what the model sees.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from detronome.errors import ConfigError

__all__ = ["Bucket", "bucket_of", "choose_buckets", "padding_waste", "parse_buckets"]

Bucket = tuple[int, int]
"""Padded height and width in pixels."""
_SHAPE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")
_STEP = 32
"""Sides are multiples of the coarsest stride of the usual backbones."""


def bucket_of(size_hw: tuple[int, int], buckets: tuple[Bucket, ...]) -> Bucket:
    """Return the smallest bucket that holds an image; an image that none holds gets one of its own.

    Args:
        size_hw: height and width of the image in pixels.
        buckets: the shapes to choose from.
    """
    height, width = size_hw
    holding = [bucket for bucket in buckets if bucket[0] >= height and bucket[1] >= width]
    return min(holding, key=lambda bucket: bucket[0] * bucket[1], default=(_rounded(height), _rounded(width)))


def choose_buckets(sizes_hw: Int64[np.ndarray, "N 2"], num_buckets: int) -> tuple[Bucket, ...]:
    """Return at most `num_buckets` shapes that hold all the images with little padding, the smallest first.

    Begins with every size as a bucket and, again and again, merges the two whose merging adds the fewest padded pixels.

    Args:
        sizes_hw: heights and widths of images after augmentation; a sample of some thousands will do.
        num_buckets: the most shapes wanted, at least 1.
    """
    if len(sizes_hw) == 0:
        return ()
    shapes, counts = np.unique(-(-sizes_hw // _STEP) * _STEP, axis=0, return_counts=True)
    shapes, weights = shapes.astype(np.float64), counts.astype(np.float64)
    added = np.stack([_added_pixels(shapes, weights, n) for n in range(len(shapes))])
    for _ in range(len(shapes) - num_buckets):
        first, second = sorted(divmod(int(added.argmin()), len(shapes)))
        shapes[first] = np.maximum(shapes[first], shapes[second])
        weights[first] += weights[second]
        weights[second] = 0.0
        added[first] = added[:, first] = _added_pixels(shapes, weights, first)
        added[second] = added[:, second] = np.inf
    found = sorted(
        {(int(h), int(w)) for h, w in shapes[weights > 0]}, key=lambda bucket: (bucket[0] * bucket[1], bucket)
    )
    return tuple(found)


def padding_waste(sizes_hw: Int64[np.ndarray, "N 2"], buckets: tuple[Bucket, ...]) -> float:
    """Return padded pixels that are not image, as a part of all padded pixels."""
    padded = sum(h * w for h, w in (bucket_of((int(h), int(w)), buckets) for h, w in sizes_hw))
    return 1.0 - float(sizes_hw.prod(axis=1).sum()) / padded if padded else 0.0


def parse_buckets(texts: Sequence[str]) -> tuple[Bucket, ...]:
    """Return buckets from texts like `800x1344`.

    Raises:
        ConfigError: a text is no shape; all of them at once.
    """
    matches = {text: _SHAPE.fullmatch(text.strip()) for text in texts}
    wrong = [text for text, match in matches.items() if match is None]
    if wrong:
        raise ConfigError(
            f"{', '.join(map(repr, wrong))}: not a shape", where="data.buckets", fix="write HEIGHTxWIDTH, e.g. 800x1344"
        )
    return tuple((int(match[1]), int(match[2])) for match in matches.values() if match)


def _added_pixels(
    shapes: Float64[np.ndarray, "S 2"], weights: Float64[np.ndarray, " S"], n: int
) -> Float64[np.ndarray, " S"]:
    """Return the pixels that merging shape `n` with each other adds; infinite for itself and those without weight."""
    areas = shapes.prod(axis=1) * weights
    added = np.maximum(shapes[n], shapes).prod(axis=1) * (weights[n] + weights) - areas[n] - areas
    added[weights == 0] = np.inf
    added[n] = np.inf
    return added


def _rounded(side: int) -> int:
    return -(-side // _STEP) * _STEP
