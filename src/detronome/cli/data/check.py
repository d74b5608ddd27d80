"""`detronome data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from detronome.cli.options import DATA_GROUP, MACHINE_GROUP, OUTPUT_GROUP, Json
from detronome.cli.progress import show_progress
from detronome.cli.render import print_json

__all__ = ["check"]


def check(
    data: str,
    /,
    *,
    split: Annotated[list[str] | None, DATA_GROUP, Parameter(negative=(), consume_multiple=True)] = None,
    images: Annotated[bool, DATA_GROUP] = True,
    queries: int = 100,
    fix: Annotated[Path | None, OUTPUT_GROUP] = None,
    assume_xyxy: Annotated[bool | None, DATA_GROUP, Parameter(negative="--assume-xywh")] = None,
    manifest: Annotated[Path | None, OUTPUT_GROUP] = None,
    strict: Annotated[bool, Parameter(negative=())] = False,
    workers: Annotated[int | None, MACHINE_GROUP] = None,
    all_cases: Annotated[bool, OUTPUT_GROUP, Parameter(name="--all", negative=())] = False,
    json: Json = False,
) -> int:
    """Find everything that is wrong with a data set: annotations, image files, panoptic maps, splits.

    Each kind of defect is told once, with its count, the first ids, what it does to training, and the fix. Nothing of
    yours is changed. Exits with 1 when there are errors.

    Parameters
    ----------
    data
        Data folder, or a single COCO file of which only the annotations are checked.
    split
        Splits to check; all by default.
    images
        Decode the image files too, and look for images that several splits share.
    queries
        Most objects that the model finds in one image; 100 in the classic DETR.
    fix
        Write repaired annotations to this new file, or, for several splits, into this folder.
    assume_xyxy
        The boxes are [left, top, right, bottom]; --assume-xywh if they are as COCO has them, whatever they look like.
    manifest
        Folder of SHA-256 lists of the image files, one a split: compared where there is one, else written. They show
        flipped bits that still decode.
    strict
        Exit with 1 for warnings too.
    workers
        Processes that decode images; by default one per processor.
    all_cases
        Name every case of each finding, not only the first ones.
    """
    from detronome import api
    from detronome.data.check.findings import SHOWN
    from detronome.report.check_console import print_check
    from detronome.runtime.processors import usable_cpus

    with show_progress() as show:
        report = api.check_data(
            data,
            splits=split,
            images=images,
            queries=queries,
            fix=fix,
            assume_xyxy=assume_xyxy,
            manifest=manifest,
            workers=usable_cpus() if workers is None else workers,
            max_cases=None if all_cases else SHOWN,
            on_progress=show,
        )
    print_json(report.to_json()) if json else print_check(report, all_cases=all_cases)
    return int(report.worst == "error" or (strict and report.worst == "warning"))
