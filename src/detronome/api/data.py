"""Data sets: download, check, convert, stats, shards. Nothing here imports torch."""

from __future__ import annotations

__all__: list[str] = []
