"""Arguments that came from a program rather than a command line: of the right kind, or told which one is not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from detronome.data.store.shards.cloud import is_url
from detronome.errors import ConfigError, DataError, nearest_name_hint

__all__ = ["local_folder", "names", "one_of", "one_process", "place", "whole_number"]


def place(value: object, where: str) -> str:
    """Return a path or an address as text.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigError(f"{value!r} is no path", where=where, fix="give a str or a Path")
    return str(value)


def local_folder(value: object, where: str, *, instead: str) -> Path:
    """Return a path on this machine.

    Raises:
        ConfigError: it is no path.
        DataError: it is an address; `instead` says what to do with one.
    """
    text = place(value, where)
    if is_url(text):
        raise DataError("an address is read here only for training, indexes and statistics", where=text, fix=instead)
    return Path(text)


def names(value: object, where: str) -> list[str] | None:
    """Return the names in a sequence; of a single string, that one name; None means all.

    Raises:
        ConfigError: there is no name, or something that is none.
    """
    if value is None:
        return None
    listed: Sequence[object] = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []
    found = [name for name in listed if isinstance(name, str) and name]
    if not found or len(found) != len(listed):
        raise ConfigError(
            f"{value!r} names nothing", where=where, fix=f"give a list of {where}, or None for the default"
        )
    return found


def one_of(value: object, kind: Any, where: str) -> None:
    """Refuse a value that is none of a `Literal`'s.

    Raises:
        ConfigError: it is none of them.
    """
    known = get_args(kind)
    if value not in known:
        hint = nearest_name_hint(str(value), known)
        raise ConfigError(f"{value!r} is not known", where=where, fix=hint)


def one_process(command: str) -> None:
    """Refuse to be started once for each rank of a job, as torchrun does.

    Raises:
        ConfigError: torchrun has announced several ranks.
    """
    ranks = os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ else "1"
    if ranks != "1":
        raise ConfigError(
            f"{command} is one process, and is started {ranks} times", where="torchrun", fix=f"run detronome {command}"
        )


def whole_number(value: object, where: str, *, least: int, of_what: str) -> None:
    """Refuse what is no whole number, or too small a one.

    Args:
        value: what was passed.
        where: the argument's name.
        least: the smallest number allowed.
        of_what: the message, with {} for the value.

    Raises:
        ConfigError: it is.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(of_what.format(value), where=where, fix=f"give a whole number from {least}")
