"""A job under torchrun: its ranks, found and struck from outside, and what its log says of how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Job", "Restart", "at", "job", "restart_after", "train_command", "wait_for"]

T = TypeVar("T")


@dataclass(frozen=True)
class Restart:
    """How a run went on after it was struck."""

    seconds: float
    """From the blow to the end of the next step."""
    num_lost: int
    """Steps that were logged and done again."""


class Job:
    """A torchrun that was started."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, run: Path) -> None:
        self.process = process
        self.run = run
        self._output = output

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None

    def ranks(self) -> dict[int, int]:
        """Return the process of each rank that is alive now."""
        found = {}
        for pid in _children(self.process.pid):
            with suppress(OSError, KeyError, ValueError):
                variables = dict(v.split("=", 1) for v in Path(f"/proc/{pid}/environ").read_text().split("\0") if v)
                found[int(variables["RANK"])] = pid
        return found

    def records(self) -> list[dict[str, Any]]:
        """Return what the log says now."""
        with suppress(OSError, ValueError):
            lines = (self.run / "log.jsonl").read_text().split("\n")[:-1]
            return [json.loads(line) for line in lines]
        return []

    def last_step(self) -> int:
        return max((r["step"] for r in self.records() if r["kind"] == "step"), default=0)

    def steps_since(self, moment: float) -> int:
        """Return how many steps were logged since the last start, where that was after the moment."""
        records = self.records()
        starts = [i for i, record in enumerate(records) if record["kind"] == "start" and at(record) > moment]
        return sum(record["kind"] == "step" for record in records[starts[-1] :]) if starts else 0

    def finish(self, timeout_s: float) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the job does not end:\n{self.output[-4000:]}") from None


@contextmanager
def job(
    arguments: Sequence[str],
    run: Path,
    output: Path,
    *,
    options: Sequence[str] = ("--standalone",),
    num_ranks: int = 2,
    max_restarts: int = 100,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Job]:
    """Start torchrun; whatever of it is alive at the end is killed.

    Args:
        arguments: what each rank runs.
        run: the run folder.
        output: takes what all processes print.
        options: of torchrun: how ranks meet.
        num_ranks: on this node.
        max_restarts: how often torchrun starts the ranks anew.
        environment: variables to add.
        prefix: a command that runs the command.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node", str(num_ranks)]
    torchrun += ["--max-restarts", str(max_restarts), "--monitor-interval", "0.1"]
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with open(output, "ab") as sink:
        process = subprocess.Popen(
            [*prefix, *torchrun, *arguments],
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **threads, **(environment or {})},
            start_new_session=True,
        )
    started = Job(process, output, run)
    try:
        yield started
    finally:
        # The agent first: it would start its ranks anew.
        family = [process.pid, *_descendants(process.pid)]
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def train_command(data: Path, run: Path, model: str, epochs: int, settings: Mapping[str, Any]) -> list[str]:
    """Return the command line of a training, for torchrun."""
    sets = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    return ["-m", "detronome", *_train_arguments(data, run, model, epochs), "--set", *sets]


def _train_arguments(data: Path, run: Path, model: str, epochs: int) -> list[str]:
    return ["train", str(data), "--out", str(run), "--model", model, "--epochs", str(epochs)]


def at(record: Mapping[str, Any]) -> float:
    """Return the time of a record, in seconds since 1970."""
    return datetime.fromisoformat(record["time"]).timestamp()


def wait_for(answer: Callable[[], T | None], job: Job, timeout_s: float = 90.0) -> T | None:
    """Return the first answer that is not empty; None when the job is over before."""
    deadline = time.monotonic() + timeout_s
    while not (found := answer()):
        if job.is_over:
            return None
        assert time.monotonic() < deadline, job.output[-4000:]
        time.sleep(0.05)
    return found


def restart_after(job: Job, struck_at: float, last_step: int, timeout_s: float = 90.0) -> Restart:
    """Wait for the first step after a blow; return how long that took, and how much was lost."""
    assert wait_for(lambda: job.steps_since(struck_at), job, timeout_s), job.output[-4000:]
    records = job.records()
    (start, *_) = [i for i, r in enumerate(records) if r["kind"] == "start" and at(r) > struck_at]
    first = next(record for record in records[start:] if record["kind"] == "step")
    return Restart(at(first) - struck_at, max(0, last_step - records[start]["step"]))


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _descendants(pid: int) -> list[int]:
    return [one for child in _children(pid) for one in (child, *_descendants(child))]
