"""The panoptic maps of a split, one at a time: which pixel belongs to which annotated segment.

Maps are decoded where their image is loaded, and never kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int32

from detronome.data.coco.panoptic_map import read_segment_ids, rows_of_segments
from detronome.data.store.index import AnnotationIndex
from detronome.errors import DataError
from detronome.types import PanopticTruth

__all__ = ["PanopticMaps"]


class PanopticMaps:
    """Reads the maps of one split; pickles to two paths.

    Args:
        index: of the split's panoptic annotation file.
        maps_dir: the folder of the PNG files.
    """

    def __init__(self, index: AnnotationIndex, maps_dir: Path) -> None:
        self._index = index
        self._maps_dir = maps_dir

    def where(self, i: int) -> str:
        """Return the path of the map of image `i`."""
        return str(self._maps_dir / self._index.map_name(i))

    def rows(self, i: int) -> Int32[np.ndarray, "H W"]:
        """Return for each pixel of image `i` 1 + the place of its segment in `index.annotations(i)`; 0 is void.

        Raises:
            DataError: the map is missing, damaged, of another size than annotated, or its segments are not those that
                the annotation file lists.
        """
        return rows_of_segments(self._segment_ids(i), self._index.annotation_ids(i), self.where(i))

    def truth(self, i: int) -> PanopticTruth:
        """Return image `i` as panoptic quality is measured against.

        Raises:
            DataError: the map is missing, damaged or of another size than annotated.
        """
        _, labels, area, iscrowd = self._index.annotations(i)
        return PanopticTruth(
            segment_ids=self._segment_ids(i),
            ids=self._index.annotation_ids(i),
            category_ids=np.array(self._index.categories.ids, np.int64)[labels],
            areas=area.astype(np.int64),
            is_crowd=iscrowd,
            image_id=self._index.image(i).image_id,
        )

    def _segment_ids(self, i: int) -> Int32[np.ndarray, "H W"]:
        path = self._maps_dir / self._index.map_name(i)
        segment_ids = read_segment_ids(path)
        (height, width), expected_hw = segment_ids.shape, self._index.image(i).size_hw
        if (height, width) != expected_hw:
            raise DataError(
                f"the panoptic map cannot be used: it has {width}x{height} pixels (width x height), "
                f"but the annotation file says {expected_hw[1]}x{expected_hw[0]}",
                where=str(path),
                fix="export the maps again at the size of the images, or correct width and height",
            )
        return segment_ids
