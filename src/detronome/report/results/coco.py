"""COCO's files of results: detections, and panoptic maps with their records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from detronome.ops.segment_ids import colors_of_ids
from detronome.report.pictures import save_picture
from detronome.report.results.found import Found
from detronome.report.results.growing_file import GrowingFile

__all__ = ["CocoWriter", "PanopticWriter"]


class CocoWriter:
    """A COCO results file with every detection: the evaluation wants the unlikely ones too.

    Beside COCO's keys a record has the file's name and, of a video, the number and the time of its frame.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._records = _Records(path, "[", "]\n")

    def add(self, found: Found) -> None:
        """Write the detections of one image or frame."""
        place = _place(found)
        for record in found.detections.to_coco():
            self._records.add({**record, **place})

    def close(self, *, is_complete: bool) -> None:
        """Publish the file."""
        self._records.close(is_complete=is_complete)


class PanopticWriter:
    """A COCO panoptic file, with the maps as PNG in the folder of the same name beside it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._maps = path.with_suffix("")
        self._records = _Records(path, '{"annotations": [', "]}\n")

    def add(self, found: Found) -> None:
        """Write the map of one image or frame."""
        panoptic = found.detections.panoptic
        assert panoptic is not None, "the model makes no masks"
        name = f"{found.name}.png"
        save_picture(colors_of_ids(panoptic.segment_ids), self._maps / name)
        record = replace(panoptic, image_id=found.detections.image_id).to_coco(name)
        self._records.add(record if found.frame is None else {**record, **_place(found, of_map=True)})

    def close(self, *, is_complete: bool) -> None:
        """Publish the file."""
        self._records.close(is_complete=is_complete)


class _Records:
    """A JSON list that is written record by record."""

    def __init__(self, path: Path, opening: str, closing: str) -> None:
        self._file = GrowingFile(path)
        self._before = opening
        self._opening, self._closing = opening, closing

    def add(self, record: Mapping[str, Any]) -> None:
        self._file.write(self._before + json.dumps(record))
        self._before = ", "

    def close(self, *, is_complete: bool) -> None:
        is_empty = self._before == self._opening
        self._file.write((self._opening if is_empty else "") + self._closing)
        self._file.close(is_complete=is_complete)


def _place(found: Found, *, of_map: bool = False) -> dict[str, Any]:
    name = {} if of_map else {"file_name": found.file_name}  # a map's record names the map
    return name if found.frame is None else {**name, "frame": found.frame, "time_s": found.time_s}
