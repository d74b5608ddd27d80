"""What a download tells those who watch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["DownloadEvent", "Listener", "Noticed", "Planned", "Progressed", "Stage", "ignore"]

Stage = Literal["download", "verify", "unpack"]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is going to happen, once, before anything is transferred."""

    sizes_bytes: dict[str, int]
    """The files to download and their sizes."""
    needed_bytes: int
    """Disk space that will be used at most, beyond what is there already."""
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """How far one file is."""

    name: str
    stage: Stage
    done_bytes: int
    """Bytes that are there, those of an earlier, interrupted run included."""
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class Noticed:
    """Something that a person may want to know: a connection that broke, a server without ranges."""

    name: str
    text: str


DownloadEvent = Planned | Progressed | Noticed
Listener = Callable[[DownloadEvent], None]


def ignore(event: DownloadEvent) -> None:
    """Listen to nothing."""
