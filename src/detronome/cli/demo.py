"""`detronome demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from detronome.cli.options import OUTPUT_GROUP, Json, Settings, parse_settings
from detronome.cli.render import print_outcome

__all__ = ["demo"]


def demo(
    *,
    out: Annotated[Path, OUTPUT_GROUP] = Path("detronome-demo"),
    quick: Annotated[bool, Parameter(negative=())] = False,
    seed: int = 0,
    settings: Settings = None,
    json: Json = False,
) -> int:
    """Train a detector from scratch on embedded scenes of handwritten digits, then show what it learned.

    Parameters
    ----------
    out
        Folder for data, run, pictures and report.
    quick
        Only a few scenes and steps, to see that everything works.
    seed
        Of the training.
    """
    from detronome import api
    from detronome.report.console import ConsoleProgress

    progress = ConsoleProgress()
    try:
        Console(stderr=True, highlight=False).print(f"scenes of handwritten digits go to {out}", markup=False)
        run = api.demo(out, quick=quick, seed=seed, settings=parse_settings(settings), observers=[progress])
    finally:
        progress.close()
    return print_outcome(run, as_json=json)
