"""A CSV table with one confident object a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from detronome.report.results.found import Found
from detronome.report.results.growing_file import GrowingFile

__all__ = ["COLUMNS", "CsvWriter"]

COLUMNS = ("file", "frame", "time_s", "image_id", "x1", "y1", "x2", "y2", "score", "category_id", "name")
"""Corners in pixels of the upright image; frame and time are empty for images."""


class CsvWriter:
    """Writes the table, with a header, in UTF-8.

    Args:
        path: the file.
        names: by category id.
    """

    def __init__(self, path: Path, names: Mapping[int, str]) -> None:
        self._file = GrowingFile(path)
        self._names = names
        self._write([COLUMNS])

    def add(self, found: Found) -> None:
        """Write the lines of one image or frame."""
        confident = found.confident
        frame = "" if found.frame is None else str(found.frame)
        time_s = "" if found.time_s is None else f"{found.time_s:.3f}"
        self._write(
            [
                (
                    found.file_name,
                    frame,
                    time_s,
                    str(confident.image_id),
                    *(f"{value:.2f}" for value in box),
                    f"{score:.4f}",
                    str(label),
                    self._names.get(int(label), ""),
                )
                for box, score, label in zip(confident.boxes_xyxy, confident.scores, confident.labels, strict=True)
            ]
        )

    def close(self, *, is_complete: bool) -> None:
        """Publish the file."""
        self._file.close(is_complete=is_complete)

    def _write(self, rows: list[tuple[str, ...]]) -> None:
        for row in rows:
            line = io.StringIO()
            csv.writer(line, lineterminator="\r\n").writerow(row)  # puts quotes around either of these in a name
            self._file.write(line.getvalue().removesuffix("\r\n") + "\n")
