"""Watching a run while it goes on: once, again and again, or on a page. Nothing is written into the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from detronome.config.convert import from_dict, read_toml
from detronome.errors import ConfigError, DataError, DetronomeError
from detronome.report.run_files import VerdictFile
from detronome.report.watch.state import RunState, Watcher, newest_run
from detronome.tempo.bottleneck import verdict_of_log

__all__ = ["follow_run", "run_state", "serve_run"]


def run_state(run: str | Path) -> RunState:
    """Return how a run is doing now; of a folder of runs, the one that was written to last.

    Raises:
        DataError: there is no run.
    """
    path = Path(run)
    if newest_run(path) is None:
        what = "this folder is no run, and holds none" if path.is_dir() else "there is no such folder"
        raise DataError(what, where=str(path), fix="give the folder that 'detronome train' made, or the one it is in")
    return _watcher(path).look()


def follow_run(run: str | Path, *, every_s: float = 2.0) -> Iterator[RunState]:
    """Yield how a run is doing, again and again until it has ended; one that is not there yet is waited for.

    An interrupted run may go on, so it is followed further.

    Raises:
        ConfigError: the path is a file.
    """
    watcher = _watcher(Path(run))
    while True:
        state = watcher.look()
        yield state
        if state.has_ended:
            return
        time.sleep(every_s)


def serve_run(
    run: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve a page that shows a run as it goes on, until the process is told to stop.

    Args:
        run: a run folder, or a folder of runs; it need not exist yet.
        host: the address to listen at; whoever can reach it sees the run.
        port: 0 picks a free one.
        on_ready: is told the address of the page.

    Raises:
        MissingExtraError: starlette or uvicorn is not installed.
        ConfigError: the address cannot be used, or the path is a file.
    """
    from detronome.report.watch.server import serve

    serve(_watcher(Path(run)), host=host, port=port, on_ready=on_ready)


def _watcher(path: Path) -> Watcher:
    if path.is_file():
        raise ConfigError("a run is a folder, and this is a file", where=str(path), fix="give the folder of the run")
    return Watcher(path, verdict_of=_verdict)


def _verdict(run_dir: Path, records: Sequence[Mapping[str, Any]]) -> VerdictFile | None:
    try:
        config = from_dict(read_toml(run_dir / "config.toml"), where=str(run_dir))
        verdict = verdict_of_log(records, config)
    except (DetronomeError, KeyError, TypeError, ValueError):
        return None  # configuration or log are of another version: the run can be watched all the same
    return None if verdict is None else msgspec.convert(verdict.to_record(), VerdictFile)
