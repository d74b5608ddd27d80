"""Numbers as people read them: durations, sizes, metrics. Nothing here raises; a missing number is a dash."""

from __future__ import annotations

import math
from numbers import Real
from typing import TypeGuard

from detronome.runtime.files import format_size

__all__ = ["clean_text", "format_bytes", "format_count", "format_duration", "format_fixed", "format_significant"]

_MISSING = "-"


def format_fixed(value: float | None, digits: int = 3) -> str:
    """Return the value with this many decimals, e.g. an AP as `0.412`."""
    return f"{value:.{digits}f}" if _is_number(value) else _MISSING


def format_significant(value: float | None, digits: int = 3) -> str:
    """Return the value to this many significant digits without needless zeros, e.g. a learning rate as `2e-4`."""
    if not _is_number(value):
        return _MISSING
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{decimals}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_count(value: float | None) -> str:
    """Return a large count in short, e.g. `41.5M`."""
    if not _is_number(value):
        return _MISSING
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            divisor = 1e3 if suffix == "k" else limit
            return f"{format_significant(value / divisor)}{suffix}"
    return f"{value:,.0f}"


def format_bytes(value: float | None) -> str:
    """Return bytes in the unit that reads best, e.g. `3.2 KiB`, `512 MiB` or `18.0 GiB`."""
    return format_size(value) if _is_number(value) else _MISSING


def format_duration(seconds: float | None) -> str:
    """Return a duration as `0:42`, `12:05`, `3:07:12` or `2d 03:07`."""
    if not _is_number(seconds) or seconds < 0:
        return _MISSING
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        days, hour = divmod(hours, 24)
        return f"{days}d {hour:02d}:{minute:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def clean_text(text: object) -> str:
    """Return the text on one line without control characters, so that no name can steer a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())


def _is_number(value: float | None) -> TypeGuard[float]:
    return isinstance(value, float | int | Real) and math.isfinite(value)
