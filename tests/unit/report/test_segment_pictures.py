"""Pictures of panoptic maps."""

from __future__ import annotations

import numpy as np

from detronome.report.pictures import class_color, draw_segments
from detronome.types import Segment


def test_a_map_without_segments_leaves_the_picture_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (500, 600, 3), np.uint8)
    np.testing.assert_array_equal(draw_segments(image, np.zeros((500, 600), np.int32), []), image)


def test_segments_are_tinted_and_void_is_not() -> None:
    image = np.full((480, 640, 3), 128, np.uint8)
    ids = np.zeros((480, 640), np.int32)
    ids[:, :200], ids[:, 200:400] = 7, 3
    segments = [_segment(7, 1, 96_000), _segment(3, 1, 96_000)]
    picture = draw_segments(image, ids, segments, names={1: "cat"})
    assert (picture[:, 420:] == 128).all()
    left, middle = picture[5, 50].astype(int), picture[5, 250].astype(int)
    wanted = 0.45 * 128 + 0.55 * np.array(class_color(1))
    assert np.abs(left - wanted).max() <= 1
    assert np.abs(left - middle).max() > 5, "two cats must differ"
    assert (picture[5, 200] == 255).all() and (picture[5, 400] == 255).all()
    assert len(np.unique(picture[220:260, 60:140].reshape(-1, 3), axis=0)) > 3, "no name is written"


def test_small_images_are_enlarged_and_tiny_segments_drawn() -> None:
    image, ids = np.zeros((20, 30, 3), np.uint8), np.ones((20, 30), np.int32)
    ids[3, 4] = 2
    picture = draw_segments(image, ids, [_segment(1, 5, 599), _segment(2, 6, 1)], with_scores=False)
    assert picture.shape == (320, 480, 3)


def _segment(id_: int, category_id: int, area: int) -> Segment:
    return Segment(id=id_, category_id=category_id, is_thing=True, area=area, score=0.9)
