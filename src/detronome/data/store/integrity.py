"""What a file's own structure says of its completeness, where decoders do not look: JPEG markers, PNG checksums."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Literal

__all__ = [
    "JpegProcess",
    "declared_size_hw",
    "has_end_marker",
    "has_zeroed_data",
    "jpeg_process",
    "png_damage",
    "with_end_marker",
]

JpegProcess = Literal["sequential", "progressive", "arithmetic"]

_START_OF_SCAN, _HUFFMAN_TABLES, _END_OF_IMAGE = 0xDA, 0xC4, 0xD9
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
"""Frames with Huffman codes. Decoders of arithmetic codes go on with zeros where the data ends, without a word."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_HUFFMAN_TABLES, 0xC8, 0xCC}
_MARKER = re.compile(rb"\xff+([\x02-\xcf\xd9-\xfe])")
"""All but those without a body: stuffed zeros (00), restarts (D0-D7), starts (D8), and 01."""
_ZEROS = bytes(64)

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_GIF_MAGIC = (b"GIF87a", b"GIF89a")


def jpeg_process(content: bytes) -> JpegProcess | None:
    """Return how a JPEG is coded, or None for another kind of file."""
    if content.startswith(b"\xff\xd8"):
        for marker, _, _ in _segments(content):
            if marker in _FRAMES:
                return "arithmetic" if marker > 0xC8 else "progressive" if marker in (0xC2, 0xC6) else "sequential"
    return None


def has_end_marker(content: bytes) -> bool:
    """Return whether a JPEG's end marker follows its pixels, whatever may come behind it."""
    return content.endswith(b"\xff\xd9") or any(marker == _END_OF_IMAGE for marker, _, _ in _segments(content))


def with_end_marker(content: bytes) -> bytes | None:
    """Return a JPEG with the end marker that it lacks, or None where more than the marker is missing.

    All scans must have begun; whether the last one is complete, strict decoding of what is returned tells.
    """
    bits_left: dict[int, bytearray] = {}
    is_sequential = False
    for marker, body, _ in _segments(content):
        if marker in _FRAMES:
            is_sequential = marker in _SEQUENTIAL
            if not is_sequential and marker != _PROGRESSIVE:
                return None
            bits_left = {component: bytearray(b"\xff" * 64) for component in body[6::3]}
        elif marker == _START_OF_SCAN and body and len(body) == 4 + 2 * body[0]:
            first, last, bits = (0, 63, 0) if is_sequential else (body[-3], min(body[-2], 63), body[-1] & 15)
            for component in set(body[1:-3:2]) & bits_left.keys():
                bits_left[component][first : last + 1] = bytes([bits]) * (last + 1 - first)
    if not bits_left or any(any(bits) for bits in bits_left.values()):
        return None
    return content.rstrip(b"\xff") + b"\xff\xd9"


def has_zeroed_data(content: bytes) -> bool:
    """Return whether part of a JPEG's compressed pixels was overwritten with zeros, as lost disk blocks are.

    Zeros are valid Huffman codes, so a decoder may get through them. Where the shortest code does not end a block, as
    in the tables that most encoders use, they mean blocks full of the same number, which no encoder writes. Other
    tables and progressive files are not judged: there zeros may stand for an even surface.
    """
    if _ZEROS not in content:
        return False
    shortest: dict[int, int] = {}
    for marker, body, end in _segments(content):
        if marker in _FRAMES and marker not in _SEQUENTIAL:
            return False
        if marker == _HUFFMAN_TABLES:
            shortest.update(_shortest_codes(body))
        elif marker == _START_OF_SCAN and body:
            zeros = content.find(_ZEROS, end)
            if zeros < 0:
                return False
            tables = [selector & 15 for selector in body[2 : 2 + 2 * body[0] : 2]]
            if any(shortest.get(table) for table in tables) and _MARKER.search(content, end, zeros) is None:
                return True
    return False


def png_damage(content: bytes) -> str | None:
    """Return what contradicts the checksums in a PNG file, or None. Decoders skip those of the pixels."""
    view, place = memoryview(content), len(_PNG_MAGIC)
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4])
        end = place + 12 + length
        if end > len(content):
            return f"it is truncated: {end - len(content)} bytes are missing"
        if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
            return f"the checksum of its part {content[place + 4 : place + 8]!r} is wrong"
        if content[place + 4 : place + 8] == b"IEND":
            break
        place = end
    return None


def declared_size_hw(content: bytes) -> tuple[int, int] | None:
    """Return height and width in pixels as the header of a JPEG, PNG or GIF says, or None."""
    if content.startswith(_PNG_MAGIC) and len(content) >= 24:
        return int.from_bytes(content[20:24]), int.from_bytes(content[16:20])
    if content.startswith(_GIF_MAGIC) and len(content) >= 10:
        return int.from_bytes(content[8:10], "little"), int.from_bytes(content[6:8], "little")
    if content.startswith(b"\xff\xd8"):
        for marker, body, _ in _segments(content):
            if marker in _FRAMES and len(body) >= 5:
                return int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
    return None


def _segments(content: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield (marker, body, offset behind it) of a JPEG's segments, the end marker's too; pixels are passed over."""
    place = 2
    while found := _MARKER.search(content, place):
        marker, place = found[1][0], found.end()
        if marker == _END_OF_IMAGE:
            yield marker, b"", place
            return
        end = place + max(2, int.from_bytes(content[place : place + 2]))
        yield marker, content[place + 2 : end], end
        place = end


def _shortest_codes(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield (table number, symbol of the code that is all zeros) of the AC tables in a segment of Huffman tables."""
    place = 0
    while place + 17 < len(body):
        kind, counts = body[place], body[place + 1 : place + 17]
        if kind >> 4 == 1:
            yield kind & 15, body[place + 17]
        place += 17 + sum(counts)
