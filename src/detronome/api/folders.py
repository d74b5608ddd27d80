"""The folders that runs, pictures and reports are written to."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detronome.engine.resume import resume_command
from detronome.errors import ConfigError
from detronome.runtime.files import write_atomic

__all__ = ["holds_run", "may_write", "new_run_dir", "numbered", "write_json", "writing"]


def holds_run(run_dir: Path) -> bool:
    """Return whether a folder holds a run that can be resumed."""
    # A start that failed before its first checkpoint has left a config.toml, and nothing that could be resumed.
    return any((run_dir / "checkpoints").glob("step-*"))


def new_run_dir(out: str | Path | None, name: str) -> Path:
    """Make the folder of a new run: `out`, or `runs/<name>`, numbered.

    Raises:
        ConfigError: it holds a run already, or cannot be made.
    """
    run_dir = numbered(Path("runs") / name) if out is None else Path(out)
    if holds_run(run_dir):
        raise ConfigError(
            "the folder already holds a run",
            where=str(run_dir),
            fix=f"choose another --out, or go on with it: {resume_command(run_dir)}",
        )
    with writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


@contextmanager
def writing(path: Path, *, option: str = "--out") -> Iterator[None]:
    """Turn the disk's refusal into an error that says where, and with which option to choose another place."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write there: {error.strerror or error}",
            where=str(error.filename2 or error.filename or path),  # of a rename, the place that was asked for
            fix=f"choose a folder with free space that you may write to, with {option}",
        ) from error


def may_write(file: Path, *, option: str = "--out") -> None:
    """Refuse a place that cannot be written to, before the work whose result goes there; what is there stays.

    Raises:
        ConfigError: the disk refuses.
    """
    with writing(file, option=option):
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        with tempfile.TemporaryFile(dir=file.parent):
            pass


def write_json(file: Path, record: Mapping[str, Any], *, option: str = "--out") -> None:
    """Write a record, whole or not at all.

    Raises:
        ConfigError: the disk refuses.
    """
    with writing(file, option=option):
        write_atomic(file, json.dumps(record, allow_nan=False) + "\n")


def numbered(path: Path) -> Path:
    """Return the path, or the first of path-2, path-3, ... that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
