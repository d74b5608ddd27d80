"""The run log: every event of a run as one JSON line, and the way back.

The log is the one source that reports are made from. It survives a crash at any moment: each line is flushed
as it is written, a resume removes what the crash left beyond its checkpoint, and the reader accepts a torn
last line.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from detronome.engine.events import Event, RolledBack, RunStarted
from detronome.errors import DataError
from detronome.runtime.files import write_atomic

__all__ = ["RunLog", "read_run_log"]

_logger = logging.getLogger(__name__)

Record = dict[str, Any]

_LAST_BEFORE_CHECKPOINT = {"step": 0, "eval": 0, "bad_image": 0, "warning": 0, "skip": -1, "split": -1, "rollback": 0}
"""What a run tells as it goes from step to step, each with the last step, relative to a checkpoint's, that it tells of
before that checkpoint: step 500 is logged before the checkpoint at 500, and skipped after it. Having gone back to 500,
a run tells so and takes another checkpoint there, which holds what it has learnt."""
_OF_THE_PROCESS = ("start", "checkpoint_failed")
"""Kinds that belong to one process and its disk: a resumed run does not tell them again."""


class RunLog:
    """An observer that appends each event to a file as one JSON line with the time in ISO 8601.

    Values that JSON does not know (nan, inf) become null. When a run resumes from a checkpoint, what was told after
    that checkpoint is dropped first, so that the log reads as if the run had never stopped; the `start` record of
    each resume stays. A run that starts at step 0 over an existing log moves that log aside to `<name>.previous`,
    unless the log tells that it has gone back to step 0.

    When a run goes back to a checkpoint by itself, the `step` and `eval` records of the steps undone are dropped, so
    that every curve has one value a step; what led to it (skips, splits, warnings, bad images) stays.

    A log that cannot be written (a full disk) is reported once and does not stop the run.

    Args:
        path: the log file; its folder is made when needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._has_failed = False

    def __call__(self, event: Event) -> None:
        try:
            if isinstance(event, RunStarted):
                self._begin(event.step)
            elif isinstance(event, RolledBack):
                self._undo(event.step)
            self._append(event)
            self._has_failed = False
        except (OSError, TypeError, ValueError, DataError) as error:
            if not self._has_failed:
                _logger.warning("the run log %s cannot be written, training goes on: %s", self.path, error)
            self._has_failed = True

    def _begin(self, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists() or self.path.stat().st_size == 0:
            return
        if step == 0 and not _has_gone_back_to_start(self.path):
            os.replace(self.path, self.path.with_name(f"{self.path.name}.previous"))
            return
        self._rewrite(_told_before_checkpoint(read_run_log(self.path), step))

    def _undo(self, step: int) -> None:
        if self.path.exists():
            records = read_run_log(self.path)
            self._rewrite(r for r in records if r["kind"] not in ("step", "eval") or r.get("step", 0) <= step)

    def _rewrite(self, records: Iterable[Record]) -> None:
        write_atomic(self.path, "".join(_to_line(record) for record in records))

    def _append(self, event: Event) -> None:
        record = event.to_record()
        stamped = {"kind": record.pop("kind"), "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record}
        line = _to_line(stamped).encode("utf-8", "replace")
        # Opened for each event: a log interval is seconds long, and nothing is left open in a forked worker.
        with self.path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(end)  # the beginning of a line, all that a full disk has taken, would spoil the next one
                raise


def read_run_log(path: Path) -> list[Record]:
    """Return the records of a run log, oldest first. A last line that a crash cut short is left out.

    Raises:
        DataError: the file is missing, cannot be read, or a line before the last is no record.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            "there is no run log",
            where=str(path),
            fix="give the folder of a run that 'detronome train' has started",
        ) from None
    except OSError as error:
        raise DataError(
            f"the run log cannot be read: {error.strerror}", where=str(path), fix="make the file readable"
        ) from error
    lines = content.split(b"\n")
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "kind" not in record:
                raise ValueError("not an object with a 'kind'")
        except ValueError as error:  # also a UnicodeDecodeError or JSONDecodeError
            if number == len(lines):  # no newline after it: the write was cut short
                break
            raise DataError(
                f"a line of the run log is no record: {error}",
                where=f"{path}, line {number}",
                fix="remove that line; the others can still be read",
            ) from error
        records.append(record)
    return records


def _has_gone_back_to_start(path: Path) -> bool:
    try:
        records = read_run_log(path)
    except DataError:
        return False
    return any(record["kind"] == "rollback" and record.get("step") == 0 for record in records)


def _told_before_checkpoint(records: Sequence[Record], step: int) -> list[Record]:
    """Return the records that a run had written when it took its checkpoint at this step: the others it writes again.

    Steps alone do not tell: a run that went back from step 612 to 500 had told of a skip at 600 before it came to its
    checkpoint at 550. But a record that is told before a checkpoint at its step proves that all above it was, too.
    """
    proofs = [
        index
        for index, record in enumerate(records)
        if record["kind"] in _LAST_BEFORE_CHECKPOINT
        and record.get("step", 0) <= step + _LAST_BEFORE_CHECKPOINT[record["kind"]]
    ]
    end = proofs[-1] + 1 if proofs else 0
    later = [r for r in records[end:] if r["kind"] in _OF_THE_PROCESS and r.get("step", 0) <= step]
    return [record for record in records[:end] if record["kind"] != "end"] + later


def _to_line(record: Mapping[str, Any]) -> str:
    return json.dumps(_json_ready(record), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def _json_ready(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "item"):  # a number of numpy or torch that was not converted
        return _json_ready(value.item())
    return str(value)
