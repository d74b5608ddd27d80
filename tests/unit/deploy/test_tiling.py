"""Each object of a large image is found once, whatever the tiles; objects side by side stay apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detronome.deploy.tiling import TiledPredictor, View, merge_views, tile_windows
from detronome.errors import ConfigError
from detronome.types import Detections

Box = tuple[float, float, float, float]


def detections(boxes: Sequence[Box], labels: Sequence[int] | None = None, scores: Sequence[float] = ()) -> Detections:
    return Detections(
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores or [0.9] * len(boxes), np.float32),
        labels=np.array([1] * len(boxes) if labels is None else labels, np.int64),
    )


class KnownObjects:
    """A detector that sees the part of each object that a tile shows. It finds out which tile it was given from the
    pixels: each holds its own position."""

    def __init__(self, boxes: Sequence[Box], labels: Sequence[int], least_px: float = 0.0) -> None:
        self.boxes, self.labels, self.least_px = boxes, labels, least_px
        self.num_views = 0

    @staticmethod
    def image(height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[:height, :width]
        return np.stack([y // 256 * 16 + x // 256, y % 256, x % 256], axis=2).astype(np.uint8)

    def predict(self, images: Sequence[np.ndarray]) -> list[Detections]:
        self.num_views += len(images)
        return [self._see(image) for image in images]

    def _see(self, tile: np.ndarray) -> Detections:
        first = tile[0, 0].astype(int)
        top, left = int(first[0]) // 16 * 256 + first[1], int(first[0]) % 16 * 256 + first[2]
        offset = np.array([left, top, left, top])
        limits = np.array([tile.shape[1], tile.shape[0]] * 2)
        seen = [np.clip(np.array(box) - offset, 0, limits) for box in self.boxes]
        shown = [i for i, box in enumerate(seen) if min(box[2] - box[0], box[3] - box[1]) > self.least_px]
        return detections([tuple(seen[i]) for i in shown], [self.labels[i] for i in shown])


def found_in(predictor: TiledPredictor, image: np.ndarray) -> Detections:
    (found,) = predictor.predict([image])
    return found


def assert_same_objects(found: Detections, boxes: Sequence[Box], labels: Sequence[int]) -> None:
    got = sorted(
        (int(label), *box) for label, box in zip(found.labels, found.boxes_xyxy.round(2).tolist(), strict=True)
    )
    wanted = sorted((label, *box) for label, box in zip(labels, boxes, strict=True))
    assert len(got) == len(wanted), f"{got} instead of {wanted}"
    np.testing.assert_allclose(np.array(got), np.array(wanted), atol=0.02)


def test_no_objects() -> None:
    predictor = TiledPredictor(KnownObjects([], []), tile_hw=(64, 64))
    found = found_in(predictor, KnownObjects.image(200, 150))
    assert len(found) == 0 and found.boxes_xyxy.shape == (0, 4)
    assert predictor.predict([]) == []
    assert len(merge_views([], (10, 10))) == 0


def test_a_small_image_goes_to_the_model_as_it_is() -> None:
    model = KnownObjects([(1, 2, 30, 40)], [1])
    assert len(found_in(TiledPredictor(model, tile_hw=(64, 64)), KnownObjects.image(64, 50))) == 1
    assert model.num_views == 1


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(16, 700), st.integers(16, 700), st.floats(0, 0.9))
def test_tiles_cover_the_image_and_overlap_as_asked(
    height: int, width: int, tile_height: int, tile_width: int, overlap: float
) -> None:
    if (height / tile_height) * (width / tile_width) / (1 - overlap) ** 2 > 3000:
        return
    windows = tile_windows((height, width), (tile_height, tile_width), overlap)
    assert len(set(windows)) == len(windows)
    for axis, length, tile in ((0, width, tile_width), (1, height, tile_height)):
        spans = sorted({(window[axis], window[axis + 2]) for window in windows})
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(end - start == min(tile, length) for start, end in spans)
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= overlap * tile
    rows = {window[1] for window in windows}
    columns = {window[0] for window in windows}
    assert len(windows) == len(rows) * len(columns)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[int, int, tuple[int, int], float, list[Box], list[int]]:
    """Objects that do not touch each other, none larger than the overlap of the tiles."""
    height, width = draw(st.integers(100, 700)), draw(st.integers(100, 700))
    tile_hw = draw(st.integers(48, 300)), draw(st.integers(48, 300))
    overlap = draw(st.floats(0.15, 0.6))
    largest = int(overlap * min(tile_hw))
    cell = largest + 2
    boxes: list[Box] = []
    for top in range(0, height - cell, cell):
        for left in range(0, width - cell, cell):
            if len(boxes) < 40 and draw(st.booleans()):
                w, h = (draw(st.floats(3.0, largest)) for _ in range(2))
                x, y = left + draw(st.floats(0, 1)) * (largest - w), top + draw(st.floats(0, 1)) * (largest - h)
                boxes.append((round(x, 2), round(y, 2), round(x + w, 2), round(y + h, 2)))
    labels = [draw(st.integers(1, 2)) for _ in boxes]
    return height, width, tile_hw, overlap, boxes, labels


@settings(max_examples=80)
@given(scenes(), st.booleans(), st.sampled_from([0.0, 1.5, 6.0]))
def test_every_object_is_found_exactly_once(scene: tuple, with_whole: bool, least_px: float) -> None:
    height, width, tile_hw, overlap, boxes, labels = scene
    wanted = [i for i, box in enumerate(boxes) if min(box[2] - box[0], box[3] - box[1]) > max(least_px, 1.0)]
    boxes, labels = [boxes[i] for i in wanted], [labels[i] for i in wanted]
    predictor = TiledPredictor(
        KnownObjects(boxes, labels, least_px), tile_hw=tile_hw, overlap=overlap, with_whole=with_whole
    )
    assert_same_objects(found_in(predictor, KnownObjects.image(height, width)), boxes, labels)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(90, 400), st.integers(90, 400), st.booleans())
def test_an_object_larger_than_the_overlap_is_put_together(
    left: int, top: int, w: int, h: int, with_whole: bool
) -> None:
    box = (left, top, min(left + w, 500), min(top + h, 450))
    predictor = TiledPredictor(KnownObjects([box], [5]), tile_hw=(160, 160), overlap=0.25, with_whole=with_whole)
    assert_same_objects(found_in(predictor, KnownObjects.image(450, 500)), [box], [5])


@given(st.data())
def test_nothing_leaves_the_image_and_nothing_is_invented(data: st.DataObject) -> None:
    """Arbitrary boxes from arbitrary views: a result lies inside the image, with a class and score that was found."""
    views = []
    for window in tile_windows((120, 150), (64, 64), 0.3):
        corners = st.tuples(*[st.floats(-40, 120, width=32)] * 4)
        boxes = data.draw(st.lists(corners, max_size=4))
        labels = data.draw(st.lists(st.integers(1, 2), min_size=len(boxes), max_size=len(boxes)))
        scores = data.draw(st.lists(st.floats(0, 1, width=32), min_size=len(boxes), max_size=len(boxes)))
        views.append(View(window, detections(boxes, labels, scores)))
    merged = merge_views(views, (120, 150))
    assert (merged.boxes_xyxy >= 0).all() and (merged.boxes_xyxy <= [150, 120, 150, 120]).all()
    assert (merged.boxes_xyxy[:, 2:] > merged.boxes_xyxy[:, :2]).all()
    assert (np.diff(merged.scores) <= 0).all()
    assert len(merged) <= sum(len(view.detections) for view in views)
    given_scores = {float(score) for view in views for score in view.detections.scores}
    assert {float(score) for score in merged.scores} <= given_scores


def test_classes_are_never_merged() -> None:
    views = [
        View((0, 0, 100, 100), detections([(60, 10, 90, 40)], [1])),
        View((50, 0, 150, 100), detections([(10, 10, 40, 40)], [2])),
    ]
    assert sorted(merge_views(views, (100, 150)).labels.tolist()) == [1, 2]


def test_what_one_tile_tells_apart_stays_apart() -> None:
    """Two overlapping objects of a class, seen whole by both tiles: an ordinary suppression would drop one."""
    both = [(60, 10, 90, 40), (66, 10, 96, 40)]
    views = [
        View((0, 0, 100, 100), detections(both, scores=[0.9, 0.6])),
        View((50, 0, 150, 100), detections([(x0 - 50, y0, x1 - 50, y1) for x0, y0, x1, y1 in both], scores=[0.7, 0.8])),
    ]
    merged = merge_views(views, (100, 150))
    assert_same_objects(merged, both, [1, 1])
    assert merged.scores.tolist() == pytest.approx([0.9, 0.8])


def test_a_weak_second_guess_does_not_take_the_place_of_the_object() -> None:
    """Detection transformers often give an object twice, once with a low score and by chance with the better box."""
    views = [
        View((0, 0, 100, 100), detections([(60, 10, 90, 40), (61, 12, 92, 43)], scores=[0.9, 0.02])),
        View((50, 0, 150, 100), detections([(11, 12, 42, 43)], scores=[0.8])),
    ]
    assert (merge_views(views, (100, 150)).scores > 0.5).sum() == 1


def test_the_view_that_shows_an_object_whole_gives_its_box() -> None:
    cut = View((0, 0, 100, 100), detections([(80, 10, 100, 40)], scores=[0.95]))
    whole = View((50, 0, 150, 100), detections([(31, 11, 80, 41)], scores=[0.6]))
    merged = merge_views([cut, whole], (100, 150))
    assert merged.boxes_xyxy.tolist() == [[81, 11, 130, 41]]
    assert merged.scores.tolist() == pytest.approx([0.6])


def test_a_loose_piece_inside_a_larger_box_is_part_of_it() -> None:
    """The tile's guess at the end of an object is poor: too small to agree, but where the object is."""
    cut = View((0, 0, 100, 100), detections([(90, 20, 100, 30)]))
    whole = View((50, 0, 150, 100), detections([(30, 10, 80, 60)]))
    assert_same_objects(merge_views([cut, whole], (100, 150)), [(80, 10, 130, 60)], [1])
    unsure = View((50, 0, 150, 100), detections([(30, 10, 80, 60)], scores=[0.02]))
    assert len(merge_views([cut, unsure], (100, 150))) == 2, "a confident piece is not lost in a guess"


def test_the_whole_image_is_asked_for_large_objects_only() -> None:
    """A small object that no tile sees is a mistake of the view that sees it worst."""

    class Whole(KnownObjects):
        def _see(self, tile: np.ndarray) -> Detections:
            return super()._see(tile) if tile.shape[1] == 300 else detections([])

    boxes, image = [(10, 10, 30, 25), (40, 40, 200, 60)], KnownObjects.image(100, 300)
    found = found_in(TiledPredictor(Whole(boxes, [1, 1]), tile_hw=(80, 100), overlap=0.3), image)
    assert_same_objects(found, boxes[1:], [1])


@pytest.mark.parametrize(("tile", "overlap"), [(8, 0.2), (64, 0.95), (64, -0.1), (64, float("nan"))])
def test_tiles_that_make_no_sense_are_refused(tile: int, overlap: float) -> None:
    with pytest.raises(ConfigError):
        TiledPredictor(KnownObjects([], []), tile_hw=(tile, 64), overlap=overlap)
