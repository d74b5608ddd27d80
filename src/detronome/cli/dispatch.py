"""Runs a command, and turns what it raises into a message and an exit code.

    0    done; for commands that judge: all is well
    1    failed as the message says; for commands that judge: not well
    2    asked for what cannot be: an unknown command, option or setting, or ones that do not go together
    75   a hang that was reported (train)
    130  interrupted by Ctrl-C; 143 by SIGTERM, 138 by SIGUSR1

With --json, stdout holds one document in any case: the result, or `{"error": ...}`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import CycloptsError, UnknownCommandError

from detronome.cli.commands import app
from detronome.errors import ConfigError, DetronomeError, Problem, nearest_name_hint
from detronome.runtime.files import is_disk_full
from detronome.runtime.signals import ended_in_order, exit_code

__all__ = ["EXIT_FAILED", "EXIT_USAGE", "run"]

EXIT_FAILED = 1
EXIT_USAGE = 2


def run(arguments: Sequence[str]) -> None:
    """Run a command; a mistake is told and ends the process with 1 or 2, an interruption with 128 + the signal."""
    as_json = _wants_json(arguments)
    judged: SystemExit | None = None
    try:
        try:
            with ended_in_order():
                app(arguments)
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # as rich ends it
                raise end.__context__ from None
            judged = end
        if sys.stdout is not None:
            sys.stdout.flush()
    except CycloptsError as error:
        _fail(_usage_error(error), as_json=as_json)
    except DetronomeError as error:
        _fail(error, as_json=as_json)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "detronome"):
            raise
        _fail(
            DetronomeError(
                f"the package {package!r} cannot be imported: {error}",
                where="installation",
                fix="detronome doctor names all that is missing or broken, and the commands that mend it",
            ),
            as_json=as_json,
        )
    except KeyboardInterrupt as error:
        code = getattr(error, "exit_code", exit_code("SIGINT"))
        if as_json and _is_main_rank():
            _print_json("Interrupted", (Problem(what="interrupted"),), code)
        print("interrupted", file=sys.stderr)  # noqa: T201
        _end(code)
    except BrokenPipeError:
        # The reader (`| head`) has enough; without this, flushing stdout at exit would fail again.
        _silence_stdout()
    except OSError as error:
        if not is_disk_full(error) or error.filename is not None:
            raise
        from detronome.cli.render import print_error

        _silence_stdout()
        print_error(
            DetronomeError("the output cannot be written: the disk is full", where="stdout", fix="free some space")
        )
        sys.exit(EXIT_FAILED)
    if judged is not None:
        raise judged


def _wants_json(arguments: Sequence[str]) -> bool:
    """Return whether --json is there, also on a command line that cannot be understood."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return "--json" in arguments[:end]


def _usage_error(error: CycloptsError) -> ConfigError:
    error.verbose = False
    command = " ".join(("detronome", *(error.command_chain or ())))
    if isinstance(error, UnknownCommandError) and error.app is not None and error.unused_tokens:
        known = [name for name in error.app if not name.startswith("-")]
        hint = nearest_name_hint(error.unused_tokens[0], known)
        return ConfigError(f"unknown command {error.unused_tokens[0]!r}", where=command, fix=hint)
    return ConfigError(str(error), where=command, fix=f"see {command} --help")


def _fail(error: DetronomeError, *, as_json: bool) -> None:
    """Tell a mistake, on stderr and as JSON on stdout, unless another rank tells it; end the process."""
    from detronome.cli.render import print_error

    code = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    if not (error.is_told if error.is_told is not None else not _is_main_rank()):
        if as_json:
            _print_json(type(error).__name__, error.problems, code)
        print_error(error)
    _end(code)


def _end(code: int) -> NoReturn:
    """End the process; what a reader that is gone would not take must not change the exit code."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            _silence_stdout()
    sys.exit(code)


def _print_json(kind: str, problems: Sequence[Problem], code: int) -> None:
    """Print an error as one line, which may follow the lines of `watch --json`."""
    told = [{"what": one.what, "where": one.where or None, "fix": one.fix or None} for one in problems]
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(json.dumps({"error": {"kind": kind, "exit_code": code, "problems": told}}) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()


def _is_main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"  # as torchrun sets it


def _silence_stdout() -> None:
    if sys.stdout is not None:  # services may start a program without one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
