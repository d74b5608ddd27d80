"""The command line: parse, call the api, render. No logic lives here."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a mistake that the message explains, 128 + number after a signal."""
    try:
        # Not at the top: whatever takes time is imported where Ctrl-C ends in a line instead of a traceback.
        import io

        from detronome.cli.commands import run

        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # names from data sets may not exist in the terminal's encoding
        run(arguments)
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(getattr(error, "exit_code", EXIT_INTERRUPTED))
