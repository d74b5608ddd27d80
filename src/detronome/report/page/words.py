"""How the page writes what several of its parts say."""

from __future__ import annotations

__all__ = ["STATES", "percent", "plural"]

STATES = {
    "finished": ("finished", "good"),
    "early_stop": ("stopped early", "good"),
    "interrupted": ("interrupted", "warn"),
    "not ended": ("not ended", "warn"),
}
"""What became of a run, and in which tone that is said."""


def percent(share: float | None) -> str:
    """Return a share of 0-1 as `12.5%`; a dash where it is not known."""
    return "-" if share is None else f"{100 * share:.1f}%"


def plural(count: int, one: str, several: str) -> str:
    """Return the count with its noun."""
    return f"{count:,} {one if count == 1 else several}"
