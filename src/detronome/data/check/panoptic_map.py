"""What the segments in a panoptic map measure.

Shape letters: `S` the ids in a map, `R` runs of equal pixels in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from detronome.data.coco.panoptic_map import measure_ids
from detronome.ops.segment_ids import ids_of_colors

__all__ = ["MapSegments", "measure_map"]


@dataclass(frozen=True)
class MapSegments:
    """The segments in a map, by ascending id; unlabelled pixels are left out."""

    ids: Int64[np.ndarray, " S"]
    areas: Int64[np.ndarray, " S"]
    """Pixels."""
    boxes_xywh: Int64[np.ndarray, "S 4"]
    """Pixels."""

    def row_of(self, segment_id: int) -> int | None:
        """Return where a segment stands, or None for one without pixels."""
        row = int(np.searchsorted(self.ids, segment_id))
        return row if row < len(self.ids) and self.ids[row] == segment_id else None


def measure_map(colours: UInt8[np.ndarray, "H W 3"]) -> MapSegments:
    """Return ids, areas and boxes of a map's segments."""
    ids, areas, boxes_xyxy = measure_ids(ids_of_colors(colours))
    labelled = ids != 0
    low, high = np.hsplit(boxes_xyxy[labelled], 2)
    return MapSegments(ids[labelled], areas[labelled], np.hstack([low, high - low]))
