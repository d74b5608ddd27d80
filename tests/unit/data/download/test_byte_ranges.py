"""The ranges behave as the set of positions that they stand for."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from detronome.data.download.byte_ranges import ByteRange, ByteRanges

SIZE = 40
pairs = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=12)


def test_nothing_is_there_at_first() -> None:
    ranges = ByteRanges()
    assert (ranges.num_bytes, ranges.to_list(), ranges.missing(0, 5), ranges.missing(3, 3)) == (0, [], [(0, 5)], [])


@given(pairs, st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)))
def test_ranges_are_a_set_of_positions(added: list[ByteRange], window: ByteRange) -> None:
    ranges = ByteRanges(added)
    positions = {position for start, end in added for position in range(start, end)}
    listed = ranges.to_list()
    assert {position for start, end in listed for position in range(start, end)} == positions
    assert ranges.num_bytes == len(positions)
    assert all(first[1] < second[0] for first, second in pairwise(listed))
    missing = ranges.missing(*window)
    assert {position for start, end in missing for position in range(start, end)} == set(range(*window)) - positions
    assert all(start < end for start, end in missing)
