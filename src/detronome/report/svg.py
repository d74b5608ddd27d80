"""An SVG document of matplotlib as an element of a page: it scales with its container, in the page's colours.

Colours are written as CSS variables (`--series-0` ... `--series-7`, with fallbacks) and text as `currentColor`.
"""

from __future__ import annotations

import re
from html import escape

__all__ = ["ALARM", "FALLBACK_COLORS", "GRID", "TEXT", "inline", "series_color", "with_own_ids"]

FALLBACK_COLORS = ("#3b78d8", "#e07b28", "#2a9d74", "#9a64d4", "#d6486f", "#1f97ab", "#a98412", "#7c8694")
"""The colours of curves where a page does not set `--series-0` to `--series-7`: readable on white and on black."""

# Colours that stand for CSS until the SVG is written; no data can contain them, only style attributes are replaced.
TEXT = "#0a0c00"
GRID = "#0a0c01"
ALARM = "#0a0c02"
_SERIES = "#0a0b{:02x}"


def series_color(number: int) -> str:
    """Return what to draw the series of this number with; numbers beyond the last colour begin again."""
    return _SERIES.format(number % len(FALLBACK_COLORS))


def inline(document: str, description: str) -> str:
    """Return the SVG element alone, scaling with its container, in the page's colours."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to them, and a page holds many charts
    view_box = re.search(r'viewBox="([^"]*)"', svg)
    assert view_box is not None
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view_box[1]}" role="img" aria-label="{escape(description)}">'
    )
    svg = opening + svg[svg.index(">") + 1 :]

    def to_css(match: re.Match[str]) -> str:
        number = int(match[2], 16)
        return f"{match[1]}var(--series-{number}, {FALLBACK_COLORS[number]})"

    svg = re.sub(r"((?:fill|stroke): ?)#0a0b([0-9a-f]{2})", to_css, svg)
    page_colors = {TEXT: "currentColor", GRID: "var(--chart-grid, #8884)", ALARM: "var(--alarm, #d6336c)"}
    for sentinel, css in page_colors.items():
        svg = re.sub(rf"((?:fill|stroke): ?){sentinel}", rf"\g<1>{css}", svg)
    return svg.strip()


def with_own_ids(svg: str, prefix: str) -> str:
    """Return the element with its ids, and what refers to them, behind a prefix: equal charts can share a page."""

    def renamed(tag: re.Match[str]) -> str:
        return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}", tag[0])

    return re.sub(r"<[^>]+>", renamed, svg)
