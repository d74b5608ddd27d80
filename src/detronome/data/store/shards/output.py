"""Where new shards go: a folder or an address, in which nothing looks finished until everything is.

At an address the headers, without which shards are not found, are uploaded last.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from detronome.data.store.shards import cloud
from detronome.data.store.shards.format import SHARDS_FOLDER
from detronome.errors import ConfigError, DataError
from detronome.runtime.files import filled_directory

__all__ = ["Output", "open_output"]


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


@contextmanager
def open_output(out: str) -> Iterator[Output]:
    """Yield an output for a folder or an address; the data set appears on success, and all files were put by then.

    What is not finished is removed.

    Raises:
        ConfigError: it is not empty.
        DataError: it is being written by another process, or cannot be written.
    """
    if cloud.is_url(out):
        with _remote(out) as remote:
            yield remote
    else:
        with filled_directory(Path(out), last=SHARDS_FOLDER) as scratch:
            yield _LocalOutput(scratch)


class _LocalOutput:
    keeps_all = True

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def put(self, relative: str) -> None:
        """Files stay in `scratch`, which becomes the data set."""


class _RemoteOutput:
    keeps_all = False

    def __init__(self, out: str, scratch: Path, uploaded: ExitStack) -> None:
        self._out = out.rstrip("/")
        self._uploaded = uploaded
        self.scratch = scratch

    def put(self, relative: str) -> None:
        url = f"{self._out}/{relative}"
        self._uploaded.callback(_remove_if_possible, url)
        cloud.upload(self.scratch / relative, url)
        (self.scratch / relative).unlink()


@contextmanager
def _remote(out: str) -> Iterator[Output]:
    if cloud.list_names(out):
        raise ConfigError("the output is not empty", where=out, fix="give an address that has no files yet")
    try:
        with tempfile.TemporaryDirectory(prefix="detronome-shards-") as scratch, ExitStack() as uploaded:
            yield _RemoteOutput(out, Path(scratch), uploaded)
            uploaded.pop_all()
    except OSError as error:
        raise DataError(
            f"the shards cannot be prepared: {error.strerror or error}",
            where=str(error.filename or tempfile.gettempdir()),
            fix="free some space there, or set TMPDIR to a folder on another disk",
        ) from error


def _remove_if_possible(url: str) -> None:
    with suppress(DataError):
        cloud.remove(url)
