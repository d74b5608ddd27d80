"""The command line: parse, call the api, render. No logic lives here."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit, as `detronome.cli.dispatch` says."""
    try:
        # Not at the top: whatever takes time is imported where Ctrl-C ends in a line instead of a traceback.
        import io

        from detronome.cli.dispatch import run

        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # names from data sets may not exist in the terminal's encoding
        run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(getattr(error, "exit_code", 130))
