"""`detronome data convert`."""

from __future__ import annotations

import shlex
from typing import Annotated, Literal

from cyclopts import Parameter

from detronome.cli.options import DATA_GROUP, OUTPUT_GROUP, Json
from detronome.cli.render import print_json, print_line, print_notice

__all__ = ["convert"]


def convert(
    data: str,
    out: str,
    /,
    *,
    to: Literal["coco", "yolo", "voc", "roboflow"],
    split: Annotated[list[str] | None, DATA_GROUP, Parameter(negative=(), consume_multiple=True)] = None,
    images: Annotated[Literal["symlink", "copy", "hardlink", "none"], OUTPUT_GROUP] = "symlink",
    sidecar: Annotated[bool, OUTPUT_GROUP, Parameter(negative="--no-sidecar")] = True,
    voc_one_based: Annotated[bool, OUTPUT_GROUP, Parameter(negative=())] = False,
    json: Json = False,
) -> None:
    """Write a data folder in another layout; converting back gives every field again.

    Parameters
    ----------
    data
        Folder in COCO, Roboflow, YOLO or Pascal VOC layout.
    out
        Folder that does not exist or is empty; it appears when all of it is written.
    to
        Layout to write.
    split
        Splits to convert; all by default.
    images
        How the image files get there; `none` converts the annotations alone.
    sidecar
        Write detronome.json beside YOLO and VOC files: it holds what they cannot say.
    voc_one_based
        VOC coordinates count pixels from 1 and include the last, as in the original devkit; by default a box begins
        at xmin and is xmax - xmin wide.
    """
    from detronome import api

    result = api.convert_data(
        data, out, to=to, splits=split, images=images, sidecar=sidecar, voc_one_based=voc_one_based
    )
    if json:
        print_json(result.to_json())
        return
    for part in result.splits:
        renamed = "" if part.name == part.written_as else f" (was {part.name})"
        print_line(f"{part.written_as}{renamed}: {part.num_images:,} images, {part.num_annotations:,} annotations")
    layout = result.target.upper()
    if result.unsaid:
        listed = ", ".join(f"{count:,} {kind}" for kind, count in result.unsaid.items())
        if result.has_sidecar:
            print_notice(f"kept in detronome.json, as {layout} files have no place for them: {listed}")
            print_notice("other tools do not see them; detronome reads them back as long as that file stays there")
        else:
            print_notice(f"lost, as {layout} files have no place for them: {listed}")
    if result.panoptic_files:
        print_notice(f"not converted: panoptic maps ({', '.join(result.panoptic_files)})")
    print_line(f"written to {result.out}; look at it with: detronome data check {shlex.quote(result.out)}")
