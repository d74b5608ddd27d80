"""What is chosen of an image's objects before anything is written."""

import numpy as np

from detronome.api.predicting import _chosen
from detronome.types import Detections, PanopticPrediction, Segment


def test_objects_of_other_classes_are_left_out_of_the_panoptic_map_too() -> None:
    segments = tuple(Segment(id=n, category_id=10 * n, is_thing=True, area=2) for n in (1, 2, 3))
    found = Detections(
        boxes_xyxy=np.tile(np.array([0, 0, 2, 2], np.float32), (3, 1)),
        scores=np.array([0.9, 0.8, 0.7], np.float32),
        labels=np.array([10, 20, 30]),
        panoptic=PanopticPrediction(segment_ids=np.array([[0, 1, 2], [3, 2, 1]], np.int32), segments=segments),
    )
    chosen = _chosen(found, [10, 30], 1)
    assert chosen.labels.tolist() == [10] and chosen.panoptic is not None
    assert chosen.panoptic.segments == (segments[0], segments[2])
    assert chosen.panoptic.segment_ids.tolist() == [[0, 1, 0], [3, 0, 1]]
    assert chosen.panoptic.segment_ids.dtype == np.int32
