"""What the package index has of the packages that we ask for. The only probe that speaks to a server."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from html.parser import HTMLParser
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from detronome.doctor.findings import Facts
from detronome.doctor.indexes import Indexes, indexes_of_pip, indexes_of_uv, shown
from detronome.doctor.install import Installer
from detronome.doctor.probes.installed import python
from detronome.doctor.versions import Requirement, Version, allows, normal_name

__all__ = ["BUDGET_S", "releases"]

BUDGET_S = 15.0
"""Of all answers together; who has not answered then is told so."""
_CONNECT_S, _READ_S = 5.0, 10.0
_CONNECTIONS = 16
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_ARCHIVES = (".tar.gz", ".zip")


def releases() -> Facts:
    """Ask for the releases of what we need directly, side by side; also which holes the installed ones have."""
    import httpx2

    names = _asked()
    indexes = _indexes()
    facts: Facts = {"indexes": [shown(url) for url in indexes.urls], "is_off": indexes.is_off, "packages": {}}
    if indexes.is_off:
        return facts
    timeout = httpx2.Timeout(_READ_S, connect=_CONNECT_S)
    limits = httpx2.Limits(max_connections=_CONNECTIONS)
    client = httpx2.Client(timeout=timeout, limits=limits, follow_redirects=True, headers={"User-Agent": "detronome"})
    asker = _Asker(indexes, client)
    begin = time.monotonic()
    pool = ThreadPoolExecutor(max_workers=_CONNECTIONS)  # not ended: this process ends without waiting for anybody
    asked = {pool.submit(asker.ask, name): name for name in names}
    done, _ = wait(asked, timeout=BUDGET_S)
    for future, name in asked.items():
        late = {"error": f"no answer within {BUDGET_S:.0f} s"}
        facts["packages"][name] = future.result() if future in done else late
    return facts | {"seconds": time.monotonic() - begin}


def _asked() -> list[str]:
    """Return what of our own requirements is installed, extras included."""
    try:
        lines = requires("detronome") or []
    except PackageNotFoundError:
        return []
    found = [Requirement.parse(line, python()["marker"]) for line in lines]
    return sorted({one.name for one in found if one is not None and _version(one.name)})


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _indexes() -> Indexes:
    if Installer.of_this_environment().is_uv:
        return indexes_of_uv(os.environ, Path.cwd())
    return indexes_of_pip(os.environ)


class _Asker:
    """Asks the indexes, and none again that could not be reached."""

    def __init__(self, indexes: Indexes, client: Any) -> None:
        self._indexes = indexes
        self._client = client
        self._away: dict[str, str] = {}
        self._lock = Lock()

    def ask(self, name: str) -> Facts:
        """Return the releases of a package that could be installed here, or why nobody knows."""
        found: set[str] = set()
        errors: list[str] = []
        is_listed = False
        for url in self._indexes.urls:
            try:
                files = self._files(url, name)
            except _NotToldError as error:
                errors.append(str(error))
                continue
            except (OSError, ValueError) as error:  # of a folder
                errors.append(f"{shown(url)} cannot be read: {type(error).__name__}: {error}")
                continue
            if files is None:
                continue
            is_listed = True
            found |= set(_versions(files, name))
            if self._indexes.is_first_enough:
                break
        if not is_listed:
            return {"error": "; ".join(errors) or "the index does not have it"}
        return {"releases": sorted(found), "holes": self._holes(name)}

    def _files(self, index: str, name: str) -> list[dict[str, Any]] | None:
        """Return the files of a package; None where the index does not have it."""
        parts = urlsplit(index)
        if parts.scheme == "file" or not parts.scheme:
            folder = Path(url2pathname(parts.path) if parts.scheme else index) / name
            page = folder / "index.html"
            if folder.is_dir() and not page.is_file():
                return [{"filename": file.name} for file in folder.iterdir()]
            return _of_html(page.read_text(encoding="utf-8", errors="replace")) if page.is_file() else None
        response = self._get(index, f"{index.rstrip('/')}/{quote(name)}/", accept=_ACCEPT)
        if response.status_code in (404, 410):
            return None
        if response.status_code != 200:
            raise _NotToldError(f"{shown(index)} answers with HTTP {response.status_code}")
        try:
            if "json" in response.headers.get("content-type", ""):
                return [file for file in response.json()["files"] if isinstance(file.get("filename"), str)]
            return _of_html(response.text)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _NotToldError(f"{shown(index)} gives no list of files: {type(error).__name__}") from error

    def _holes(self, name: str) -> list[dict[str, Any]] | None:
        """Return the known security holes of the installed release; None where the index does not tell them.

        PyPI's JSON interface does; other indexes seldom have it.
        """
        for index in self._indexes.urls:
            root, is_simple, _ = index.rstrip("/").rpartition("/simple")
            if not is_simple or not root.startswith("http"):
                continue
            try:
                response = self._get(index, f"{root}/pypi/{quote(name)}/{quote(_version(name))}/json")
                if response.status_code == 200:
                    return [_hole(entry) for entry in response.json()["vulnerabilities"] if not entry.get("withdrawn")]
            except (_NotToldError, ValueError, KeyError, TypeError, AttributeError):
                continue
        return None

    def _get(self, index: str, url: str, *, accept: str = "application/json") -> Any:
        import httpx2

        if index in self._away:
            raise _NotToldError(self._away[index])
        try:
            return self._client.get(url, headers={"Accept": accept})
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            reason = f"{shown(index)} cannot be asked: {type(error).__name__}: {error}"
            if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.InvalidURL)):
                with self._lock:
                    self._away[index] = reason
            raise _NotToldError(reason) from error


class _NotToldError(Exception):
    """Why an index did not say what it has."""


def _hole(entry: Mapping[str, Any]) -> dict[str, Any]:
    names = [str(name) for name in entry.get("aliases") or () if str(name).startswith("CVE-")]
    return {
        "id": next(iter(names), "") or str(entry["id"]),
        "fixed_in": [str(version) for version in entry.get("fixed_in") or ()],
        "summary": str(entry.get("summary") or ""),
    }


def _versions(files: list[dict[str, Any]], name: str) -> Iterator[str]:
    """Yield the final releases of which a file can be installed here."""
    ours = platform.python_version()
    for file in files:
        text = _version_of(file["filename"], name)
        found = Version.parse(text)
        if found is None or not found.is_final or file.get("yanked") not in (None, False):
            continue
        if not allows(str(file.get("requires-python") or ""), ours):
            continue
        if file["filename"].endswith(".whl") and not _serves(file["filename"]):
            continue
        yield text


def _version_of(filename: str, name: str) -> str:
    if filename.endswith(".whl"):
        parts = filename.split("-")
        return parts[1] if len(parts) in (5, 6) and normal_name(parts[0]) == name else ""
    stem = next((filename.removesuffix(end) for end in _ARCHIVES if filename.endswith(end)), "")
    project, _, text = stem.rpartition("-")
    return text if normal_name(project) == name else ""


_SYSTEMS = {"linux": r"(many)?linux.*_{machine}", "darwin": r"macosx_.*_({machine}|universal2)", "win32": r"win.*"}


def _serves(wheel: str) -> bool:
    """Return whether a wheel is for this Python and system, as far as its name tells; its Linux may still be newer."""
    pythons, abis, systems = wheel.removesuffix(".whl").split("-")[-3:]
    minor = sys.version_info.minor
    is_stable = "abi3" in abis.split(".")
    fits_python = any(
        tag in ("py3", f"cp3{minor}", f"py3{minor}")
        or (is_stable and tag.startswith("cp3") and re.fullmatch(r"[0-9]{1,4}", tag[3:]) and int(tag[3:]) <= minor)
        for tag in pythons.split(".")
    )
    fits_abi = is_stable or not {"none", f"cp3{minor}"}.isdisjoint(abis.split("."))
    pattern = _SYSTEMS.get(sys.platform, ".*").format(machine=re.escape(platform.machine()))
    fits_system = any(tag == "any" or re.fullmatch(pattern, tag) for tag in systems.split("."))
    return fits_python and fits_abi and fits_system


class _Anchors(HTMLParser):
    """The files of a page of the simple interface (PEP 503, 592)."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[dict[str, Any]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "a" and found.get("href"):
            filename = unquote(urlsplit(found["href"] or "").path.rpartition("/")[2])
            self.files.append(
                {
                    "filename": filename,
                    "requires-python": found.get("data-requires-python"),
                    "yanked": "data-yanked" in found,
                }
            )


def _of_html(text: str) -> list[dict[str, Any]]:
    parser = _Anchors()
    parser.feed(text)
    return parser.files
