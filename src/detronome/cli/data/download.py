"""`detronome data download`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from detronome.cli.options import MACHINE_GROUP, Json
from detronome.cli.render import print_json, print_line, print_notice
from detronome.runtime.signals import exit_code

__all__ = ["download"]

_OUTCOMES = {
    "installed": "{0.num_files:,} files installed",
    "restored": "{0.num_new:,} of {0.num_files:,} files restored",
    "there": "all {0.num_files:,} files are there",
}


def download(
    dataset: Literal["coco2017"],
    folder: Path,
    /,
    *,
    parts: Annotated[
        list[Literal["train", "val", "annotations", "panoptic"]] | None,
        Parameter(negative=(), consume_multiple=True),
    ] = None,
    connections: Annotated[int, MACHINE_GROUP] = 8,
    mirror: Annotated[str | None, MACHINE_GROUP] = None,
    keep_archives: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> int:
    """Download and unpack COCO 2017; the same command goes on where an interrupted one stopped.

    Every archive is verified by its SHA-256. Run again, it looks whether all files are there and restores those that
    are not. An official archive that lies in the folder already is used.

    Parameters
    ----------
    dataset
        The name of the data set.
    folder
        Where it goes: train2017/, val2017/ and annotations/ in it.
    parts
        What to download: by default train (18 GiB), val and annotations; panoptic is the maps of both splits.
    connections
        Ranges of a file that are received at the same time.
    mirror
        Base address of another server that has the archives, at the official paths or in one folder.
    keep_archives
        Leave the zip files in the folder once they are unpacked.
    """
    from detronome import api
    from detronome.report.download_console import DownloadConsole

    try:
        with DownloadConsole() as console:
            installed = api.download_data(
                dataset,
                folder,
                parts=parts,
                connections=connections,
                mirror=mirror,
                keep_archives=keep_archives,
                on_event=console,
            )
    except KeyboardInterrupt as error:
        print_notice("interrupted: what has come is kept; run the same command again to go on")
        return getattr(error, "exit_code", exit_code("SIGINT"))
    if json:
        print_json({"folder": str(folder), "parts": [part.to_json() for part in installed]})
        return 0
    for part in installed:
        print_line(f"{part.part}: {_OUTCOMES[part.outcome].format(part)}")
    print_line(f"data folder {folder}")
    return 0
