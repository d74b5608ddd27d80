"""The commands, and what becomes of an error that one of them raises. No torch is imported for `--help`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from detronome.errors import ConfigError, DetronomeError

__all__ = ["app", "run"]

EXIT_ERROR = 1

app = App(
    name="detronome",
    help="Train, evaluate and deploy detection transformers (DETR) on COCO-format data.",
    help_epilogue="Begin with: detronome demo",
    version_flags=["--version"],
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)
app.command("detronome.cli.demo:demo", help="Embedded data: train, evaluate, pictures, report, in minutes on a CPU.")
app.command("detronome.cli.data:app", name="data", help="Download, check, convert, look at and prepare data sets.")
app.command(
    "detronome.cli.doctor:doctor",
    help="Examine packages and machine, or explain an error; works without torch.",
    help_epilogue="Exit codes: 0 all is well, 1 warnings, 2 failures; of --explain: 0 the cause is found, 1 it is not.",
)
app.command(
    "detronome.cli.train:train",
    help="Train on a data folder.",
    help_epilogue="Ctrl-C, SIGTERM and SIGUSR1 save within a step and end with the line that goes on with the run; a "
    "second signal ends at once. Exit codes: 0 the run has ended, 1 an error that the message explains, 130, 143 or "
    "138 interrupted by one of these signals, 75 a hang that was reported.",
)
app.command("detronome.cli.models:models", help="List the presets: size, work, published accuracy, weights.")
app.command("detronome.cli.plan:plan", help="Predict memory, time and price of a run; no GPU needed.")
app.command("detronome.cli.evaluate:evaluate", name="eval", help="Measure a checkpoint, or a results file of any tool.")
app.command("detronome.cli.predict:predict", help="Find objects in images and videos: pictures, COCO, YOLO, CSV.")
app.command(
    "detronome.cli.serve:serve",
    help="Answer over HTTP: find objects in images that are sent.",
    help_epilogue="SIGTERM and Ctrl-C let what has begun finish, and end with exit code 0; a second one ends at once.",
)
app.command("detronome.cli.export:export", help="Write a model for ONNX Runtime, OpenVINO, torch or TensorRT, checked.")
app.command("detronome.cli.search:search", help="Find settings that give a higher AP, trial after trial.")
app.command("detronome.cli.profile:profile", help="Say what a step waits for, with proof, and what to change.")
app.command("detronome.cli.tune:tune", help="Find settings that make a run faster, each proven by measurement.")
app.command("detronome.cli.trim:trim", help="Make a smaller, faster model of a trained one, without training.")
app.command("detronome.cli.benchmark:benchmark", help="Measure a model's forms side by side: time, memory, AP.")
app.command("detronome.cli.report:report", help="Write the HTML page of a run, or compare several.")
app.command(
    "detronome.cli.watch:watch",
    help="Follow a run as it goes on, in the terminal or on a page.",
    help_epilogue="Ends with the run, or with Ctrl-C; an interrupted run is followed further. Exit codes of --once: 0 "
    "the run goes on or has ended, 2 it was interrupted, 3 it is silent, 1 an error that the message explains.",
)


def run(arguments: Sequence[str] | None) -> None:
    """Run a command; a mistake is printed and ends the process with 1."""
    try:
        try:
            app(arguments)
        finally:
            sys.stdout.flush()
    except CycloptsError as error:
        from detronome.cli.render import print_error

        error.verbose = False
        command = " ".join(("detronome", *(error.command_chain or ())))
        if _is_main_rank():
            print_error(ConfigError(str(error), where=command, fix=f"see {command} --help"))
        sys.exit(EXIT_ERROR)
    except DetronomeError as error:
        from detronome.cli.render import print_error

        if not (error.is_told if error.is_told is not None else not _is_main_rank()):
            print_error(error)
        sys.exit(EXIT_ERROR)
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


def _is_main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"  # as torchrun sets it


def _silence_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
