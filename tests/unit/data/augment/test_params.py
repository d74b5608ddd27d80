"""The draws: DETR's sizes, each decision on its own, nothing shifted by another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.config.schema import AugmentConfig
from detronome.data.augment.params import AugmentParams, AugmentPolicy, draw, evaluation_params, resized_hw
from detronome.data.build import augment_policy
from detronome.runtime.seeding import generator

DETR = augment_policy(AugmentConfig())
SMALL = augment_policy(
    AugmentConfig(sizes=(128,), max_size=192, crop="fraction", crop_probability=1.0, brightness=0.2, contrast=0.3)
)
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


def many(policy: AugmentPolicy, size_hw: tuple[int, int] = (480, 640), count: int = 2000) -> list[AugmentParams]:
    return [draw(policy, size_hw, generator("test", i)) for i in range(count)]


@pytest.mark.parametrize(
    ("size_hw", "short_side", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1066)),
        ((640, 480), 800, 1333, (1066, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 640), 800, 1333, (625, 1333)),
        ((640, 300), 800, 1333, (1333, 625)),
        ((333, 500), 600, None, (600, 900)),
        ((800, 1000), 800, 1333, (800, 1000)),
        ((500, 500), 480, 1333, (480, 480)),
        ((1, 10_000), 800, 1333, (1, 10_000)),
        ((7, 10_000), 800, 1333, (1, 1428)),
    ],
)
def test_sizes_follow_the_reference(
    size_hw: tuple[int, int], short_side: int, max_size: int | None, expected: tuple[int, int]
) -> None:
    assert resized_hw(size_hw, short_side, max_size) == expected


@given(SIZES, st.integers(0, 10**6))
def test_any_image_gets_possible_geometry(size_hw: tuple[int, int], seed: int) -> None:
    for policy in (DETR, SMALL, replace(DETR, crop="none")):
        params = draw(policy, size_hw, generator(seed))
        before_crop = params.resize_hw or size_hw
        if params.crop:
            top, left, height, width = params.crop
            assert top >= 0 and height >= 1 and top + height <= before_crop[0]
            assert left >= 0 and width >= 1 and left + width <= before_crop[1]
        assert min(params.final_hw) >= 1
        assert min(evaluation_params(policy, size_hw).final_hw) >= 1


def test_the_recipe_has_the_references_proportions() -> None:
    drawn = many(DETR)
    cropped = [params for params in drawn if params.crop]
    assert 0.46 < len(cropped) / len(drawn) < 0.54
    assert 0.46 < np.mean([params.horizontal_flip for params in drawn]) < 0.54
    assert not any(params.vertical_flip for params in drawn)
    assert {min(params.resize_hw) for params in cropped if params.resize_hw} == {400, 500, 600}
    windows = np.array([params.crop[2:] for params in cropped if params.crop])
    assert windows.min() == 384 and windows.max() == 600
    whole = {params.final_hw[0] for params in drawn if not params.crop}
    assert whole == set(DETR.sizes)
    assert {params.brightness for params in drawn} == {1.0}


def test_both_ends_of_a_window_are_reached() -> None:
    tiny = replace(DETR, crop_probability=1.0, crop_resize=(4,), crop_px=(2, 3))
    drawn = many(tiny, (4, 4))
    assert {params.crop[2:] for params in drawn if params.crop} == {(2, 2), (2, 3), (3, 2), (3, 3)}
    assert {params.crop[:2] for params in drawn if params.crop and params.crop[2:] == (3, 3)} == {
        (0, 0), (0, 1), (1, 0), (1, 1)
    }  # fmt: skip


def test_a_window_is_never_larger_than_the_image() -> None:
    small = replace(DETR, crop_probability=1.0, crop_resize=(100,))
    assert {params.crop for params in many(small, (50, 50), 20)} == {(0, 0, 100, 100)}


def test_a_fraction_keeps_the_aspect() -> None:
    for params in many(SMALL, (300, 400), 200):
        assert params.crop is not None and params.resize_hw is None
        height, width = params.crop[2:]
        assert 180 <= height <= 300
        assert abs(width - height * 4 / 3) <= 1.5


def test_jitter_stays_in_its_range() -> None:
    drawn = many(SMALL)
    assert 0.8 <= min(p.brightness for p in drawn) < 0.81 and 1.19 < max(p.brightness for p in drawn) <= 1.2
    assert 0.7 <= min(p.contrast for p in drawn) < 0.72 and 1.28 < max(p.contrast for p in drawn) <= 1.3
    assert {p.saturation for p in drawn} == {1.0}


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"horizontal_flip": 1.0}, {"horizontal_flip"}),
        ({"vertical_flip": 1.0}, {"vertical_flip"}),
        ({"brightness": 0.5}, {"brightness"}),
        ({"crop": "none"}, {"resize_hw", "crop", "final_hw"}),
        ({"crop_resize": (450,)}, {"resize_hw", "crop", "final_hw"}),
        ({"sizes": (512,)}, {"final_hw"}),
    ],
)
def test_a_setting_leaves_the_other_decisions_as_they_were(change: dict[str, Any], touched: set[str]) -> None:
    for before, after in zip(many(DETR, count=50), many(replace(DETR, **change), count=50), strict=True):
        differing = {name for name in vars(before) if getattr(before, name) != getattr(after, name)}
        assert differing <= touched


def test_every_draw_takes_as_many_numbers() -> None:
    following = set()
    for policy in (DETR, SMALL, replace(DETR, crop="none", horizontal_flip=0.0)):
        rng = generator("same")
        draw(policy, (480, 640), rng)
        following.add(rng.random())
    assert len(following) == 1


def test_the_same_key_draws_the_same() -> None:
    assert draw(DETR, (480, 640), generator(1, 2)) == draw(DETR, (480, 640), generator(1, 2))
    assert draw(DETR, (480, 640), generator(1, 2)) != draw(DETR, (480, 640), generator(1, 3))


def test_evaluation_only_resizes() -> None:
    assert evaluation_params(DETR, (480, 640)) == AugmentParams(size_hw=(480, 640), final_hw=(800, 1066))


def test_squares_leave_the_aspect() -> None:
    """Whatever the image and its crop; and nothing else changes."""
    square = replace(SMALL, square=True)
    for size_hw in ((480, 640), (640, 480), (33, 2000), (128, 128)):
        kept, squared = many(SMALL, size_hw, 20), many(square, size_hw, 20)
        assert [replace(params, final_hw=(128, 128)) for params in kept] == squared
        assert evaluation_params(square, size_hw).final_hw == (square.eval_size, square.eval_size)
