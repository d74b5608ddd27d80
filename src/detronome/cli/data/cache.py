"""`detronome data cache`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from detronome.cli.options import Json
from detronome.cli.render import print_json, print_line, print_table
from detronome.errors import ConfigError
from detronome.report.formats import format_bytes

if TYPE_CHECKING:
    from detronome.data.store.cache_folder import CacheEntry

__all__ = ["cache"]


def cache(
    *,
    clear: Annotated[bool, Parameter(negative=())] = False,
    older_than: float | None = None,
    all: Annotated[bool, Parameter(negative=())] = False,  # noqa: A002
    json: Json = False,
) -> None:
    """Say what lies in the cache, or clear it; everything in it can be made again.

    Parameters
    ----------
    clear
        Remove everything in the cache.
    older_than
        With --clear: only what was last written so many days ago or more.
    all
        List every entry with what it was made from, rather than a line for each kind.
    """
    from detronome import api
    from detronome.data.store.cache_folder import cache_roots

    if older_than is not None and not (clear and older_than >= 0):
        raise ConfigError(
            "--older-than needs --clear" if not clear else f"--older-than {older_than:g} is not a number of days",
            where="detronome data cache",
            fix="detronome data cache --clear --older-than 30",
        )
    entries = api.clear_caches(older_than_days=older_than or 0.0) if clear else api.list_caches()
    if json:
        print_json({"removed" if clear else "entries": [entry.to_json() for entry in entries]})
        return
    if entries and (all or not clear):
        print_table(_list(entries) if all else _kinds(entries))
    roots = [str(root) for root in cache_roots() if root.is_dir()] or [str(cache_roots()[0])]
    print_line(f"removed {_summary(entries)}" if clear else f"{_summary(entries)} in {' and '.join(roots)}")


def _kinds(entries: Sequence[CacheEntry]) -> Table:
    """Return a line for each kind of entry; `entries` come kind by kind."""
    table = _table("kind", "entries", "size", "days old")
    for kind, of_kind in groupby(entries, key=lambda entry: entry.kind):
        group = list(of_kind)
        ages = [entry.age_days for entry in group]
        newest, oldest = f"{min(ages):.1f}", f"{max(ages):.1f}"
        age = newest if newest == oldest else f"{newest}-{oldest}"
        table.add_row(kind, f"{len(group):,}", format_bytes(sum(entry.num_bytes for entry in group)), age)
    return table


def _list(entries: Sequence[CacheEntry]) -> Table:
    table = _table("kind", "size", "days old")
    table.add_column("what")
    for entry in entries:
        name = Text(entry.made_from or str(entry.path))
        table.add_row(entry.kind, format_bytes(entry.num_bytes), f"{entry.age_days:.1f}", name)
    return table


def _table(kind: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(kind)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _summary(entries: Sequence[CacheEntry]) -> str:
    noun = "entry" if len(entries) == 1 else "entries"
    return f"{len(entries):,} {noun}, {format_bytes(sum(entry.num_bytes for entry in entries))}"
