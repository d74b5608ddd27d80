from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detronome.errors import DataError
from detronome.report.pictures import class_color, draw_boxes, save_picture, side_by_side

GREY = np.full((480, 640, 3), 128, np.uint8)


def test_no_boxes_leave_the_picture_as_it_is() -> None:
    assert np.array_equal(draw_boxes(GREY, np.zeros((0, 4)), []), GREY)


@pytest.mark.parametrize(
    "box",
    [
        (700, 10, 800, 20),
        (-50, -50, -1, -1),
        (100, 100, 50, 120),
        (float("nan"), 0, 10, 10),
        (0, 0, float("inf"), 10),
    ],
)
def test_a_box_outside_or_of_no_size_is_not_drawn(box: tuple[float, ...]) -> None:
    assert np.array_equal(draw_boxes(GREY, np.array([box]), [0]), GREY)


@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (639, 479, 640, 480), (-20, -20, 2000, 2000), (300, 200, 300, 200), (0, 479, 640, 480)]
)
def test_boxes_at_the_border_and_of_one_pixel_are_seen(box: tuple[float, ...]) -> None:
    drawn = draw_boxes(GREY, np.array([box], float), [0], names={0: "a"}, scores=[0.5])
    assert drawn.shape == GREY.shape
    assert drawn.dtype == np.uint8
    assert (drawn == class_color(0)).all(axis=2).sum() > 20


@pytest.mark.parametrize(
    ("size_hw", "drawn_hw"), [((96, 128), (384, 512)), ((1, 1), (480, 480)), ((500, 10), (500, 10))]
)
def test_small_pictures_are_enlarged_by_a_whole_factor(size_hw: tuple[int, int], drawn_hw: tuple[int, int]) -> None:
    image = np.zeros((*size_hw, 3), np.uint8)
    assert draw_boxes(image, np.zeros((0, 4)), []).shape[:2] == drawn_hw
    assert draw_boxes(image, np.array([[0.0, 0.0, 1.0, 1.0]]), [3], names={3: "a long name"}).shape[:2] == drawn_hw


def test_the_image_itself_is_not_changed_and_may_be_read_only() -> None:
    image = GREY.copy()
    image.flags.writeable = False
    draw_boxes(image, np.array([[10.0, 10, 50, 50]]), [1])
    assert np.array_equal(image, GREY)


def test_the_label_does_not_cover_a_lone_object() -> None:
    inside = draw_boxes(GREY, np.array([[200.0, 200, 400, 400]]), [0], names={0: "cell"})[210:390, 210:390]
    assert (inside == 128).all()


def test_a_crowd_is_drawn_without_labels_over_labels() -> None:
    boxes = np.tile(np.array([[300.0, 200, 340, 240]]), (300, 1))
    assert draw_boxes(GREY, boxes, np.arange(300)).shape == GREY.shape


def test_colors_are_stable_and_distinct() -> None:
    colors = [class_color(label) for label in range(91)]
    assert colors == [class_color(label) for label in range(91)]
    assert len(set(colors)) == 91
    own = draw_boxes(GREY, np.array([[200.0, 200, 400, 400]]), [7], colors={7: (1, 2, 3)})
    assert (own == (1, 2, 3)).all(axis=2).any()
    assert class_color(-1)


def test_side_by_side_is_wider_and_stacks_what_is_wide() -> None:
    beside = side_by_side(GREY, GREY)
    assert beside.shape[1] > 1280 and 480 < beside.shape[0] < 530
    wide = np.zeros((100, 900, 3), np.uint8)
    assert side_by_side(wide, wide).shape[1] == 900
    assert side_by_side(GREY, GREY[::2, ::2]).shape == beside.shape


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.png", "PNG")])
def test_the_extension_chooses_the_format(tmp_path: Path, name: str, kind: str) -> None:
    save_picture(GREY, tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.size) == (kind, (640, 480))


def test_an_unknown_extension_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be written as \.bmp"):
        save_picture(GREY, tmp_path / "a.bmp")
