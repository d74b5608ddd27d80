"""Segment ids as the colours of a PNG, as COCO's panoptic maps hold them: red + 256 green + 65536 blue; 0 is void.

Shape letter: `R` runs of equal pixels.

Source: COCO's panoptic format, https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt8

__all__ = ["LARGEST_SEGMENT_ID", "colors_of_ids", "ids_of_colors", "run_starts"]

LARGEST_SEGMENT_ID = 256**3 - 1


def ids_of_colors(colors: UInt8[np.ndarray, "H W 3"]) -> Int32[np.ndarray, "H W"]:
    """Return the segment id of each pixel of a map."""
    # The three bytes of a colour and one of zero are the bytes of its id.
    padded = np.zeros((*colors.shape[:2], 4), np.uint8)
    padded[..., :3] = colors
    return padded.view("<i4")[..., 0].astype(np.int32, copy=False)


def colors_of_ids(segment_ids: Integer[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return the colours of a map; ids must be from 0 to `LARGEST_SEGMENT_ID`."""
    ids = segment_ids.astype(np.uint32)
    return np.stack([ids & 255, (ids >> 8) & 255, ids >> 16], axis=-1).astype(np.uint8)


def run_starts(*maps: Int32[np.ndarray, "H W"]) -> Int64[np.ndarray, " R"]:
    """Return where, in maps of one size read row by row, runs of pixels begin that are equal in each of them.

    A map has some thousands of runs, and hundred times as many pixels.
    """
    is_start = np.zeros(maps[0].size, np.bool_)
    is_start[:1] = True
    for flat in (each.ravel() for each in maps):
        is_start[1:] |= flat[1:] != flat[:-1]
    return np.flatnonzero(is_start)
