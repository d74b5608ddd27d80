"""A bucket follows from an image's own size; few of them hold everything with little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cpu_time import CpuTime

from detronome.data.buckets import bucket_of, choose_buckets, padding_waste, parse_buckets
from detronome.errors import ConfigError

SIDES = st.integers(1, 1400)


def test_no_images_need_no_buckets() -> None:
    assert choose_buckets(np.zeros((0, 2), np.int64), 4) == ()
    assert padding_waste(np.zeros((0, 2), np.int64), ()) == 0.0


@given(sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=40), count=st.integers(1, 8))
def test_few_buckets_hold_every_image(sizes: list[tuple[int, int]], count: int) -> None:
    sizes_hw = np.array(sizes)
    buckets = choose_buckets(sizes_hw, count)
    assert 1 <= len(buckets) <= count
    assert buckets == choose_buckets(sizes_hw[::-1], count), "the order of the images has no say"
    for size in sizes:
        bucket = bucket_of(size, buckets)
        assert bucket in buckets and bucket[0] >= size[0] and bucket[1] >= size[1]
        assert all(b[0] * b[1] >= bucket[0] * bucket[1] for b in buckets if b[0] >= size[0] and b[1] >= size[1])
    assert 0.0 <= padding_waste(sizes_hw, buckets) < 1.0


def test_like_shapes_share_a_bucket() -> None:
    sizes = np.array([(480, 640)] * 50 + [(470, 630)] * 50 + [(640, 480)] * 50)
    assert choose_buckets(sizes, 2) == ((480, 640), (640, 480))
    assert padding_waste(sizes, choose_buckets(sizes, 2)) < 0.02 < padding_waste(sizes, choose_buckets(sizes, 1))


def test_an_image_that_no_bucket_holds_gets_its_own() -> None:
    assert bucket_of((33, 100), ((32, 128),)) == (64, 128)
    assert bucket_of((5, 7), ()) == (32, 32)


def test_shapes_are_read_from_texts() -> None:
    assert parse_buckets(["800x1344", " 64x32"]) == ((800, 1344), (64, 32))
    with pytest.raises(ConfigError, match="'800', '0x5': not a shape"):
        parse_buckets(["800", "32x32", "0x5"])


def test_many_shapes_take_no_time_worth_speaking_of() -> None:
    sizes = np.random.default_rng(0).integers(100, 1333, (4000, 2))
    with CpuTime() as spent:
        assert len(choose_buckets(sizes, 6)) == 6
    assert spent.seconds < 10, "25 s when every merge weighs all pairs again"
