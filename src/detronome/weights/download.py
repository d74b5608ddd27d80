"""Bringing published weights into the cache: resumable, verified, and one process at a time.

    CACHE/weights/detr-r50-e632da11.pth                an official file, known by the digits in its name
    CACHE/weights/facebook--detr-resnet-50/            a model of huggingface.co: its files, and `hub.json`, which says
                                                       what they must be and is written last

What lies there complete is used without asking any server, so a model stays the same until the cache is cleared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from detronome.data.download.events import Listener, Noticed
from detronome.data.download.transfer import TransferOptions, fetch
from detronome.data.store.cache_folder import cache_folders
from detronome.errors import CheckpointError, DataError, first_few
from detronome.runtime.files import locked, remove_lock, sha256_of, write_atomic
from detronome.weights.catalog import OfficialFile
from detronome.weights.hub_folder import CONFIG, INDEXES, PREPROCESSOR, SINGLE_FILES, is_plain_name

__all__ = ["bring_hub_model", "bring_official_file", "hub_address", "require_digits"]

_RECORD = "hub.json"
_MAX_TEXT_BYTES = 2**24
"""Of a file that is no weights: descriptions and indexes."""
_TIMEOUT = httpx2.Timeout(30.0, connect=15.0)
_OPTIONS = TransferOptions(connections=4)


def bring_official_file(file: OfficialFile, on_event: Listener) -> Path:
    """Return the path of an official file, downloaded if it is not in the cache.

    Raises:
        CheckpointError: it cannot be had; says where to put it.
    """
    found = [folder / file.name for folder in cache_folders("weights")]
    for path in found:
        if path.is_file():
            require_digits(path, file.sha256_digits)
            return path
    destination = found[0]
    try:
        with _only_one(destination, on_event):
            size_bytes = _size_of(file.url)
            _fetch(file.url, destination, sha256=file.sha256_digits, size_bytes=size_bytes, on_event=on_event)
    except (DataError, httpx2.HTTPError, OSError) as error:
        raise CheckpointError(
            f"{file.name}, the published weights of {file.preset}, cannot be downloaded: {_reason(error)}",
            where=file.url,
            fix=f"download that address elsewhere and put the file at {destination}, or name the file instead of "
            f"{file.preset}",
        ) from error
    return destination


def hub_address() -> str:
    """Return the address of huggingface.co, or of the mirror that `HF_ENDPOINT` names."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def bring_hub_model(model_id: str, on_event: Listener, *, preset: str = "") -> Path:
    """Return a folder with config.json and weights of a model on huggingface.co, downloaded if it is not in the cache.

    Args:
        model_id: the model.
        on_event: told of the download's progress.
        preset: whose published weights these are, where it was asked for by that name.

    Raises:
        CheckpointError: it cannot be had; says where to put it.
    """
    name = model_id.replace("/", "--")
    folders = [root / name for root in cache_folders("weights")]
    for folder in folders:
        if (folder / _RECORD).is_file():
            _check_record(folder)
            return folder
        if (folder / CONFIG).is_file() and not list(folder.glob("*.part")):
            return folder  # put there by hand
    folder = folders[0]
    try:
        with _only_one(folder, on_event):
            if not (folder / _RECORD).is_file():
                _download_model(model_id, folder, on_event)
    except (DataError, httpx2.HTTPError, OSError, ValueError, AttributeError, RecursionError) as error:
        what, path = f"{model_id!r} is no folder or file here, and", "correct the path; or "
        if preset:
            what, path = f"{model_id}, the published weights of {preset},", ""
        put = f"config.json and model.safetensors elsewhere and put them into {folder}"
        raise CheckpointError(
            f"{what} cannot be had from {hub_address()}: {_reason(error)}",
            where=f"{hub_address()}/{model_id}",
            fix=f"{path}download {put}",
        ) from error
    return folder


def _download_model(model_id: str, folder: Path, on_event: Listener) -> None:
    with httpx2.Client(timeout=_TIMEOUT, follow_redirects=True, headers={"User-Agent": "detronome"}) as client:
        listing = json.loads(_text(client, f"{hub_address()}/api/models/{quote(model_id)}?blobs=true"))
        commit, files = _listed(listing)
        base = f"{hub_address()}/{quote(model_id)}/resolve/{quote(commit)}"
        texts = {CONFIG: _text(client, f"{base}/{CONFIG}")}
        if PREPROCESSOR in files:
            texts[PREPROCESSOR] = _text(client, f"{base}/{PREPROCESSOR}")
        single = next((name for name in SINGLE_FILES if name in files), None)
        names = [single] if single is not None else []
        if single is None:
            index = next((name for name in INDEXES if name in files), None)
            if index is None:
                raise ValueError(f"it has no weights that can be read, but {first_few(sorted(files)) or 'no file'}")
            texts[index] = _text(client, f"{base}/{index}")
            names = _shards(texts[index], files)
    for name, content in texts.items():
        _check_blob(content, files.get(name, {}), name)
    sums = {}
    for name in names:
        about = files[name].get("lfs") or {}
        sha256, size_bytes = about.get("sha256"), about.get("size", files[name].get("size"))
        if not isinstance(sha256, str) or len(sha256) != 64 or not isinstance(size_bytes, int):
            raise ValueError(f"the server does not say what {name} must be")
        _fetch(f"{base}/{quote(name)}", folder / name, sha256=sha256, size_bytes=size_bytes, on_event=on_event)
        sums[name] = sha256
    for name, content in reversed(texts.items()):  # config.json last: a folder that has it is taken as complete
        write_atomic(folder / name, content)
        sums[name] = hashlib.sha256(content).hexdigest()
    write_atomic(folder / _RECORD, json.dumps({"id": model_id, "commit": commit, "sha256": sums}, indent=1) + "\n")


def _listed(listing: object) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return (commit, what the server says of each file)."""
    commit = listing.get("sha") if isinstance(listing, dict) else None
    siblings = listing.get("siblings") if isinstance(listing, dict) else None
    if not isinstance(commit, str) or not isinstance(siblings, list):
        raise ValueError("the server's answer is no description of a model")
    entries = [entry for entry in siblings if isinstance(entry, dict) and isinstance(entry.get("rfilename"), str)]
    files = {entry["rfilename"]: entry for entry in entries}
    if CONFIG not in files:
        raise ValueError(f"it has no {CONFIG}")
    return commit, files


def _shards(index: bytes, files: Mapping[str, object]) -> list[str]:
    weight_map = json.loads(index).get("weight_map")
    names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    if not names or not all(is_plain_name(name) and name in files for name in names):
        raise ValueError("its index names files that it does not have")
    return names


def _check_blob(content: bytes, about: Mapping[str, Any], name: str) -> None:
    """Compare a small file with the name that git has for its content, where the server gives it."""
    expected = about.get("blobId")
    actual = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if isinstance(expected, str) and expected != actual:
        raise ValueError(f"{name} came damaged")


def _text(client: httpx2.Client, url: str) -> bytes:
    """Return a small file.

    Raises:
        httpx2.HTTPError: the server does not give it.
        ValueError: it is large.
    """
    with client.stream("GET", url) as response:
        response.raise_for_status()
        content = b""
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > _MAX_TEXT_BYTES:
                raise ValueError(f"{url} is far larger than such a file")
    return content


def _size_of(url: str) -> int:
    """Return the size of a file that a server has; costs a byte of it."""
    headers = {"User-Agent": "detronome", "Accept-Encoding": "identity", "Range": "bytes=0-0"}
    with (
        httpx2.Client(timeout=_TIMEOUT, follow_redirects=True, headers=headers) as client,
        client.stream("GET", url) as response,
    ):
        response.raise_for_status()
        whole = response.headers.get("content-length", "")  # from a server that knows no ranges
        text = response.headers.get("content-range", "").rpartition("/")[2] if response.status_code == 206 else whole
    if not text.isdecimal():
        raise httpx2.RemoteProtocolError("the server does not say how large the file is")
    return int(text)


def _fetch(url: str, destination: Path, *, sha256: str, size_bytes: int, on_event: Listener) -> None:
    fetch(url, destination, sha256=sha256, size_bytes=size_bytes, options=_OPTIONS, on_event=on_event)


@contextmanager
def _only_one(destination: Path, on_event: Listener) -> Iterator[None]:
    """Let other processes that want the same wait until it is there: the ranks of a run all load it."""
    lock = destination.with_name(f".{destination.name}.lock")
    with locked(lock) as is_free:
        pass
    if not is_free:
        on_event(Noticed(name=destination.name, text="another process is downloading it; waiting for that"))
    with locked(lock, wait=True):
        try:
            yield
        finally:
            remove_lock(lock)


def require_digits(path: Path, digits: str) -> None:
    """Refuse a file whose SHA-256 does not begin with the digits in its name.

    Raises:
        CheckpointError: it does not.
    """
    if not sha256_of(path).startswith(digits):
        raise CheckpointError(
            f"the file's SHA-256 does not begin with {digits}, as its name says: it is damaged or another file",
            where=str(path),
            fix="remove it, so that it is downloaded again; or rename it, if it is a file of your own",
        )


def _check_record(folder: Path) -> None:
    """Compare the files of a model with what they must be."""
    try:
        sums = json.loads((folder / _RECORD).read_bytes())["sha256"]
        bad = [name for name, expected in sums.items() if sha256_of(folder / name) != expected]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        bad = [str(error)]
    if bad:
        raise CheckpointError(
            f"files in the cache are not what was downloaded: {first_few(bad)}",
            where=str(folder),
            fix="remove that folder, so that the model is downloaded again",
        )


def _reason(error: Exception) -> str:
    if isinstance(error, DataError):
        return "; ".join(problem.what for problem in error.problems)
    if isinstance(error, httpx2.HTTPStatusError):
        status = error.response.status_code
        return {401: "the server knows no such public model (401)", 404: "the server has no such thing (404)"}.get(
            status, f"the server answered {status}"
        )
    if isinstance(error, httpx2.HTTPError):
        return f"no connection ({error or type(error).__name__})"
    return str(error)
