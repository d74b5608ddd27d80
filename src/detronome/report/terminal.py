"""What the stream that is written to can show."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

__all__ = ["is_live", "speaks_unicode"]


def is_live(console: Console, file: TextIO) -> bool:
    """Return whether a line can be drawn again and again.

    FORCE_COLOR makes rich call a pipe a terminal; a live line there would fill a log with control codes.
    """
    try:
        return console.is_terminal and not console.is_dumb_terminal and file.isatty()
    except (AttributeError, ValueError):  # no file at all, or a closed one
        return False


def speaks_unicode(file: TextIO) -> bool:
    """Return whether more than ASCII can be written; a stream that does not say its encoding is taken to."""
    return (getattr(file, "encoding", None) or "utf-8").lower().startswith("utf")
