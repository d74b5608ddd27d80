"""`detronome report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console

from detronome.cli.options import OUTPUT_GROUP, Json
from detronome.cli.render import print_json

__all__ = ["report"]


def report(run: Path, /, *others: Path, out: Annotated[Path | None, OUTPUT_GROUP] = None, json: Json = False) -> None:
    """Write one self-contained HTML page: curves, metrics, pictures, settings.

    Parameters
    ----------
    run
        Run folder.
    others
        Further runs, to compare.
    out
        The page; by default report.html (or comparison.html) in the first run's folder.
    """
    from detronome import api

    page = api.write_report([run, *others], out=out)
    if json:
        print_json({"report": str(page)})
    else:
        Console(highlight=False, soft_wrap=True).print(str(page), markup=False)
