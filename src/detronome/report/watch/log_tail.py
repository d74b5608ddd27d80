"""Reading a run log as it grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["LogTail"]

Record = dict[str, Any]

_FINGERPRINT_BYTES = 512


class LogTail:
    """Reads what was added to a log since the last look.

    A resume or a rollback writes the log anew. It is known by the bytes before the place that was read up to: record
    times to the millisecond are among them. A last line that is not complete is read when it is. Lines that are no
    records are passed over.

    Args:
        path: the log; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._before = b""

    def read(self) -> tuple[list[Record], bool]:
        """Return the records to be added, and whether all earlier ones are to be forgotten first."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset - len(self._before))
                is_new = file.read(len(self._before)) != self._before
                if is_new:
                    self._offset, self._before = 0, b""
                    file.seek(0)
                added = file.read()
        except OSError:  # not there yet, or for a moment not there: a later look will tell
            return [], False
        complete = added[: added.rfind(b"\n") + 1]
        self._offset += len(complete)
        self._before = (self._before + complete)[-_FINGERPRINT_BYTES:]
        return [record for line in complete.splitlines() if (record := _record(line)) is not None], is_new


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("kind"), str) and isinstance(record.get("step"), int)
    return record if is_record else None
