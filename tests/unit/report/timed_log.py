"""Run logs with times, for the tests of the live view."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from detronome.engine.events import Event

BEGAN = 1_800_000_000.0


def write(run_dir: Path, events: Iterable[Event], *, gap_s: float = 1.0, at: float = BEGAN) -> float:
    """Append events, so many seconds apart, and return when the last one was."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "log.jsonl").open("a") as file:
        for event in events:
            time = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
            file.write(json.dumps({**event.to_record(), "time": time}, default=str).replace("NaN", "null") + "\n")
            at += gap_s
    return at - gap_s
