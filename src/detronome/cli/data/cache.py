"""`detronome data cache`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detronome.cli.options import Json
from detronome.cli.render import print_json, print_table
from detronome.errors import ConfigError

if TYPE_CHECKING:
    from detronome.data.store.cache_folder import CacheEntry

__all__ = ["cache"]


def cache(
    *, clear: Annotated[bool, Parameter(negative=())] = False, older_than: float | None = None, json: Json = False
) -> None:
    """Say what lies in the cache, or clear it; everything in it can be made again.

    Parameters
    ----------
    clear
        Remove everything in the cache.
    older_than
        With --clear: only what was last written so many days ago or more.
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
    elif clear:
        _print(f"removed {_summary(entries)}")
    else:
        roots = [str(root) for root in cache_roots() if root.is_dir()]
        if entries:
            print_table(_table(entries))
        _print(f"{_summary(entries)} in {' and '.join(roots) or cache_roots()[0]}")


def _table(entries: Sequence[CacheEntry]) -> Table:
    from detronome.report.formats import format_significant

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("kind")
    table.add_column("size", justify="right")
    table.add_column("days old", justify="right")
    table.add_column("what")
    for entry in entries:
        name = Text(entry.made_from or str(entry.path))
        size = f"{format_significant(entry.num_bytes / 2**20)} MiB"
        table.add_row(entry.kind, size, f"{entry.age_days:.1f}", name)
    return table


def _summary(entries: Sequence[CacheEntry]) -> str:
    from detronome.report.formats import format_bytes

    noun = "entry" if len(entries) == 1 else "entries"
    return f"{len(entries):,} {noun}, {format_bytes(sum(entry.num_bytes for entry in entries))}"


def _print(line: str) -> None:
    Console(highlight=False, soft_wrap=True).print(line, markup=False)
