"""Checking one annotation file: structure, ids, boxes, outlines, categories, all in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detronome.data.check.boxes import check_boxes
from detronome.data.check.collector import Collector
from detronome.data.check.findings import SHOWN, Finding
from detronome.data.check.outlines import check_outlines
from detronome.data.check.records import check_records
from detronome.data.check.structure import structural_finding, unreadable_findings
from detronome.data.check.table import AnnotationTable, read_table
from detronome.data.coco.problems import Defect
from detronome.errors import DataError

__all__ = ["DEFAULT_QUERIES", "AnnotationCheck", "check_annotations", "check_table"]

DEFAULT_QUERIES = 100
"""Of the classic DETR: the most objects that it can find in one image."""


@dataclass(frozen=True)
class AnnotationCheck:
    """What one annotation file holds and what is wrong with it."""

    findings: list[Finding]
    table: AnnotationTable | None
    """What could be read; None for a file that is not even a JSON object."""
    is_sound: bool
    """Whether training would read the file."""


def check_annotations(
    annotation_file: Path,
    *,
    queries: int = DEFAULT_QUERIES,
    assume_xyxy: bool | None = None,
    max_cases: int | None = SHOWN,
) -> AnnotationCheck:
    """Return all findings about a COCO annotation file. Whatever the file holds, nothing is raised.

    Args:
        annotation_file: the JSON file.
        queries: how many objects the model to be trained finds in one image at most.
        assume_xyxy: whether boxes are [left, top, right, bottom], or surely are not; None where nobody said.
        max_cases: how many cases a finding names; None for all.
    """
    try:
        table, defects = read_table(annotation_file)
    except DataError as error:
        return AnnotationCheck(unreadable_findings(error, "file_unreadable", annotation_file), None, False)
    if assume_xyxy:
        table = table.with_boxes_of_corners()
    findings = check_table(table, defects, queries=queries, assume_xyxy=assume_xyxy, max_cases=max_cases)
    return AnnotationCheck(findings, table, not defects)


def check_table(
    table: AnnotationTable,
    defects: list[Defect],
    *,
    queries: int = DEFAULT_QUERIES,
    assume_xyxy: bool | None = None,
    max_cases: int | None = SHOWN,
) -> list[Finding]:
    """Return all findings about an annotation file that was read; corners were turned into left, top, width, height."""
    found = Collector(table, max_cases)
    found.findings = [structural_finding(defect, table.annotation_file, max_cases) for defect in defects]
    check_boxes(table, found, assume_xyxy=assume_xyxy)
    check_records(table, found, queries=queries)
    check_outlines(table, found, assume_xyxy=assume_xyxy)
    return found.findings
