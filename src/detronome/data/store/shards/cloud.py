"""Addresses such as s3://bucket/data, through fsspec: the one place that imports it.

Backends raise nearly every kind of exception there is; here they all become `DataError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from detronome.errors import DataError, DetronomeError, MissingExtraError

__all__ = ["exists", "identity", "is_url", "list_names", "read", "remove", "stream", "upload"]

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]*://")
_CHUNK_BYTES = 8 << 20
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
}
"""What fsspec needs for a protocol."""
_VERSION = re.compile(
    r"size|e-?tag|(content-?)?md5(hash)?|digest|generation|(last[-_]?)?modified|[cm]time|updated|created", re.I
)
"""The properties that tell one version of a remote file from another, as backends call them."""


def is_url(place: str) -> bool:
    """Return whether a place is an address rather than a path."""
    return _URL.match(place) is not None


def read(url: str) -> bytes:
    """Return the content of a remote file.

    Raises:
        DataError: it is missing or cannot be read.
    """
    return b"".join(stream(url))


def stream(url: str) -> Iterator[bytes]:
    """Yield the content of a remote file in pieces of some megabytes, read as they are asked for.

    Raises:
        DataError: it is missing or cannot be read.
    """
    with _told("read", url):
        system, path = _resolve(url)
        with system.open(path, "rb", block_size=_CHUNK_BYTES) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk


def exists(url: str) -> bool:
    """Return whether there is a remote file or folder.

    Raises:
        DataError: the place cannot be asked.
    """
    with _told("read", url):
        system, path = _resolve(url)
        return bool(system.exists(path))


def list_names(url: str) -> list[str]:
    """Return the names in a remote folder, sorted; none where there is no such folder.

    Raises:
        DataError: the folder cannot be listed.
    """
    with _told("listed", url):
        system, path = _resolve(url)
        system.invalidate_cache()  # other processes write there too
        try:
            found = system.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)


def identity(url: str) -> str:
    """Return a text that changes when the remote file does: its size, entity tag, and time of change, as far as told.

    fsspec's own `ukey` takes whatever lies at an HTTP address for unchanging.

    Raises:
        DataError: it is missing or cannot be read.
    """
    with _told("read", url):
        system, path = _resolve(url)
        info = system.info(path)
        return repr(sorted((name, str(value)) for name, value in info.items() if _VERSION.fullmatch(name)))


def upload(file: Path, url: str) -> None:
    """Copy a local file to an address.

    Raises:
        DataError: it cannot be written.
    """
    with _told("written", url):
        system, path = _resolve(url)
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.put_file(str(file), path)


def remove(url: str) -> None:
    """Remove a remote file.

    Raises:
        DataError: it cannot be removed.
    """
    with _told("removed", url):
        system, path = _resolve(url)
        system.rm_file(path)


@contextmanager
def _told(verb: str, url: str) -> Iterator[None]:
    try:
        yield
    except DetronomeError:
        raise
    except ImportError as error:  # fsspec names the package that the protocol needs
        package = _PACKAGES.get(url.partition("://")[0].rpartition("::")[2].lower())
        fix = f"pip install 'detronome[cloud]' {package}" if package else "install that package"
        raise DataError(f"the address cannot be {verb}: {error}", where=url, fix=fix) from error
    except Exception as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
        raise DataError(
            f"the address cannot be {verb}: {reason}",
            where=url,
            fix="check the address, the credentials and the network",
        ) from error


def _resolve(url: str) -> tuple[Any, str]:
    """Return (file system, path in it). fsspec keeps one file system per process and address."""
    system, path = _fsspec().core.url_to_fs(url)
    return system, path


def _fsspec() -> ModuleType:
    try:
        import fsspec  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingExtraError("fsspec", extra="cloud", needed_for="data at an address") from error
    return fsspec
