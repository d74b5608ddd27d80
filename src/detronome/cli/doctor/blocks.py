"""How the doctor writes: blocks of text that fit a terminal, commands that stay on one line, plain lines in a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

from detronome.report.terminal import speaks_unicode

__all__ = ["block", "command", "field", "print_lines"]

LABEL_WIDTH = 7
_CONTROL = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f-\x9f]")
_NARROWEST = 30
"""Columns of text beside what is indented; on narrower terminals lines are broken by the terminal."""
_WIDEST = 120
_MEASURE = Console()


def print_lines(lines: Callable[[int | None, bool], Iterator[Text]]) -> None:
    """Print lines, made for the width of the terminal (None: a pipe) and for whether it shows more than ASCII."""
    console = Console(highlight=False, markup=False, emoji=False)
    for line in lines(_width(console), speaks_unicode(sys.stdout)):
        # An index or a broken package may have written it: nothing of that is for the terminal.
        line.plain = _CONTROL.sub(lambda found: " " * len(found[0]), line.plain)
        console.print(line, soft_wrap=True)


def _width(console: Console) -> int | None:
    """Return the columns of a terminal; None for a pipe, where each field is one line."""
    return min(console.width, _WIDEST) if console.is_terminal else None


def block(prefix: Text, body: Text, width: int | None) -> Iterator[Text]:
    """Yield prefix and body as one line, or as lines of the width with the body's beginnings under each other."""
    room = (width or 0) - prefix.cell_len
    if width is None or room < _NARROWEST:
        yield Text.assemble(prefix, body)
        return
    for place, line in enumerate(body.wrap(_MEASURE, room)):
        line.rstrip()
        yield Text.assemble(prefix if place == 0 else " " * prefix.cell_len, line)


def field(indent: str, label: str, text: str, width: int | None) -> Iterator[Text]:
    """Yield a labelled text; a `fix` is one line, to be copied."""
    prefix = Text(f"{indent}{label:<{LABEL_WIDTH}}", style="dim")
    if label == "fix":
        yield Text.assemble(prefix, command(text))
    else:
        yield from block(prefix, Text(text, style="dim" if label == "seen" else ""), width)


def command(text: str) -> Text:
    """Return a command to type, its comment paler."""
    if text.startswith("#"):
        return Text(text.removeprefix("#").strip())
    command, mark, comment = text.partition("   # ")
    return Text.assemble((command, "green"), (f"{mark}{comment}", "dim"))
