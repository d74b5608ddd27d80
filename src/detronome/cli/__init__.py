"""The command line: parse, call the api, render. No logic lives here, and no torch is imported for `--help`."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from detronome.errors import ConfigError, DetronomeError

__all__ = ["app", "main"]

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

app = App(
    name="detronome",
    help="Train, evaluate and deploy detection transformers (DETR) on COCO-format data.",
    help_epilogue="Begin with: detronome demo",
    version_flags=["--version"],
    print_error=False,
    exit_on_error=False,
)
app.command("detronome.cli.demo:demo", help="Embedded data: train, evaluate, pictures, report, in minutes on a CPU.")
app.command("detronome.cli.data:app", name="data", help="Download, check, convert, look at and prepare data sets.")
app.command("detronome.cli.train:train", help="Train on a data folder.")
app.command("detronome.cli.evaluate:evaluate", name="eval", help="Measure a checkpoint, or a results file of any tool.")
app.command("detronome.cli.predict:predict", help="Find objects in images: pictures and COCO results.")
app.command("detronome.cli.report:report", help="Write the HTML page of a run, or compare several.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a mistake that the message explains, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # names from data sets may not exist in the terminal's encoding
    try:
        try:
            app(arguments)
        finally:
            sys.stdout.flush()
    except CycloptsError as error:
        from detronome.cli.render import print_error

        error.verbose = False
        command = " ".join(("detronome", *(error.command_chain or ())))
        print_error(ConfigError(str(error), where=command, fix=f"see {command} --help"))
        sys.exit(EXIT_ERROR)
    except DetronomeError as error:
        from detronome.cli.render import print_error

        print_error(error)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has enough; without this, flushing stdout at exit would fail again.
        _silence_stdout()
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        from detronome.cli.render import print_error

        _silence_stdout()
        print_error(
            ConfigError("the output cannot be written: the disk is full", where="stdout", fix="free some space")
        )
        sys.exit(EXIT_ERROR)


def _silence_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
