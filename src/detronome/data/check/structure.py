"""Findings about the structure of an annotation file: what keeps it from being read for training."""

from __future__ import annotations

from pathlib import Path

from detronome.data.check.findings import SHOWN, Finding
from detronome.data.coco.problems import Defect
from detronome.errors import DataError

__all__ = ["FIXABLE", "structural_finding", "unreadable_findings"]

_REFUSED = "training, evaluation and everything else refuse the file"

FIXABLE = {
    "number_in_quotes": "--fix takes the quotes away",
    "entry_not_object": "--fix removes them",
    "image_record_repeated": "--fix does",
    "category_record_repeated": "--fix does",
    "image_unknown": "--fix removes the annotations",
    "category_unknown": "--fix removes the annotations",
    "annotation_image_id_missing": "--fix removes the annotations",
    "annotation_category_id_missing": "--fix removes the annotations",
    "annotation_id_wrong": "--fix gives them new ids",
    "bbox_missing": "--fix takes the bounds of the polygons, or removes the annotation",
    "bbox_wrong": "--fix takes the bounds of the polygons, or removes the annotation",
    "area_wrong": "--fix computes it",
    "iscrowd_wrong": "--fix writes 0",
}
"""The defects that have one reasonable repair, and which."""


def structural_finding(defect: Defect, annotation_file: Path, max_cases: int | None = SHOWN) -> Finding:
    """Return a structural defect as a finding."""
    repair = FIXABLE.get(defect.code)
    return Finding(
        code=defect.code,
        severity="error",
        what=defect.sentence,
        count=len(defect.cases),
        cases=tuple(defect.cases[:max_cases]),
        where=str(annotation_file),
        effect=_REFUSED,
        fix=f"{defect.fix}; {repair}" if repair else defect.fix,
        is_fixable=repair is not None,
    )


def unreadable_findings(error: DataError, code: str, where: Path, *, effect: str = _REFUSED) -> list[Finding]:
    """Return what kept a file or folder from being looked at, as findings."""
    return [
        Finding(
            code=code,
            severity="error",
            what=problem.what,
            count=1,
            cases=(problem.where,) if problem.where and problem.where != str(where) else (),
            where=str(where),
            effect=effect,
            fix=problem.fix or "copy or export it again",
        )
        for problem in error.problems
    ]
