"""Where the model is right and wrong: AP by class, confusion, precision over recall, kinds of errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detronome.report.formats import clean_text, format_count, format_fixed
from detronome.report.frame import Chart
from detronome.report.recall_chart import RecallCurve, draw_recall
from detronome.report.run_files import ClassCurve, Confused, EvaluationFile
from detronome.report.run_folder import RunFolder
from detronome.report.stacked_bar import Look, Part, parts_of

__all__ = ["Cell", "ClassRow", "ConfusedPair", "ConfusionRow", "QualityView", "quality_of"]

_MAX_MATRIX_CLASSES = 20
_NARROW_COLUMNS = 12
_MAX_PAIRS = 12
_ROWS_PER_COLUMN = 14

_ERROR_LOOKS = {
    "missed": Look(name="missed: an object was not found", color=4),
    "background": Look(name="background: there is no object", color=1),
    "class": Look(name="class: found, but called something else", color=3),
    "location": Look(name="location: the right class, the box too far off", color=5),
    "duplicate": Look(name="duplicate: found once more", color=6),
}


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class: its AP, and what the curve at IoU 0.5 adds, as texts; a dash where not known."""

    name: str
    ap: str
    bar_percent: float
    ap50: str = "-"
    best_f1: str = "-"
    best_score: str = "-"
    num_objects: str = "-"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the confusion matrix."""

    text: str
    title: str
    heat: int
    """Share of the row in percent, raised for small ones to be seen; 0 for nothing."""
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class ConfusionRow:
    """One class of the truth."""

    name: str
    cells: Sequence[Cell]


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """One kind of mistake: `share` is of the truth's objects."""

    truth: str
    predicted: str
    count: str
    share: str
    bar_percent: float


@dataclass(frozen=True, kw_only=True)
class QualityView:
    """All of it; parts that the run does not know are empty."""

    class_columns: Sequence[Sequence[ClassRow]]
    has_curves: bool
    curve_chart: Chart | None
    overall: ClassRow | None
    columns: Sequence[str]
    rows: Sequence[ConfusionRow]
    pairs: Sequence[ConfusedPair]
    errors: Sequence[tuple[Part, str]]
    error_bar: Sequence[Part]
    measured_at: str

    @property
    def is_wide(self) -> bool:
        """Whether the matrix needs the width of the page."""
        return len(self.columns) > _NARROW_COLUMNS


def quality_of(run: RunFolder) -> QualityView:
    """Return what is known of where the model is right and wrong."""
    details = run.details
    per_class = (run.best or {}).get("per_class_ap") or {}
    rows = _class_rows(per_class, details)
    error_bar = parts_of(details.errors, _ERROR_LOOKS) if details else []
    has_curves = bool(details and details.curves)
    return QualityView(
        class_columns=_in_columns(rows, 1 if has_curves else 3),
        has_curves=has_curves,
        curve_chart=_curve_chart(details) if details and (details.curves or details.overall) else None,
        overall=_row(details.overall, math.nan) if details and details.overall else None,
        columns=_columns(details),
        rows=_matrix(details) if details and len(details.classes) <= _MAX_MATRIX_CLASSES else [],
        pairs=_pairs(details) if details else [],
        errors=[(part, f"{part.value:,.0f}") for part in error_bar],
        error_bar=error_bar,
        measured_at=_measured_at(details) if details else "",
    )


def _class_rows(per_class: Mapping[str, Any], details: EvaluationFile | None) -> list[ClassRow]:
    """Return the classes, best AP first, those without one last."""
    curves = {curve.name: curve for curve in details.curves} if details else {}
    rows = []
    for name in dict.fromkeys([*per_class, *curves]):
        ap = per_class.get(name)
        curve = curves.get(name) or ClassCurve(name=name)
        rows.append(_row(curve, float(ap) if isinstance(ap, (int, float)) else math.nan))
    return sorted(rows, key=lambda row: (row.ap == "-", -row.bar_percent, row.name))


def _row(curve: ClassCurve, ap: float) -> ClassRow:
    return ClassRow(
        name=clean_text(curve.name),
        ap=format_fixed(ap),
        bar_percent=100 * min(max(ap, 0.0), 1.0) if math.isfinite(ap) else 0.0,
        ap50=format_fixed(curve.ap50),
        best_f1=format_fixed(curve.best_f1, 2),
        best_score=format_fixed(curve.best_score, 2),
        num_objects="-" if curve.num_objects is None else format_count(curve.num_objects),
    )


def _in_columns(rows: Sequence[ClassRow], most: int) -> list[Sequence[ClassRow]]:
    columns = min(most, -(-len(rows) // _ROWS_PER_COLUMN))
    height = -(-len(rows) // columns) if columns else 0
    return [rows[start : start + height] for start in range(0, len(rows), height)] if height else []


def _curve_chart(details: EvaluationFile) -> Chart:
    curves = [_recall(curve) for curve in details.curves if curve.precision]
    overall = _recall(details.overall) if details.overall and details.overall.precision else None
    return draw_recall("Precision over recall", curves, overall)


def _recall(curve: ClassCurve) -> RecallCurve:
    return RecallCurve(
        name=curve.name,
        precision=[math.nan if value is None else value for value in curve.precision],
        average=math.nan if curve.ap50 is None else curve.ap50,
    )


def _columns(details: EvaluationFile | None) -> list[str]:
    return [*map(clean_text, details.classes), "missed"] if details else []


def _matrix(details: EvaluationFile) -> list[ConfusionRow]:
    """Return the matrix with the heat of each row's shares; empty where there are no counts."""
    names = [*map(clean_text, details.classes), "no object"]
    columns = _columns(details)
    rows = []
    for i, (name, counts) in enumerate(zip(names, details.confusion or [], strict=False)):
        total = sum(max(count, 0) for count in counts)
        cells = [
            Cell(
                text=format_count(count) if count > 0 else "",
                title=f"{name}, predicted as {column}: {count:,}"
                if column != "missed"
                else f"{name}, missed: {count:,}",
                heat=max(6, round(100 * count / total)) if count > 0 and total else 0,
                is_right=i == j,
            )
            for j, (column, count) in enumerate(zip(columns, counts, strict=False))
        ]
        rows.append(ConfusionRow(name=name, cells=cells))
    return rows


def _pairs(details: EvaluationFile) -> list[ConfusedPair]:
    """Return the most frequent mistakes between two classes, most frequent first."""
    num_objects = {curve.name: curve.num_objects or 0 for curve in details.curves}
    confused = sorted(details.top_confusions or _off_diagonal(details), key=lambda one: -one.count)[:_MAX_PAIRS]
    return [
        ConfusedPair(
            truth=clean_text(one.truth),
            predicted=clean_text(one.predicted),
            count=f"{one.count:,}",
            share=f"{100 * one.count / num_objects[one.truth]:.1f}%" if num_objects.get(one.truth) else "",
            bar_percent=100 * one.count / confused[0].count,
        )
        for one in confused
        if one.count > 0
    ]


def _off_diagonal(details: EvaluationFile) -> list[Confused]:
    names = details.classes
    return [
        Confused(truth=names[i], predicted=names[j], count=count)
        for i, counts in enumerate((details.confusion or [])[: len(names)])
        for j, count in enumerate(counts[:-1])
        if i != j
    ]


def _measured_at(details: EvaluationFile) -> str:
    facts = [
        f"{details.num_images:,} images" if details.num_images else "",
        f"split {clean_text(details.split)}" if details.split else "",
        f"step {details.step:,}" if details.step is not None else "",
        f"IoU {details.iou_threshold:g}" if details.iou_threshold is not None else "",
        f"scores from {details.score_threshold:.2g}" if details.score_threshold is not None else "",
    ]
    return ", ".join(fact for fact in facts if fact)
