"""A split as a COCO document: the one form that every layout is read into and written from.

Documents are plain JSON values with every field of the source in them, known or not, so that nothing is lost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detronome.errors import DataError, first_few

__all__ = ["Record", "SplitDocument", "annotations_by_image", "check_file_names", "to_json_bytes"]

Record = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True)
class SplitDocument:
    """One split: its annotations as a COCO document, and where its images lie."""

    name: str
    document: Record
    images_dir: Path
    """What the documents' file names are relative to."""
    source: str
    """The file or folder that the annotations came from, as messages should name it."""
    left_out: tuple[str, ...] = ()
    """File names of images that are not in the document, as their size could not be read."""


def annotations_by_image(document: Record) -> dict[int, list[Record]]:
    """Return the annotations of each image id, in the document's order; every image has an entry."""
    grouped: dict[int, list[Record]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        grouped[annotation["image_id"]].append(annotation)
    return grouped


def to_json_bytes(document: Record) -> bytes:
    """Return a document as JSON text in which every number keeps its exact value."""
    return json.dumps(document, separators=(",", ":")).encode()


def check_file_names(splits: Sequence[SplitDocument]) -> None:
    """Refuse file names that would leave the folder they are put into, or meet in one file.

    Raises:
        DataError: names that are absolute, hold `..`, or belong to two images of a split.
    """
    outside, twice = [], []
    for split in splits:
        seen: set[str] = set()
        for image in split.document["images"]:
            name = image["file_name"]
            parts = name.split("/")
            if name.startswith("/") or ".." in parts or "" in parts or "." in parts:
                outside.append(f"{split.source}: {name}")
            elif name in seen:
                twice.append(f"{split.source}: {name}")
            seen.add(name)
    if outside:
        raise DataError(
            f"{len(outside)} file names lead outside the image folder or are not plain relative paths",
            where=first_few(outside),
            fix="name the images relative to their folder, such as street/001.jpg",
        )
    if twice:
        raise DataError(
            f"{len(twice)} images name a file that another image of the split names too",
            where=first_few(twice),
            fix="keep one record for each image file",
        )
