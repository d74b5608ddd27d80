"""Pixels and boxes against DETR's recipe written down once more, in Pillow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detronome.config.schema import AugmentConfig
from detronome.data.augment.cpu import apply_to_boxes, apply_to_image
from detronome.data.augment.params import AugmentParams, draw, place
from detronome.data.build import augment_policy
from detronome.runtime.seeding import generator

DETR = augment_policy(AugmentConfig())
NO_BOXES = np.zeros((0, 4))


def photo(height: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Coarse noise, enlarged: edges and gradients as in a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()


def test_no_boxes() -> None:
    params = AugmentParams(
        size_hw=(10, 20), horizontal_flip=True, resize_hw=(50, 50), crop=(1, 2, 3, 4), final_hw=(8, 8)
    )
    boxes, keep = apply_to_boxes(NO_BOXES, params)
    assert boxes.shape == (0, 4) and keep.shape == (0,)


def test_nothing_to_do_copies_nothing() -> None:
    image = photo(20, 30)
    result = apply_to_image(image, AugmentParams(size_hw=(20, 30), final_hw=(20, 30)))
    assert result.shape == (3, 20, 30)
    assert result.data_ptr() == image.ctypes.data


def test_the_number_of_threads_changes_no_pixel() -> None:
    """A worker has one thread, the main process as many as the machine gives it."""
    threads = torch.get_num_threads()
    try:
        for seed in range(6):
            image = photo(540 + 7 * seed, 699, seed)
            hw = (image.shape[0], image.shape[1])
            params = AugmentParams(size_hw=hw, final_hw=hw, brightness=0.93, contrast=1.17, saturation=0.84)
            pictures = []
            for count in (1, 2, 3, 4):
                torch.set_num_threads(count)
                pictures.append(apply_to_image(image, params))
            assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    finally:
        torch.set_num_threads(threads)


def _pillow_size(size_wh: tuple[int, int], short: int, longest: int | None) -> tuple[int, int]:
    width, height = size_wh
    if longest is not None and max(size_wh) / min(size_wh) * short > longest:
        short = round(longest * min(size_wh) / max(size_wh))
    if min(size_wh) == short:
        return size_wh
    return (short, int(short * height / width)) if width < height else (int(short * width / height), short)


def _pillow_recipe(
    image: Image.Image, boxes: np.ndarray[Any, Any], u: list[float]
) -> tuple[Image.Image, np.ndarray[Any, Any], bool]:
    """DETR's training transforms on Pillow images, with the random numbers given: flip, crop or not, sizes, window."""

    def resize(short: int, longest: int | None) -> None:
        nonlocal image, boxes
        new = _pillow_size(image.size, short, longest)
        boxes = boxes * np.array([new[0] / image.width, new[1] / image.height] * 2)
        image = image.resize(new, Image.Resampling.BILINEAR)

    if u[0] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [image.width, 0, image.width, 0]
    cropped = u[2] < 0.5
    if cropped:
        resize((400, 500, 600)[int(u[4] * 3)], None)
        width = 384 + int(u[5] * (min(image.width, 600) - 384 + 1))
        height = 384 + int(u[6] * (min(image.height, 600) - 384 + 1))
        top = int(u[7] * (image.height - height + 1))
        left = int(u[8] * (image.width - width + 1))
        image = image.crop((left, top, left + width, top + height))
        boxes = boxes - [left, top, left, top]
        boxes = np.minimum(boxes.reshape(-1, 2, 2), [width, height]).clip(min=0)
        boxes = boxes[np.all(boxes[:, 1] > boxes[:, 0], axis=1)].reshape(-1, 4)
    resize(range(480, 801, 32)[int(u[3] * 11)], 1333)
    return image, boxes, cropped


@pytest.mark.parametrize("seed", range(24))
def test_the_recipe_equals_its_re_creation_in_pillow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size_hw = [(480, 640), (640, 427), (333, 500), (200, 600)][seed % 4]
    image = photo(*size_hw, seed)
    corners = rng.uniform(0, 1, (30, 2, 2)) * [size_hw[1], size_hw[0]]
    boxes = np.sort(corners, axis=1).reshape(-1, 4)

    params = draw(DETR, size_hw, generator("oracle", seed))
    pixels = apply_to_image(image, params).permute(1, 2, 0).numpy()
    mapped, keep = apply_to_boxes(boxes, params)

    draws = generator("oracle", seed).random(12).tolist()
    expected, expected_boxes, cropped = _pillow_recipe(Image.fromarray(image), boxes, draws)
    if not cropped:
        difference = np.abs(pixels.astype(int) - np.asarray(expected))
        assert difference.max() <= 2 and difference.mean() < 0.1
        assert keep.all()
        np.testing.assert_allclose(mapped, expected_boxes, rtol=0, atol=1e-9)
    else:
        pictures = Image.fromarray(pixels), expected
        # One resize of the window instead of two: its edges move by up to half a pixel of the photo.
        assert pixels.shape == np.asarray(expected).shape
        assert abs(keep.sum() - len(expected_boxes)) <= 1
        if keep.sum() == len(expected_boxes):
            height, width = params.final_hw
            window = place(params, size_hw).window
            half_pixel = 0.5 * max(width / window[3], height / window[2])
            np.testing.assert_allclose(mapped, expected_boxes, rtol=0, atol=2 * half_pixel + 1e-9)
        # Seen from afar it is the same picture.
        ours, theirs = (np.asarray(picture.resize((16, 16), Image.Resampling.BOX), int) for picture in pictures)
        assert np.abs(ours - theirs).mean() < 4


@settings(max_examples=200)
@given(size=st.tuples(st.integers(1, 700), st.integers(1, 700)), seed=st.integers(0, 10**6), part=st.floats(0.2, 1.0))
def test_every_box_against_an_oracle(size: tuple[int, int], seed: int, part: float) -> None:
    """Each box in turn, corner by corner, through the window that was cut; also on a reduced copy of the image."""
    params = draw(replace(DETR, vertical_flip=0.5), size, generator("oracle", seed))
    pixels_hw = (max(1, round(size[0] * part)), max(1, round(size[1] * part)))
    placement = place(params, pixels_hw)
    top, left, height, width = placement.window
    assert top >= 0 and left >= 0 and 1 <= height <= pixels_hw[0] - top and 1 <= width <= pixels_hw[1] - left

    corners = np.random.default_rng(seed).uniform(0, 1, (5, 2, 2)) * [size[1], size[0]]
    boxes = np.sort(corners, axis=1).reshape(-1, 4)
    mapped, keep = apply_to_boxes(boxes, params, pixels_hw)
    expected = []
    for x0, y0, x1, y1 in boxes:
        xs = [min(max(x * pixels_hw[1] / size[1] - left, 0.0), width) for x in (x0, x1)]
        ys = [min(max(y * pixels_hw[0] / size[0] - top, 0.0), height) for y in (y0, y1)]
        if params.crop is not None and (xs[0] >= xs[1] or ys[0] >= ys[1]):
            continue
        if params.horizontal_flip:
            xs = [width - xs[1], width - xs[0]]
        if params.vertical_flip:
            ys = [height - ys[1], height - ys[0]]
        final_height, final_width = params.final_hw
        x, y = final_width / width, final_height / height
        expected.append([xs[0] * x, ys[0] * y, xs[1] * x, ys[1] * y])
    assert keep.sum() == len(expected)
    np.testing.assert_allclose(mapped, np.array(expected).reshape(-1, 4), rtol=0, atol=1e-9)


def test_boxes_move_with_the_pixels() -> None:
    """A white rectangle on black stays within its box, whatever is done to both."""
    policy = augment_policy(AugmentConfig(vertical_flip=0.5, max_size=400, sizes=(200, 300), crop_px=(150, 300)))
    image = np.zeros((240, 320, 3), np.uint8)
    image[60:181, 100:181] = 255
    found = 0
    for seed in range(40):
        params = draw(policy, (240, 320), generator(seed))
        boxes, keep = apply_to_boxes(np.array([[100.0, 60.0, 181.0, 181.0]]), params)
        bright = apply_to_image(image, params)[0].numpy() > 127
        if not keep[0]:
            assert bright.sum() == 0
            continue
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(boxes[0], seen, atol=2.0)
        found += 1
    assert found > 30


def test_a_crop_drops_what_it_leaves_nothing_of() -> None:
    params = AugmentParams(size_hw=(50, 50), crop=(10, 10, 20, 20), final_hw=(40, 40))
    boxes = np.array([[0, 0, 10, 30], [0, 0, 11, 11], [12, 12, 20, 20], [30, 10, 35, 20]], np.float64)
    mapped, keep = apply_to_boxes(boxes, params)
    assert keep.tolist() == [False, True, True, False]
    assert mapped.tolist() == [[0, 0, 2, 2], [4, 4, 20, 20]]


def test_flips_are_exact() -> None:
    image = photo(6, 9)
    params = AugmentParams(size_hw=(6, 9), horizontal_flip=True, vertical_flip=True, final_hw=(6, 9))
    both = apply_to_image(image, params)
    np.testing.assert_array_equal(both.permute(1, 2, 0).numpy(), image[::-1, ::-1])
    assert apply_to_boxes(np.array([[0.0, 1.0, 2.0, 4.0]]), params)[0].tolist() == [[7.0, 2.0, 9.0, 5.0]]


@pytest.mark.parametrize("hw", [(1, 1), (1, 40), (40, 1), (1000, 3)])
def test_extreme_sizes_are_resized(hw: tuple[int, int]) -> None:
    assert apply_to_image(photo(9, 7), AugmentParams(size_hw=(9, 7), final_hw=hw)).shape == (3, *hw)


def test_colour_factors_do_what_they_say() -> None:
    image = photo(16, 16)
    grey = np.array([0.299, 0.587, 0.114])

    def jittered(**factors: Any) -> np.ndarray[Any, Any]:
        result = apply_to_image(image, AugmentParams(size_hw=(16, 16), final_hw=(16, 16), **factors))
        assert result.dtype == torch.uint8
        return result.permute(1, 2, 0).numpy().astype(float)

    np.testing.assert_allclose(jittered(brightness=0.5), image * 0.5, atol=0.51)
    np.testing.assert_allclose(jittered(brightness=3.0), np.minimum(image * 3.0, 255))
    assert np.ptp(jittered(contrast=0.0)) == 0
    np.testing.assert_allclose(jittered(contrast=0.0), (image @ grey).mean(), atol=0.51)
    np.testing.assert_allclose(jittered(saturation=0.0)[..., 0], image @ grey, atol=0.51)
    np.testing.assert_array_equal(image, photo(16, 16))


def test_boxes_follow_into_a_square() -> None:
    """A quarter of the picture stays that quarter, wherever the aspect goes."""
    square = augment_policy(AugmentConfig(sizes=(64,), square=True, crop="none", horizontal_flip=0.0))
    params = draw(square, (100, 400), generator("square"))
    image = np.zeros((100, 400, 3), np.uint8)
    image[50:, 100:300] = 255
    result = apply_to_image(image, params)
    boxes, _ = apply_to_boxes(np.array([[100.0, 50.0, 300.0, 100.0]]), params)
    assert result.shape == (3, 64, 64) and boxes.tolist() == [[16.0, 32.0, 48.0, 64.0]]
    assert (result[:, 34:, 18:46] == 255).all() and (result[:, :30] == 0).all() and (result[:, :, :14] == 0).all()
