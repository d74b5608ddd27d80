"""The outlines of annotations as columns: polygons and run-length codes measured, never kept.

Whole columns at once: outlines are decoded some thousands at a time, reduced to bounds, areas and flags, and let go.
The area of a run-length code follows from its counts alone, so no mask is ever drawn.

Shape letters: `A` annotations, `P` polygons of a chunk, `N` numbers or points of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from itertools import chain
from typing import Annotated

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

__all__ = ["SegmentKind", "Segments", "measure_segments"]

_CHUNK = 16_384
_EMPTY = (b"[]", b"null", b"{}", b'""')
_FIRST_CHARACTER, _LAST_CHARACTER = 48, 111
"""Of a compressed run-length code: six bits each, counted from `0`."""


class SegmentKind(IntEnum):
    """How an annotation is outlined."""

    NONE = 0
    POLYGONS = 1
    RLE = 2
    UNREADABLE = 3


@dataclass(frozen=True, kw_only=True)
class Segments:
    """What the outlines of a file's annotations measure, in the file's order."""

    kind: UInt8[np.ndarray, " A"]
    bounds_xyxy: Float64[np.ndarray, "A 4"]
    """Of all polygons of the annotation, in pixels; NaN where there is none."""
    area: Float64[np.ndarray, " A"]
    """Square pixels: the sum over the polygons, or the pixels of the run-length code; NaN where there is neither."""
    has_odd_polygon: Bool[np.ndarray, " A"]
    has_short_polygon: Bool[np.ndarray, " A"]
    """A polygon of fewer than three points."""
    rle_hw: Float64[np.ndarray, "A 2"]
    """The mask size that a run-length code names; NaN for others."""
    rle_pixels: Float64[np.ndarray, " A"]
    """The sum of its counts; NaN for others, and where the counts cannot be read."""


_Whole = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class _Rle(msgspec.Struct, gc=False):
    counts: list[_Whole] | str
    size: tuple[_Whole, _Whole]


_Outline = list[list[float]] | _Rle
_decode_one = msgspec.json.Decoder(_Outline).decode
_decode_many = msgspec.json.Decoder(list[_Outline]).decode


def measure_segments(encoded: Sequence[bytes | msgspec.Raw]) -> Segments:
    """Return the measures of outlines, each given as the JSON text of `segmentation`."""
    chunks = [_measure_chunk(encoded[start : start + _CHUNK]) for start in range(0, len(encoded), _CHUNK)]
    chunks = chunks or [_nothing(0)]
    return Segments(**{f.name: np.concatenate([getattr(chunk, f.name) for chunk in chunks]) for f in fields(Segments)})


def _nothing(count: int) -> Segments:
    return Segments(
        kind=np.zeros(count, np.uint8),
        bounds_xyxy=np.full((count, 4), np.nan),
        area=np.full(count, np.nan),
        has_odd_polygon=np.zeros(count, np.bool_),
        has_short_polygon=np.zeros(count, np.bool_),
        rle_hw=np.full((count, 2), np.nan),
        rle_pixels=np.full(count, np.nan),
    )


def _measure_chunk(encoded: Sequence[bytes | msgspec.Raw]) -> Segments:
    measures = _nothing(len(encoded))
    texts = [bytes(text) for text in encoded]
    filled = [row for row, text in enumerate(texts) if text not in _EMPTY]
    outlines = _decode([texts[row] for row in filled])
    polygons: list[tuple[int, list[list[float]]]] = []
    codes: list[tuple[int, _Rle]] = []
    for row, outline in zip(filled, outlines, strict=True):
        if isinstance(outline, list):
            polygons.append((row, outline))
        elif outline is not None:
            codes.append((row, outline))
        else:
            measures.kind[row] = SegmentKind.UNREADABLE
    if polygons:
        _measure_polygons(measures, polygons)
    if codes:
        _measure_codes(measures, codes)
    return measures


def _decode(texts: list[bytes]) -> Sequence[_Outline | None]:
    """Return the outlines, None for one that is not of a COCO form."""
    try:
        return _decode_many(b"[" + b",".join(texts) + b"]")
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return [_decode_or_none(text) for text in texts]


def _decode_or_none(text: bytes) -> _Outline | None:
    try:
        return _decode_one(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _measure_polygons(measures: Segments, outlines: list[tuple[int, list[list[float]]]]) -> None:
    rows = np.array([row for row, _ in outlines])
    measures.kind[rows] = SegmentKind.POLYGONS
    row_of_polygon = np.repeat(rows, [len(outline) for _, outline in outlines])
    polygons = [polygon for _, outline in outlines for polygon in outline]
    counts = np.fromiter(map(len, polygons), np.int64, len(polygons))
    numbers = np.fromiter(chain.from_iterable(polygons), np.float64, int(counts.sum()))
    measures.has_odd_polygon[row_of_polygon[counts % 2 == 1]] = True
    measures.has_short_polygon[row_of_polygon[counts < 6]] = True

    even = _without_last_of_odd(numbers, counts)
    num_points = counts // 2
    row_of_polygon, num_points = row_of_polygon[num_points > 0], num_points[num_points > 0]
    if not len(num_points):
        return
    x, y = even[0::2], even[1::2]
    starts = np.concatenate(([0], np.cumsum(num_points)[:-1]))
    with np.errstate(over="ignore", invalid="ignore"):
        area = _shoelace(x, y, starts, num_points)
    # Polygons of one annotation follow each other.
    first = np.concatenate(([0], np.flatnonzero(np.diff(row_of_polygon)) + 1))
    of = row_of_polygon[first]
    measures.area[of] = np.add.reduceat(area, first)
    for column, reduce, values in ((0, np.minimum, x), (1, np.minimum, y), (2, np.maximum, x), (3, np.maximum, y)):
        measures.bounds_xyxy[of, column] = reduce.reduceat(reduce.reduceat(values, starts), first)


def _without_last_of_odd(
    numbers: Float64[np.ndarray, " N"], counts: Int64[np.ndarray, " P"]
) -> Float64[np.ndarray, " M"]:
    odd = counts % 2 == 1
    return np.delete(numbers, np.cumsum(counts)[odd] - 1) if odd.any() else numbers


def _shoelace(
    x: Float64[np.ndarray, " N"],
    y: Float64[np.ndarray, " N"],
    starts: Int64[np.ndarray, " P"],
    num_points: Int64[np.ndarray, " P"],
) -> Float64[np.ndarray, " P"]:
    following = np.arange(1, len(x) + 1)
    following[starts + num_points - 1] = starts
    return np.abs(np.add.reduceat(x * y[following] - x[following] * y, starts)) / 2


def _measure_codes(measures: Segments, codes: list[tuple[int, _Rle]]) -> None:
    rows = np.array([row for row, _ in codes])
    measures.kind[rows] = SegmentKind.RLE
    measures.rle_hw[rows] = np.array([code.size for _, code in codes], np.float64)
    for row, code in codes:
        counts = _decompressed(code.counts) if isinstance(code.counts, str) else code.counts
        if counts is not None:
            measures.rle_pixels[row] = sum(counts)
            measures.area[row] = sum(counts[1::2])


def _decompressed(text: str) -> list[int] | None:
    """Return the lengths of the runs, background first, or None where the text is no such code.

    A character holds 5 bits, low bits first, and whether more follow; from the fourth on, a run is written as its
    difference to the last but one.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for code in text.encode(errors="replace"):
        if not _FIRST_CHARACTER <= code <= _LAST_CHARACTER or shift > 60:
            return None
        bits = code - _FIRST_CHARACTER
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    return counts if shift == 0 and min(counts, default=0) >= 0 else None
