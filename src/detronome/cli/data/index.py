"""`detronome data index`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detronome.cli.options import DATA_GROUP, Json
from detronome.cli.render import print_json, print_table

__all__ = ["index"]

_OTHER_COLUMNS = 52
_LEAST_PATH = 24


def index(
    data: str,
    /,
    *,
    split: Annotated[list[str] | None, DATA_GROUP, Parameter(negative=(), consume_multiple=True)] = None,
    json: Json = False,
) -> None:
    """Compile the annotations now, so that the first run need not; a file that was compiled before takes no time.

    Parameters
    ----------
    data
        Data folder, address of shards, or a single annotation file.
    split
        Splits to compile; all by default.
    """
    from detronome import api
    from detronome.report.formats import format_bytes

    compiled = api.index_data(data, splits=split)
    if json:
        print_json({"data": data, "splits": [one.to_json() for one in compiled]})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("split")
    for heading in ("images", "annotations", "seconds", "on disk"):
        table.add_column(heading, justify="right")
    table.add_column("index")
    most = _room_for_path()
    for one in compiled:
        counts = (f"{len(one.index):,}", f"{len(one.index.labels):,}", f"{one.seconds:.3f}")
        folder = Text(_shortened(str(one.index.folder), most))
        table.add_row(Text(one.split), *counts, format_bytes(one.num_bytes), folder)
    print_table(table)


def _room_for_path() -> int | None:
    """Return how much of a terminal's line the other columns leave; None where there is no terminal."""
    console = Console()
    return max(_LEAST_PATH, console.width - _OTHER_COLUMNS) if console.is_terminal else None


def _shortened(path: str, most: int | None) -> str:
    if most is None or len(path) <= most:
        return path
    tail = (most - 1) // 2
    return f"{path[: most - 1 - tail]}…{path[-tail:]}"
