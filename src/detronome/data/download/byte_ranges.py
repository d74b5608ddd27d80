"""A set of byte positions as sorted, disjoint, half-open ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

__all__ = ["ByteRange", "ByteRanges"]

ByteRange = tuple[int, int]
"""The first byte, and the byte after the last."""


class ByteRanges:
    """Which bytes of a file are there."""

    def __init__(self, ranges: Iterable[ByteRange] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    @property
    def num_bytes(self) -> int:
        """How many bytes are there."""
        return sum(self._ends) - sum(self._starts)

    def add(self, start: int, end: int) -> None:
        """Add the bytes from `start` up to `end`; ranges that touch become one."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def missing(self, start: int, end: int) -> list[ByteRange]:
        """Return the ranges between `start` and `end` that are not there, ascending."""
        gaps = []
        for have_start, have_end in self.to_list():
            if have_end > start and have_start < end:
                if have_start > start:
                    gaps.append((start, have_start))
                start = max(start, have_end)
        if start < end:
            gaps.append((start, end))
        return gaps

    def to_list(self) -> list[ByteRange]:
        """Return the ranges, ascending."""
        return list(zip(self._starts, self._ends, strict=True))
