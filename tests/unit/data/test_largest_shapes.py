import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detronome.config.schema import AugmentConfig
from detronome.data.augment.params import AugmentPolicy, draw, evaluation_params, resized_hw
from detronome.data.buckets import bucket_of
from detronome.data.collate import group_by_shape
from detronome.data.largest_shapes import (
    _resized,
    evaluation_sizes,
    largest_eval_shape,
    largest_training_shape,
    training_sizes,
)

DETR = AugmentPolicy(**asdict(AugmentConfig()))
SMALL = replace(
    DETR,
    sizes=(8, 11, 16),
    max_size=27,
    crop_resize=(7, 10),
    crop_px=(6, 12),
    crop_fraction=(0.4, 0.9),
    eval_size=14,
    eval_max_size=20,
)
SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4)
CROPS = st.sampled_from(
    [
        replace(SMALL, crop="none"),
        *(replace(SMALL, crop=crop, crop_probability=p) for crop in ("detr", "fraction") for p in (0.0, 0.5, 1.0)),
        replace(SMALL, crop="fraction", square=True),
    ]
)
BUCKETS = st.sampled_from([(), ((16, 16), (16, 32), (32, 32)), ((64, 8),), ((100, 100), (20, 12))])


def array(sizes_hw: list[tuple[int, int]]) -> np.ndarray:
    return np.array(sizes_hw, np.int32).reshape(-1, 2)


def tuples(sizes_hw: np.ndarray) -> set[tuple[int, int]]:
    return {(height, width) for height, width in sizes_hw.tolist()}


class Drawn:
    """A generator that draws the numbers it is given; the others are 0.5."""

    def __init__(self, **numbers: float) -> None:
        self.numbers = {int(name[1:]): number for name, number in numbers.items()}

    def random(self, count: int) -> np.ndarray:
        return np.array([self.numbers.get(n, 0.5) for n in range(count)])


def all_draws(policy: AugmentPolicy, sizes_hw: list[tuple[int, int]], fineness: int) -> set[tuple[int, int]]:
    """Every size that any draw gives, up to the fineness of the window's sides."""
    fine = ((np.arange(fineness) + 0.5) / fineness).tolist()
    sides = [(np.arange(n) + 0.5) / n for n in (len(policy.sizes), len(policy.crop_resize))]
    windows = list(itertools.product(fine, fine if policy.crop == "detr" else [0.5]))
    found = set()
    for size_hw, crops, u3, u4 in itertools.product(sizes_hw, (0.0, 1 - 2**-53), *sides):
        for u5, u6 in windows:
            params = draw(policy, size_hw, Drawn(u2=crops, u3=u3, u4=u4, u5=u5, u6=u6))  # type: ignore[arg-type]
            found.add(params.final_hw)
            if params.crop is None:
                break
    return found


def area(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]


@pytest.mark.parametrize("crop", ["none", "detr", "fraction"])
def test_no_images_have_no_sizes(crop) -> None:  # type: ignore[no-untyped-def]
    policy = replace(DETR, crop=crop)
    assert training_sizes(policy, array([])).shape == evaluation_sizes(policy, array([])).shape == (0, 2)
    for buckets in ((), ((32, 32),)):
        assert largest_training_shape(policy, array([]), buckets, num_images=4) is None
        assert largest_eval_shape(policy, array([]), buckets) is None


def test_the_recipe_of_detr() -> None:
    landscape, mixed = array([(480, 640)]), array([(480, 640), (640, 480), (375, 500)])
    whole = replace(DETR, crop="none")
    assert largest_training_shape(whole, landscape, (), num_images=2) == (800, 1066)
    assert largest_training_shape(whole, mixed, (), num_images=2) == (1066, 1066), "both orientations can meet"
    # A window of 384x600 is enlarged to 800x1250.
    assert largest_training_shape(DETR, landscape, (), num_images=1) == (1250, 800)
    assert largest_training_shape(DETR, landscape, (), num_images=2) == (1250, 1250)
    assert largest_eval_shape(DETR, mixed, ()) == (1066, 800)
    assert largest_eval_shape(DETR, mixed, ((800, 1088), (1088, 800), (2000, 2000))) == (1088, 800)


@settings(max_examples=25)
@given(CROPS, SIZES)
def test_sizes_of_windows_are_all_that_can_be_drawn_and_no_more(
    policy: AugmentPolicy, sizes_hw: list[tuple[int, int]]
) -> None:
    sizes_hw = sizes_hw[:2]
    listed = tuples(training_sizes(policy, array(sizes_hw)))
    # Between the smallest and the largest side of a `detr` window lie 7; fractions change a window in finer steps.
    assert all_draws(policy, sizes_hw, 7 if policy.crop == "detr" else 1000) == listed


@given(CROPS, SIZES, BUCKETS, st.integers(1, 4), st.integers(0, 2**32))
def test_no_step_is_larger(
    policy: AugmentPolicy,
    sizes_hw: list[tuple[int, int]],
    buckets: tuple[tuple[int, int], ...],
    num_images: int,
    seed: int,
) -> None:
    largest = largest_training_shape(policy, array(sizes_hw), buckets, num_images=num_images)
    assert largest is not None
    rng = np.random.default_rng(seed)
    for _ in range(20):
        drawn = [draw(policy, sizes_hw[rng.integers(len(sizes_hw))], rng).final_hw for _ in range(num_images)]
        for shape, _members in group_by_shape(drawn, buckets):
            assert area(shape) <= area(largest)


@settings(max_examples=25)
@given(CROPS, SIZES, BUCKETS)
def test_the_largest_step_can_really_occur(
    policy: AugmentPolicy, sizes_hw: list[tuple[int, int]], buckets: tuple[tuple[int, int], ...]
) -> None:
    sizes_hw = sizes_hw[:2]
    drawn = all_draws(policy, sizes_hw, 7 if policy.crop == "detr" else 1000)
    alone = {bucket_of(size, buckets) for size in drawn} if buckets else drawn
    one = largest_training_shape(policy, array(sizes_hw), buckets, num_images=1)
    assert one in alone and area(one) == max(map(area, alone))
    if not buckets:
        together = (max(h for h, _ in drawn), max(w for _, w in drawn))
        assert largest_training_shape(policy, array(sizes_hw), buckets, num_images=2) == together


@given(SIZES, BUCKETS)
def test_the_largest_evaluation_batch(sizes_hw: list[tuple[int, int]], buckets: tuple[tuple[int, int], ...]) -> None:
    final = [evaluation_params(SMALL, size).final_hw for size in sizes_hw]
    shapes = {bucket_of(size, buckets) for size in final} if buckets else set(final)
    largest = largest_eval_shape(SMALL, array(sizes_hw), buckets)
    assert largest in shapes and area(largest) == max(map(area, shapes))


@given(
    st.lists(st.tuples(st.integers(1, 10000), st.integers(1, 10000)), min_size=1, max_size=20),
    st.integers(1, 2000),
    st.none() | st.integers(1, 3000),
)
def test_many_sizes_are_resized_as_one_is(
    sizes_hw: list[tuple[int, int]], short_side: int, max_size: int | None
) -> None:
    many = _resized(array(sizes_hw).astype(np.int64), short_side, max_size)
    assert [tuple(size) for size in many.tolist()] == [resized_hw(size, short_side, max_size) for size in sizes_hw]
