"""A process of its own for a form: its memory can be counted, and what breaks in it breaks nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import TypeVar

from detronome.deploy.benchmark.messages import Failed

__all__ = ["FormFailedError", "FormProcess"]

_LONGEST_S = 3600.0
"""An answer that takes longer does not come: compiling a large network, or calibrating it, may take minutes."""
_CLOSING_S = 5.0
_LOG_CHARS = 4000

_Answer = TypeVar("_Answer")


class FormFailedError(Exception):
    """A form could not do what was asked.

    Args:
        why: one line.
        fix: what to do about it, where that is known.
    """

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.fix = fix


class FormProcess:
    """Starts the process, asks it, and ends it; a context manager.

    Args:
        entry: module that is run, with the number of a pipe's descriptor as its argument.
        threads: that its libraries may use.
        log: gets all that it prints.
    """

    def __init__(self, entry: str, *, threads: int, log: Path) -> None:
        self._log = log
        self._connection, theirs = Pipe()
        count = str(threads)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                # -P: no module is taken from the folder in which somebody happens to be
                [sys.executable, "-P", "-m", entry, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Read when the libraries are loaded, and some of them read nothing else.
                env={**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count},
            )
        theirs.close()

    def ask(self, request: object, answer: type[_Answer]) -> _Answer:
        """Return the answer.

        Raises:
            FormFailedError: what was asked for failed, or the process has died or does not answer.
        """
        try:
            self._connection.send(request)
            if not self._connection.poll(_LONGEST_S):
                self.close()
                raise FormFailedError(f"no answer within {_LONGEST_S / 60:.0f} minutes")
            reply = self._connection.recv()
        except (OSError, EOFError):
            raise FormFailedError(self._death()) from None
        if isinstance(reply, Failed):
            raise FormFailedError(reply.why, reply.fix)
        assert isinstance(reply, answer)
        return reply

    def close(self) -> None:
        """End the process: it ends by itself when nobody asks any more, or is made to."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSING_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> FormProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()  # nobody waits for what it is at
        self.close()

    def _death(self) -> str:
        try:
            code = self._process.wait(_CLOSING_S)
        except subprocess.TimeoutExpired:
            return "the process no longer answers"
        if code < 0:
            with suppress(ValueError):
                name = signal.Signals(-code).name
                hint = ": memory may have run out" if name == "SIGKILL" else ""
                return f"the process was ended by {name}{hint}; see {self._log}"
        lines = self._log.read_text(encoding="utf-8", errors="replace")[-_LOG_CHARS:].strip().splitlines()
        return f"the process ended: {lines[-1] if lines else f'exit code {code}'}"
