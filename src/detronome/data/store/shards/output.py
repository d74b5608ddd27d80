"""Where new shards go: a folder or an address, in which nothing looks finished until everything is.

Local files are made in OUT/.incomplete, which the last step renames; a lock on OUT keeps a second writer out and tells
what a killed one left behind. At an address the headers, without which shards are not found, are uploaded last.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from detronome.data.store.shards import cloud
from detronome.data.store.shards.format import SHARDS_FOLDER
from detronome.errors import DataError

__all__ = ["Output", "open_output"]

_INCOMPLETE = ".incomplete"
_LOCK = ".lock"


class Output(Protocol):
    """A data set in the making."""

    @property
    def scratch(self) -> Path:
        """The local folder in which files are made, under their place relative to the data set."""
        ...

    @property
    def keeps_all(self) -> bool:
        """Whether `scratch` holds the whole data set in the end, rather than one shard at a time."""
        ...

    def put(self, relative: str) -> None:
        """Take a finished file over; it may be gone from `scratch` afterwards."""
        ...

    def publish(self) -> None:
        """Make the data set appear; all files were put, the headers last."""
        ...


@contextmanager
def open_output(out: str) -> Iterator[Output]:
    """Yield an output for a folder or an address; whatever is not published is removed at the end.

    Raises:
        DataError: it is not empty, is being written by another process, or cannot be written.
    """
    try:
        with _remote(out) if cloud.is_url(out) else _local(Path(out)) as output:
            yield output
    except OSError as error:
        raise DataError(
            f"the shards cannot be written: {error.strerror or error}",
            where=str(error.filename or out),
            fix="check the rights and the free space there",
        ) from error


class _LocalOutput:
    keeps_all = True

    def __init__(self, out: Path) -> None:
        self._out = out
        self.scratch = out / _INCOMPLETE

    def put(self, relative: str) -> None:
        _fsync(self.scratch / relative)

    def publish(self) -> None:
        for folder, _, _ in os.walk(self.scratch):
            _fsync(Path(folder))
        names = sorted(os.listdir(self.scratch), key=lambda name: name == SHARDS_FOLDER)
        for name in names:
            os.rename(self.scratch / name, self._out / name)
        _fsync(self._out)


@contextmanager
def _local(out: Path) -> Iterator[Output]:
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    output = _LocalOutput(out)
    try:
        _check_empty(out)
        with _lock(out / _LOCK):
            _check_empty(out)  # another process may have published meanwhile
            try:
                shutil.rmtree(output.scratch, ignore_errors=True)
                output.scratch.mkdir()
                yield output
            finally:
                shutil.rmtree(output.scratch, ignore_errors=True)
    finally:
        if is_new:
            with suppress(OSError):  # it has content: the data set
                out.rmdir()


def _check_empty(out: Path) -> None:
    if set(os.listdir(out)) - {_LOCK, _INCOMPLETE}:
        raise _not_empty(str(out))


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # NFS locks only what is open for writing
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                "another process is writing there", where=str(path.parent), fix="wait for it to end"
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


class _RemoteOutput:
    keeps_all = False

    def __init__(self, out: str, scratch: Path) -> None:
        self._out = out.rstrip("/")
        self._uploaded = ExitStack()
        self.scratch = scratch

    def put(self, relative: str) -> None:
        url = f"{self._out}/{relative}"
        self._uploaded.callback(_remove_if_possible, url)
        cloud.upload(self.scratch / relative, url)
        (self.scratch / relative).unlink()

    def publish(self) -> None:
        self._uploaded.pop_all()

    def remove_unpublished(self) -> None:
        self._uploaded.close()


@contextmanager
def _remote(out: str) -> Iterator[Output]:
    if cloud.list_names(out):
        raise _not_empty(out)
    with tempfile.TemporaryDirectory(prefix="detronome-shards-") as scratch:
        output = _RemoteOutput(out, Path(scratch))
        try:
            yield output
        finally:
            output.remove_unpublished()


def _remove_if_possible(url: str) -> None:
    with suppress(DataError):
        cloud.remove(url)


def _not_empty(out: str) -> DataError:
    return DataError("the output is not empty", where=out, fix="give a folder that does not exist yet or is empty")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
