"""Headers tell what decoding will give, for every EXIF orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detronome.data.formats.images import ImageHeader, is_image_name, list_images, read_headers, to_stored, to_upright
from detronome.data.formats.problems import LabelProblems
from detronome.data.store.decode import decode_image, read_image
from detronome.errors import DataError

ORIENTATIONS = range(1, 9)


def header_of(file: Path) -> ImageHeader:
    problems = LabelProblems(file.parent)
    headers = read_headers([file], problems)
    problems.raise_if_any()
    return headers[file]


def test_no_files_have_no_headers(tmp_path: Path) -> None:
    problems = LabelProblems(tmp_path)
    assert read_headers([], problems) == {}
    assert not problems
    assert list_images(tmp_path) == []


def test_images_are_listed_in_a_fixed_order_with_their_folders(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.jpeg", "a.txt", ".hidden.jpg", "jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == ["a.png", "b.JPG", "sub/c.jpeg"]
    assert not is_image_name("x/.a.jpg")


def test_all_unreadable_images_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_text("no image")
    problems = LabelProblems(tmp_path)
    assert read_headers([tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg"], problems) == {}
    with pytest.raises(DataError, match="image files cannot be read") as caught:
        problems.raise_if_any()
    assert all(name in caught.value.problems[0].where for name in ("a.jpg: ", "b.jpg: ", "c.jpg: No such file"))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_header_says_what_is_decoded(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    Image.new("RGB", (24, 16)).save(file, exif=exif)
    header = header_of(file)
    content = file.read_bytes()
    assert decode_image(content, "a").shape[:2] == header.upright_hw
    assert decode_image(content, "a", header.stored_hw).shape[:2] == header.stored_hw
    assert header.turn(header.stored_hw) == header.orientation
    assert header.orientation == (1 if suffix == "tif" else orientation)


def test_real_files(shared_data: Path) -> None:
    for name in ("Landscape_6.jpg", "orientation_rectangle.jpg", "hopper.gif", "l_trns.png", "invalid-exif.jpg"):
        (file,) = (shared_data / "odd_images").rglob(name)
        assert read_image(file).shape[:2] == header_of(file).upright_hw


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_box_is_turned_with_the_pixels(orientation: int, tmp_path: Path) -> None:
    stored = np.zeros((10, 14, 3), np.uint8)
    x, y, w, h = 2, 3, 5, 4
    stored[y : y + h, x : x + w] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    x, y, w, h = map(int, to_upright([x, y, w, h], (10, 14), orientation))
    assert upright[y : y + h, x : x + w].min() == 255
    assert (upright == 255).sum() == w * h * 3


@given(
    box=st.lists(st.integers(-100, 100), min_size=4, max_size=4),
    size_hw=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    orientation=st.sampled_from(ORIENTATIONS),
)
def test_turning_there_and_back(box: list[int], size_hw: tuple[int, int], orientation: int) -> None:
    assert to_stored(to_upright(box, size_hw, orientation), size_hw, orientation) == box
