"""How much a GPU's memory is taken beyond what tensors ask for: torch's caching allocator, played over a trace.

The rules are those of `c10/cuda/CUDACachingAllocator.cpp` in torch 2: tensors up to 1 MiB come from segments of 2 MiB,
those below 10 MiB from segments of 20 MiB, larger ones get a segment of their own size, rounded up to 2 MiB; the
smallest free block that is large enough is taken and what is left of it stays free, if it is worth it; free neighbours
become one. Segments are never given back.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["reserved_bytes"]

_MIB = 2**20
_LARGEST_SMALL = _MIB
_SMALL_SEGMENT = 2 * _MIB
_LARGE_SEGMENT = 20 * _MIB
_OWN_SEGMENT = 10 * _MIB
_SMALLEST_BLOCK = 512


def reserved_bytes(movements: Iterable[tuple[int, int]]) -> int:
    """Return the bytes that the allocator has taken from the device in the end.

    Args:
        movements: a tensor's number, and its bytes, a multiple of 512, negative when it goes; in order.
    """
    small, large = _Pool(is_small=True), _Pool(is_small=False)
    taken: dict[int, tuple[_Pool, _Block]] = {}
    for number, size in movements:
        if size > 0:
            pool = small if size <= _LARGEST_SMALL else large
            taken[number] = pool, pool.take(size)
        elif number in taken:
            pool, block = taken.pop(number)
            pool.give_back(block)
    return small.reserved + large.reserved


@dataclass(eq=False)
class _Block:
    start: int
    size: int
    is_free: bool = False
    before: _Block | None = None
    after: _Block | None = None


@dataclass
class _Pool:
    is_small: bool
    reserved: int = 0
    _free: list[tuple[int, int]] = field(default_factory=list)
    """Size and start of free blocks, ascending."""
    _at: dict[int, _Block] = field(default_factory=dict)
    """Free blocks by start; the segments lie one behind the other."""

    def take(self, size: int) -> _Block:
        place = bisect_left(self._free, (size, -1))
        block = self._remove(place) if place < len(self._free) else self._new_segment(size)
        left = block.size - size
        if left >= _SMALLEST_BLOCK if self.is_small else left > _LARGEST_SMALL:
            rest = _Block(block.start + size, left, before=block, after=block.after)
            if block.after is not None:
                block.after.before = rest
            block.size, block.after = size, rest
            self._add(rest)
        return block

    def give_back(self, block: _Block) -> None:
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.is_free:
                self._remove(bisect_left(self._free, (neighbour.size, neighbour.start)))
                first, second = sorted((block, neighbour), key=lambda b: b.start)
                first.size, first.after = first.size + second.size, second.after
                if second.after is not None:
                    second.after.before = first
                block = first
        self._add(block)

    def _new_segment(self, size: int) -> _Block:
        if self.is_small:
            length = _SMALL_SEGMENT
        elif size < _OWN_SEGMENT:
            length = _LARGE_SEGMENT
        else:
            length = -(-size // _SMALL_SEGMENT) * _SMALL_SEGMENT
        block = _Block(self.reserved, length)
        self.reserved += length
        return block

    def _add(self, block: _Block) -> None:
        block.is_free = True
        self._at[block.start] = block
        insort(self._free, (block.size, block.start))

    def _remove(self, place: int) -> _Block:
        _, start = self._free.pop(place)
        block = self._at.pop(start)
        block.is_free = False
        return block
