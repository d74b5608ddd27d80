"""Which run of a tracker belongs to a run folder, so that a resumed run goes on where it was: `trackers.json`."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detronome.runtime.files import write_atomic

__all__ = ["FILE_NAME", "recall", "remember"]

FILE_NAME = "trackers.json"

_writing = threading.Lock()
"""Several trackers write into one file, each in its thread."""


def recall(run_dir: Path, tracker: str) -> dict[str, str]:
    """Return what was remembered of a tracker; empty where there is nothing, or nothing that can be read."""
    facts = _read(run_dir).get(tracker)
    return {str(key): str(value) for key, value in facts.items()} if isinstance(facts, Mapping) else {}


def remember(run_dir: Path, tracker: str, facts: Mapping[str, str]) -> None:
    """Remember facts of a tracker in place of what there was; `url` is where people look at the run.

    Raises:
        OSError: the file cannot be written.
    """
    with _writing:
        write_atomic(run_dir / FILE_NAME, json.dumps({**_read(run_dir), tracker: dict(facts)}, indent=1) + "\n")


def _read(run_dir: Path) -> dict[str, Any]:
    try:
        known = json.loads((run_dir / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
