"""The text of an error as it is given: words, a file or several, or what comes through a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
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
    if len(words) > 1 and all(_is_file(word) for word in words):  # the logs of several ranks
        return "\n".join(read_pasted([word]) for word in words)
    if not "".join(words).strip():
        return ""
    if len(words) > 1 or len(words[0]) > _LONGEST_PATH or "\n" in words[0]:
        return " ".join(words)
    path = Path(words[0])
    try:
        if path.is_file():
            with path.open("rb") as file:
                return _end_of(file)
        is_wrong = path.is_dir() or path.suffix in _LOGS
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the text cannot be read: {error}", where=words[0], fix="check the file and its permissions"
        ) from error
    if is_wrong:
        raise ConfigError(
            "this is a folder" if path.is_dir() else "there is no such file",
            where=words[0],
            fix="name the file that holds the error, or paste the error in quotes",
        )
    return words[0]


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # a text that is no name
        return False


def _end_of(file: IO[bytes]) -> str:
    """Return the last part of a long text: a log of a week is not held in memory."""
    kept = b""
    while block := file.read(_LONGEST_TEXT):
        kept = (kept + block)[-_LONGEST_TEXT:]
    text = kept.decode(errors="replace")
    if text.count(_NOT_TEXT) > _MOST_NOT_TEXT * len(text):
        raise ConfigError("this is no text", where="--explain", fix="give the log itself, unpacked")
    return text
