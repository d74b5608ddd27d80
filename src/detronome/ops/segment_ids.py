"""Segment ids as the colours of a PNG, as COCO's panoptic maps hold them: red + 256 green + 65536 blue; 0 is void.

Source: COCO's panoptic format, https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, Integer, UInt8

__all__ = ["LARGEST_SEGMENT_ID", "colors_of_ids", "ids_of_colors"]

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
