"""A small chart made of characters: eight dots in each, or, without Unicode, one star."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["text_chart"]

_BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot, by row and column within a character (Unicode 3.0, block Braille Patterns)."""


def text_chart(
    x: Sequence[float],
    y: Sequence[float],
    *,
    width: int,
    height: int,
    low: float | None = None,
    is_unicode: bool = True,
) -> list[str]:
    """Return `height` lines of `width` characters that show a curve; no point gives blank lines.

    Args:
        x: of the points, rising.
        y: of the points, finite.
        width: in characters.
        height: in characters.
        low: the lower end at most; by default the smallest value.
        is_unicode: whether dots may be used.
    """
    if not x or width < 1 or height < 1:
        return [" " * width for _ in range(height)]
    rows, columns = (4 * height, 2 * width) if is_unicode else (height, width)
    bottom = min(y) if low is None else min(low, *y)
    x_span, y_span = (x[-1] - x[0]) or 1.0, (max(y) - bottom) or 1.0
    dots: set[tuple[int, int]] = set()
    before: tuple[int, int] | None = None
    for x_one, y_one in zip(x, y, strict=True):
        column = round((x_one - x[0]) / x_span * (columns - 1))
        row = rows - 1 - round((y_one - bottom) / y_span * (rows - 1))
        dots.update(_line(before or (column, row), (column, row)))
        before = column, row
    if not is_unicode:
        return ["".join("*" if (column, row) in dots else " " for column in range(columns)) for row in range(rows)]
    return ["".join(_character(dots, column, row) for column in range(width)) for row in range(height)]


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (round(start[0] + (end[0] - start[0]) * i / steps), round(start[1] + (end[1] - start[1]) * i / steps))
        for i in range(steps + 1)
    ]


def _character(dots: set[tuple[int, int]], column: int, row: int) -> str:
    bits = sum(
        _DOTS[down][right] for down in range(4) for right in range(2) if (2 * column + right, 4 * row + down) in dots
    )
    return chr(_BRAILLE + bits) if bits else " "
