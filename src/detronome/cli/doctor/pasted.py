"""The text of an error as it is given: words, a file or several, or what comes through a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from stat import S_ISDIR
from typing import IO

from rich.console import Console

from detronome.errors import ConfigError

__all__ = ["read_pasted"]

_LONGEST_TEXT = 16 * 2**20
"""Bytes of a log that are read, the last ones; half a second of the processor for each million."""
_NOT_TEXT, _MOST_NOT_TEXT = "\ufffd", 0.1
"""What bytes become that are no characters, and the share of it from which on it is no text."""
_LONGEST_PATH = 1000
_LOGS = {".log", ".txt", ".out", ".err"}
"""Endings of words that are meant as a file."""


def read_pasted(words: list[str]) -> str:
    """Return what is to be explained: the words, the file that they name, or the standard input.

    Raises:
        ConfigError: a file that is meant is not there, cannot be read, or is no text.
    """
    if not words:
        if sys.stdin is None:  # closed
            return ""
        if sys.stdin.isatty():
            Console(stderr=True).print("paste the text, then press Ctrl-D", style="dim")
        return _end_of(sys.stdin.buffer)
    kinds = [_kind_of(word) for word in words]
    if set(kinds) == {"file"}:  # several: the logs of ranks
        return "\n".join(_read(word) for word in words)
    wrong = {"missing log"} if "file" in kinds else {"missing log", "folder"} if len(words) == 1 else set[str]()
    for word, kind in zip(words, kinds, strict=True):
        if kind in wrong:
            raise ConfigError(
                "this is a folder" if kind == "folder" else "there is no such file",
                where=word,
                fix="name the file that holds the error, or paste the error in quotes",
            )
    return " ".join(words)


def _kind_of(word: str) -> str:
    """Return what a word names: a file (or a pipe), a folder, a log that is not there; else it is text."""
    try:
        mode = Path(word or " ").stat().st_mode  # the path of an empty word would be the working folder
    except (FileNotFoundError, NotADirectoryError):
        is_name = len(word) <= _LONGEST_PATH and "\n" not in word
        return "missing log" if is_name and Path(word).suffix in _LOGS else "text"
    except (OSError, ValueError):  # too long for a name, or with a zero in it
        return "text"
    return "folder" if S_ISDIR(mode) else "file"


def _read(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            return _end_of(file)
    except OSError as error:
        raise ConfigError(
            f"the text cannot be read: {error}", where=name, fix="check the file and its permissions"
        ) from error


def _end_of(file: IO[bytes]) -> str:
    """Return the last part of a long text: a log of a week is not held in memory."""
    kept = b""
    while block := file.read(_LONGEST_TEXT):
        kept = (kept + block)[-_LONGEST_TEXT:]
    text = kept.decode(errors="replace")
    if text.count(_NOT_TEXT) > _MOST_NOT_TEXT * len(text):
        raise ConfigError("this is no text", where="--explain", fix="give the log itself, unpacked")
    return text
