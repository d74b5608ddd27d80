"""Probes run in child processes: what crashes, hangs or exits there is a fact about the environment, not our end.

A child runs several probes one after the other, so that torch is imported once. It reports each at once; when it dies
in one, the next child goes on behind it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import IO, Literal

from detronome.doctor.findings import Facts

__all__ = ["Answer", "Batch", "answer_probes", "run_batch"]

End = Literal["answered", "raised", "died", "timed out", "not run"]

_LAUNCH = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from detronome.doctor.child import answer_probes; "
    "answer_probes(sys.argv[4:], is_first_needed=sys.argv[2] == 'True', limit_s=float(sys.argv[3]))"
)
_ROOT = str(Path(__file__).resolve().parents[2])
_PATIENCE_S = 0.05
_GRACE_S = 5.0
_FAREWELL_S = 0.5
"""For a child that is told to end, to remove its files; then it is killed."""
_LAST_WORDS = 4000
"""Characters of what a dead process said."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a probe."""

    probe: str
    end: End = "not run"
    facts: Facts = field(default_factory=dict)
    error: str = ""
    """A traceback, or what the process said before it died."""
    seconds: float = 0.0

    @property
    def is_answered(self) -> bool:
        """Whether there are facts."""
        return self.end == "answered"

    @property
    def last_line(self) -> str:
        """The line of an error that names it."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        return lines[-1] if lines else self.end


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Probes that share a process: `module.function` below `detronome.doctor.probes`."""

    probes: Sequence[str]
    is_first_needed: bool = False
    """Whether the others are in vain where the first one fails."""
    environment: Mapping[str, str] = field(default_factory=dict)


def run_batch(
    batch: Batch, *, limit_s: float, executable: str = sys.executable, stop: Event | None = None
) -> dict[str, Answer]:
    """Run probes in a child process, and in further ones where it dies; return the answers by probe.

    Args:
        batch: the probes.
        limit_s: of all of them together; what has not answered then has timed out, and the rest is not run.
        executable: the Python that runs them.
        stop: once it is set, the child is ended and no further one begins.
    """
    stop = stop or Event()
    answers: dict[str, Answer] = {}
    deadline = time.monotonic() + limit_s
    left = list(batch.probes)
    while left and not stop.is_set() and (remaining_s := deadline - time.monotonic()) > 0:
        told = _run(left, remaining_s, executable, batch, stop)
        answers |= told
        first = answers[batch.probes[0]]
        if batch.is_first_needed and not first.is_answered:
            answers = {first.probe: first}
            break
        left = [probe for probe in left if probe not in answers]
    return {probe: answers.get(probe, Answer(probe=probe)) for probe in batch.probes}


def _run(probes: Sequence[str], limit_s: float, executable: str, batch: Batch, stop: Event) -> dict[str, Answer]:
    """Return the answers of one process: of all probes, or up to the one in which it ended."""
    # -P: the working folder is not searched, so what shadows a package there is told as such, not met here.
    command = [
        executable,
        "-P",
        "-X",
        "faulthandler",
        "-c",
        _LAUNCH,
        _ROOT,
        str(batch.is_first_needed),
        f"{limit_s:.1f}",
        *probes,
    ]
    with _scratch() as told, _scratch() as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=said,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **batch.environment},
        )
        try:
            is_late = not _ends_in_time(process, limit_s, stop)
        finally:
            _end(process)
        return _read(probes, told, said, process.returncode, is_late)


def _scratch() -> IO[bytes]:
    """Return a file for what a child says: in memory where the system has such, for the disk may be full."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("detronome-doctor"), "w+b")
    return tempfile.TemporaryFile("w+b")


def _ends_in_time(process: subprocess.Popen[bytes], limit_s: float, stop: Event) -> bool:
    deadline = time.monotonic() + limit_s
    while process.poll() is None:
        if stop.is_set() or time.monotonic() > deadline:
            return False
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_PATIENCE_S)
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child and what it has started, such as ranks and workers: first so that it removes its files."""
    if not hasattr(os, "killpg"):
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_FAREWELL_S)
        return
    for how in (signal.SIGTERM, signal.SIGKILL):
        if how is signal.SIGTERM and process.poll() is not None:
            continue  # it has ended by itself; what it has started may live on
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):  # on a busy machine even a killed process takes its time
            process.wait(timeout=_FAREWELL_S)


def _read(
    probes: Sequence[str], told: IO[bytes], said: IO[bytes], code: int | None, is_late: bool
) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    told.seek(0)
    for line in told.read().decode(errors="replace").splitlines():
        with suppress(ValueError, TypeError, KeyError):  # a line that the end of the process has cut
            record = json.loads(line)
            answers[record["probe"]] = Answer(**record)
    at_fault = next((probe for probe in probes if probe not in answers), None)
    if at_fault is not None:
        said.seek(0)
        words = said.read().decode(errors="replace")[-_LAST_WORDS:]
        end: End = "timed out" if is_late else "died"
        reason = "" if is_late else _death(code)
        answers[at_fault] = Answer(probe=at_fault, end=end, error=f"{words.strip()}\n{reason}".strip())
    return answers


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the process was ended by {name}"
    return f"the process ended with exit code {code}"


class _ToldToEnd(SystemExit):
    """Unwinds a probe, so that it removes what it has made."""


def _end_probe(number: int, frame: object) -> None:
    raise _ToldToEnd


def answer_probes(probes: Sequence[str], *, is_first_needed: bool, limit_s: float) -> None:
    """Run probes in this process, the child, and write each answer as a line of JSON to the standard output."""
    faulthandler.dump_traceback_later(limit_s + _GRACE_S, exit=True)  # where nobody is left to end this process
    signal.signal(signal.SIGTERM, _end_probe)
    # What libraries print goes to stderr: the lines of the answers stay whole.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        for probe in probes:
            begin = time.monotonic()
            record: dict[str, object] = {"probe": probe}
            try:
                module, _, function = probe.rpartition(".")
                facts = getattr(import_module(f"detronome.doctor.probes.{module}"), function)()
                record |= {"end": "answered", "facts": facts}
            except _ToldToEnd:
                break
            except BaseException:
                record |= {"end": "raised", "error": traceback.format_exc()}
            record["seconds"] = time.monotonic() - begin
            out.write(json.dumps(record) + "\n")
            out.flush()
            if is_first_needed and "error" in record and probe == probes[0]:
                break
        sys.stderr.flush()
    os._exit(0)  # a library's end may hang or crash; all is said
