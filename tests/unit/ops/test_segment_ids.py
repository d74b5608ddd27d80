"""Segment ids and colours are two forms of the same map."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detronome.ops.segment_ids import LARGEST_SEGMENT_ID, colors_of_ids, ids_of_colors, run_starts


def test_an_empty_map_has_no_ids() -> None:
    assert ids_of_colors(np.zeros((0, 5, 3), np.uint8)).shape == (0, 5)
    assert colors_of_ids(np.zeros((0, 5), np.int32)).shape == (0, 5, 3)


def test_red_counts_one_green_256_and_blue_65536() -> None:
    colors = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [255, 255, 255]]], np.uint8)
    assert ids_of_colors(colors).tolist() == [[1, 256, 65536, LARGEST_SEGMENT_ID]]


@given(st.lists(st.integers(0, LARGEST_SEGMENT_ID), min_size=1, max_size=50))
def test_colours_hold_every_id(ids: list[int]) -> None:
    segment_ids = np.array([ids], np.int64)
    assert np.array_equal(ids_of_colors(colors_of_ids(segment_ids)), segment_ids)


def test_runs_begin_where_any_map_changes() -> None:
    empty = np.zeros((0, 3), np.int32)
    assert run_starts(empty).tolist() == []
    first = np.array([[1, 1, 2], [2, 2, 3]], np.int32)
    second = np.array([[5, 5, 5], [5, 6, 6]], np.int32)
    assert run_starts(first).tolist() == [0, 2, 5]
    assert run_starts(first, second).tolist() == [0, 2, 4, 5]
