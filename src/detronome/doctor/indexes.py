"""Which package indexes the user's installer asks: from the variables and files of pip, or of uv."""

from __future__ import annotations

import configparser
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["PYPI", "Indexes", "indexes_of_pip", "indexes_of_uv", "shown"]

PYPI = "https://pypi.org/simple"
_YES = {"1", "true", "yes", "on"}


@dataclass(frozen=True, kw_only=True)
class Indexes:
    """Addresses in the order in which they are asked."""

    urls: tuple[str, ...]
    is_first_enough: bool
    """Whether the first index that has a package hides the others, as with uv; pip takes the newest of all."""
    is_off: bool = False
    """Whether the installer is told to ask none."""


def shown(url: str) -> str:
    """Return an address without the name and password in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def indexes_of_pip(environment: Mapping[str, str]) -> Indexes:
    """Return what pip would ask: its variables come before [install], and that before [global] of its files."""
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for file in _pip_files(environment):
        parser = configparser.RawConfigParser()
        with suppress(configparser.Error, OSError, UnicodeDecodeError):
            parser.read(file, encoding="utf-8")
        for name, found in sections.items():
            if parser.has_section(name):
                found |= {key.replace("_", "-"): value for key, value in parser.items(name)}
    settings = sections["global"] | sections["install"]
    for key in ("index-url", "extra-index-url", "no-index"):
        value = environment.get("PIP_" + key.upper().replace("-", "_"))
        if value:
            settings[key] = value
    urls = [settings.get("index-url", "").strip() or PYPI, *settings.get("extra-index-url", "").split()]
    return Indexes(
        urls=tuple(dict.fromkeys(urls)),
        is_first_enough=False,
        is_off=settings.get("no-index", "").strip().lower() in _YES,
    )


def _pip_files(environment: Mapping[str, str]) -> Iterator[Path]:
    named = environment.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return
    home = Path(environment.get("HOME") or environment.get("USERPROFILE") or ".")
    if sys.platform == "win32":
        yield Path(environment.get("PROGRAMDATA", r"C:\ProgramData")) / "pip" / "pip.ini"
        yield home / "pip" / "pip.ini"
        yield Path(environment.get("APPDATA", home)) / "pip" / "pip.ini"
        yield Path(sys.prefix) / "pip.ini"
    else:
        for folder in environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":"):
            yield Path(folder) / "pip" / "pip.conf"
        yield Path("/etc/pip.conf")
        yield home / ".pip" / "pip.conf"
        if sys.platform == "darwin":
            yield home / "Library" / "Application Support" / "pip" / "pip.conf"
        yield _config_home(environment) / "pip" / "pip.conf"
        yield Path(sys.prefix) / "pip.conf"
    if named:
        yield Path(named)


def indexes_of_uv(environment: Mapping[str, str], folder: Path) -> Indexes:
    """Return what `uv pip` would ask, called in a folder: its variables come before the project's and user's files.

    The default index is asked last. Indexes that are `explicit` serve only packages that name them, and are left out.
    """
    default, others, is_off = "", list[str](), False
    for settings in (_variables_of_uv(environment), *_files_of_uv(environment, folder)):
        for table in (settings, _table(settings.get("pip"))):
            entries = [_table(entry) for entry in _list(table.get("index"))]
            named = [entry for entry in entries if not entry.get("explicit")]
            others += [str(entry["url"]) for entry in named if "url" in entry and not entry.get("default")]
            others += [str(url) for url in _list(table.get("extra-index-url"))]
            chosen = [str(entry["url"]) for entry in named if "url" in entry and entry.get("default")]
            default = default or next(iter(chosen), "") or str(table.get("index-url") or "")
            is_off = is_off or bool(table.get("no-index") or table.get("offline"))
    return Indexes(urls=tuple(dict.fromkeys([*others, default or PYPI])), is_first_enough=True, is_off=is_off)


def _variables_of_uv(environment: Mapping[str, str]) -> dict[str, Any]:
    def words(name: str) -> list[str]:
        return environment.get(name, "").split()

    def address(word: str) -> str:
        name, mark, url = word.partition("=")  # `name=https://...`
        return url if mark and "/" not in name else word

    return {
        "index": [{"url": address(word)} for word in words("UV_INDEX")],
        "extra-index-url": words("UV_EXTRA_INDEX_URL"),
        "index-url": address(next(iter([*words("UV_DEFAULT_INDEX"), *words("UV_INDEX_URL")]), "")),
        "no-index": environment.get("UV_NO_INDEX", "").lower() in _YES,
        "offline": environment.get("UV_OFFLINE", "").lower() in _YES,
    }


def _files_of_uv(environment: Mapping[str, str], folder: Path) -> Iterator[dict[str, Any]]:
    if environment.get("UV_NO_CONFIG", "").lower() in _YES:
        return
    if environment.get("UV_CONFIG_FILE"):
        yield _read(Path(environment["UV_CONFIG_FILE"]))
        return
    yield _project([folder, *folder.parents])
    if sys.platform == "win32":
        yield _read(Path(environment.get("APPDATA", ".")) / "uv" / "uv.toml")
        yield _read(Path(environment.get("PROGRAMDATA", r"C:\ProgramData")) / "uv" / "uv.toml")
    else:
        yield _read(_config_home(environment) / "uv" / "uv.toml")
        yield _read(Path("/etc/uv/uv.toml"))


def _project(folders: Iterable[Path]) -> dict[str, Any]:
    """Return the settings of the nearest folder that has some; `uv.toml` hides `pyproject.toml`."""
    for folder in folders:
        if (folder / "uv.toml").is_file():
            return _read(folder / "uv.toml")
        found = _table(_read(folder / "pyproject.toml").get("tool")).get("uv")
        if found is not None:
            return _table(found)
    return {}


def _table(value: object) -> dict[str, Any]:
    """Return a table of a file that somebody wrote by hand; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _config_home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME", ".")) / ".config")
