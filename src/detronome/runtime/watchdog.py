"""Ends a run that hangs, and says which rank is to blame, what it was doing and with which images.

Each rank tells the others what it is doing, through the store at which the ranks met. torchrun keeps that store in a
process of its own, so it outlives every rank; started otherwise, rank 0 keeps it, and its silence is rank 0's.

A thread can tell and end a process that waits, but not one whose interpreter is held by a C call or that is stopped: of
such a rank the others tell, and torchrun ends it. Of a held interpreter `held-rank<r>.txt` says by what.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

import msgspec
import torch.distributed as dist

from detronome.errors import TrainingError
from detronome.runtime.courier import AwakeClock, Courier, Store
from detronome.runtime.distributed import World
from detronome.runtime.files import write_atomic
from detronome.runtime.hang import HangReport, Heard, Limits, RankRecord, judge
from detronome.runtime.progress import Moment, Progress

__all__ = ["EXIT_HANG", "Watchdog"]

EXIT_HANG = 75
"""Exit code of a process that its watchdog ended: `EX_TEMPFAIL`, worth another try."""

_CONNECT_S = 60.0
_GRACE_S = 10.0
"""Longest that a dying process works on its report: the disk or the pipe it goes to may be what hangs."""


class Watchdog:
    """Watches a run from a thread of each rank, while active as a context.

    When the run hangs, one rank writes one line to stderr and `hang-<step>-rank<culprit>.json`, every rank that is
    alive writes the stacks of its threads to `hang-<step>-rank<r>.txt`, and each ends its process with `EXIT_HANG`, its
    loader workers too.

    Args:
        progress: what this rank is doing.
        world: the ranks. All of them must enter the watch at the same point: they agree on a name.
        timeout_s: see `Limits`; 0 turns the watch off. The process group's own timeout should be longer than the
            longest limit, six times this, or collectives are given up before anyone can say why.
        folder: where reports go.
        action: `report` lets a hang that was told go on.
        on_report: is told too, on the rank that reports, in a thread of its own.
        limits: other limits than the default ones for `timeout_s`.
        store: reached by all ranks, in place of the one at which they met.
        store_keeper: the rank whose process keeps `store`; None: no rank's.

    Raises:
        TrainingError: on entering, the store cannot be reached.
    """

    def __init__(
        self,
        progress: Progress,
        world: World,
        *,
        timeout_s: float,
        folder: Path,
        action: Literal["end", "report"] = "end",
        on_report: Callable[[HangReport], None] | None = None,
        limits: Limits | None = None,
        store: Store | None = None,
        store_keeper: int | None = None,
    ) -> None:
        self._progress = progress
        self._world = world
        self._limits = limits or Limits(timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._interval_s = min(max(timeout_s / 10, 0.5), 10.0)
        self._folder = folder
        self._action = action
        self._on_report = on_report
        self._store = store
        self._store_keeper = store_keeper
        self._host = socket.gethostname()
        self._clock = AwakeClock(timeout_s)
        self._seen: tuple[Moment, float] = (progress.now, self._clock())
        self._told: HangReport | None = None
        self._courier: Courier | None = None
        self._thread: threading.Thread | None = None
        self._held_stacks: IO[bytes] | None = None
        self._wake = threading.Event()
        self._is_leaving = False

    def __enter__(self) -> Watchdog:
        if self._timeout_s <= 0:
            return self
        if self._world.size > 1:
            if self._store is None:
                self._store, self._store_keeper = _meeting_store(self._world)
            self._courier = Courier(
                self._store,
                size=self._world.size,
                record=self._record,
                clock=self._clock,
                interval_s=self._interval_s,
                on_alarm=self._wake.set,
            )
            self._courier.start()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._held_stacks = open(self._folder / f"held-rank{self._world.rank}.txt", "wb")
        self._thread = threading.Thread(target=self._watch, name="detronome-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_leaving = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        if self._courier is not None:
            self._courier.leave()
        self._close_held_stacks()

    def _close_held_stacks(self) -> None:
        if self._held_stacks is None:
            return
        faulthandler.cancel_dump_traceback_later()
        path, is_empty = Path(self._held_stacks.name), os.fstat(self._held_stacks.fileno()).st_size == 0
        self._held_stacks.close()
        self._held_stacks = None
        if is_empty:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # reports, or another rank's file
                path.parent.rmdir()

    def _watch(self) -> None:
        while not self._is_leaving:
            if self._held_stacks is not None:
                # A thread of C's, which needs no interpreter, writes them where this one is kept from coming round.
                faulthandler.dump_traceback_later(self._timeout_s, file=self._held_stacks)
            self._look()
            self._wake.wait(self._interval_s)
            self._wake.clear()

    def _look(self) -> None:
        courier, now = self._courier, self._clock()
        if courier is not None and courier.alarm is not None:
            self._act(courier.alarm)
            courier.clear_alarm()
            return
        report = judge(self._heard(now), now=now, limits=self._limits, num_ranks=self._world.size)
        if report is None or self._is_told(report):
            return
        report = replace(report, reporter=self._reporter(report, now), written_at=time.time())
        if courier is not None and self._is_store_there(now):
            courier.raise_alarm(report)
        else:
            self._act(report)

    def _record(self) -> RankRecord:
        moment, now = self._progress.now, self._clock()
        if moment is not self._seen[0]:
            self._seen = (moment, now)
        return RankRecord(
            rank=self._world.rank,
            host=self._host,
            pid=os.getpid(),
            section=moment.section,
            step=moment.step,
            images=tuple(int(image) for image in moment.images),
            in_section_s=now - self._seen[1],
            written_at=time.time(),
        )

    def _heard(self, now: float) -> dict[int, Heard]:
        own = {self._world.rank: Heard(self._record(), now)}
        if self._courier is None:
            return own
        heard = self._courier.heard
        if self._is_store_there(now):
            return heard | own
        if self._store_keeper not in heard:
            return own  # what the others do cannot be known, and a run that goes on is not ended for it
        return {r: h if r == self._store_keeper else Heard(h.record, now) for r, h in heard.items()} | own

    def _is_store_there(self, now: float) -> bool:
        return self._courier is not None and now - self._courier.answered_at <= self._timeout_s

    def _reporter(self, report: HangReport, now: float) -> int:
        """Return the rank that writes a report of this rank's: this one, unless all give the same and cannot agree."""
        if self._courier is None or self._is_store_there(now):
            return self._world.rank
        alive = {record.rank for record in report.records} - {self._store_keeper}
        return min(alive, default=self._world.rank)

    def _is_told(self, report: HangReport) -> bool:
        told = self._told
        return told is not None and (told.kind, told.culprits, told.step) == (
            report.kind,
            report.culprits,
            report.step,
        )

    def _act(self, report: HangReport) -> None:
        self._told = report
        tasks: list[Callable[[HangReport], None]] = [self._write_stacks]
        if report.reporter == self._world.rank:
            tasks += [self._say, self._write_report]
            tasks += [self._on_report] if self._on_report is not None else []
        # Each in a thread of its own: the disk, or the pipe behind stderr, may be what hangs.
        threads = [threading.Thread(target=task, args=(report,), daemon=True) for task in tasks]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + _GRACE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._action == "end":
            self._await_others(report)
            _end_process()

    def _await_others(self, report: HangReport) -> None:
        """Leave only when all have told their part: torchrun begins to end the others as soon as one has left."""
        if self._courier is None:
            return
        self._courier.mark_told()
        silent = report.culprits if report.kind == "silent" else ()
        alive = [record for record in report.records if not record.has_ended and record.rank not in silent]
        deadline = time.monotonic() + 2 * self._interval_s
        while self._courier.num_told < len(alive) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _say(self, report: HangReport) -> None:
        ending = f"; ending with exit code {EXIT_HANG}" if self._action == "end" else ""
        line = f"The run hangs: {report.what}. Report and stacks of all ranks are in {self._folder}{ending}.\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())  # a hanging print holds the lock

    def _write_report(self, report: HangReport) -> None:
        path = self._path(report, report.culprits[0], "json")
        write_atomic(path, msgspec.json.format(msgspec.json.encode(report), indent=2))

    def _write_stacks(self, report: HangReport) -> None:
        with open(self._path(report, self._world.rank, "txt"), "wb") as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
        if self._action == "end":
            self._close_held_stacks()

    def _path(self, report: HangReport, rank: int, suffix: str) -> Path:
        return self._folder / f"hang-{max(report.step, 0)}-rank{rank}.{suffix}"


def _meeting_store(world: World) -> tuple[Store, int | None]:
    """Return a part of our own of the store at which the ranks met, and the rank whose process keeps it, if one does.

    Raises:
        TrainingError: it cannot be reached.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    name = world.broadcast(secrets.token_hex(8))  # torchrun keeps one store for all restarts
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=_CONNECT_S)
        )
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the watchdog cannot reach the store at which the ranks met: {error}",
            where=f"rank {world.rank} of {world.size}, MASTER_ADDR={address} MASTER_PORT={port}",
            fix="start with torchrun, or train without the watchdog",
        ) from error
    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    ours = dist.PrefixStore(f"detronome/watchdog/{name}", store)  # type: ignore[attr-defined]
    return ours, None if is_torchruns else 0


def _end_process() -> None:
    """End this process and its loader workers without asking anyone: its threads are stuck."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(EXIT_HANG)
