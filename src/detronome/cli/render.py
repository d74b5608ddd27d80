"""What commands print: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detronome.engine.resume import resume_command
from detronome.errors import DetronomeError
from detronome.runtime.signals import exit_code

if TYPE_CHECKING:
    from detronome.api import Run
    from detronome.evaluation.detection import DetectionMetrics
    from detronome.evaluation.panoptic import PanopticMetrics

__all__ = [
    "print_error",
    "print_json",
    "print_line",
    "print_metrics",
    "print_notice",
    "print_outcome",
    "print_panoptic_metrics",
    "print_table",
]

_WIDE = 1000


def print_error(error: DetronomeError) -> None:
    """Print what was wrong, where, and the fix; all problems."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for problem in error.problems:
        console.print(Text("error: ", style="bold red") + Text(problem.what))
        if problem.where:
            console.print(Text("  where: ", style="dim") + Text(problem.where))
        if problem.fix:
            console.print(Text("  fix:   ", style="green") + Text(problem.fix))


def print_json(record: Mapping[str, Any]) -> None:
    """Print a record to stdout as one JSON document; nan becomes null."""
    if sys.stdout is None:  # closed
        return
    json.dump(_without_nan(record), sys.stdout, indent=1)
    sys.stdout.write("\n")
    sys.stdout.flush()  # also where the command goes on, as serve does


def print_line(text: str) -> None:
    """Print a line to stdout as it is: whole, however narrow the terminal, and without reading markup into names."""
    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def print_notice(text: str) -> None:
    """Print to stderr what a person should know about a result."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(text, style="yellow"))


def print_metrics(metrics: DetectionMetrics, *, title: str) -> None:
    """Print the twelve numbers, the classes and the notes."""
    console = Console(highlight=False)
    console.print(Text(title, style="bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for heading in ("AP", "value", "AR", "value "):
        table.add_column(heading, justify="right" if heading.startswith("value") else "left")
    precision = [(n, v) for n, v in metrics.numbers.items() if n.startswith("AP")]
    recall = [(n, v) for n, v in metrics.numbers.items() if n.startswith("AR")]
    for (ap, ap_value), (ar, ar_value) in zip(precision, recall, strict=False):
        table.add_row(ap, _number(ap_value), ar, _number(ar_value))
    print_table(table)
    if metrics.per_class_ap:
        console.print()
        classes = Table(box=None, pad_edge=False)
        classes.add_column("class")
        classes.add_column("AP", justify="right")
        for name, value in metrics.per_class_ap.items():
            classes.add_row(Text(name), _number(value))
        print_table(classes)
    for note in metrics.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


def print_panoptic_metrics(metrics: PanopticMetrics, *, title: str) -> None:
    """Print PQ, SQ and RQ of all categories, things and stuff, then of each category that occurs, and the notes."""
    console = Console(highlight=False)
    console.print(Text(title, style="bold"), soft_wrap=True)
    groups = Table("", "PQ", "SQ", "RQ", "categories", box=None, pad_edge=False)
    for name, quality in (("all", metrics.all), ("things", metrics.things), ("stuff", metrics.stuff)):
        row = (_number(quality.PQ), _number(quality.SQ), _number(quality.RQ), str(quality.num_categories))
        groups.add_row(name, *row)
    print_table(groups)
    classes = Table("category", "PQ", "SQ", "RQ", "found", "false", "missed", box=None, pad_edge=False)
    for column in (*groups.columns[1:], *classes.columns[1:]):
        column.justify = "right"
    for category_id, found in metrics.per_category.items():
        counts = (found.true_positives, found.false_positives, found.false_negatives)
        if any(counts):
            numbers = (_number(found.PQ), _number(found.SQ), _number(found.RQ), *map(str, counts))
            classes.add_row(Text(metrics.names[category_id]), *numbers)
    if classes.row_count:
        console.print()
        print_table(classes)
    for note in metrics.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


def print_outcome(run: Run, *, as_json: bool) -> int:
    """Print where a run's results are, and on stderr how to go on with it; return what the command is to end with:
    0, or 128 and the number of the signal that interrupted the run. Of several ranks, the main one prints."""
    from detronome.runtime.distributed import world_of_environment  # imports torch, as the run has

    code = exit_code(run.signal) if run.reason == "interrupted" else 0
    if not world_of_environment().is_main:
        return code
    if run.reason == "interrupted":
        print_notice(f"resume with: {resume_command(run.folder)}")
    elif run.was_finished:
        print_notice(f"{run.folder} had ended already: nothing was trained")
    if as_json:
        print_json(_run_record(run))
    elif run.reason != "interrupted":
        _print_run(run)
    return code


def print_table(table: Table) -> None:
    """Print a table without folding a cell: a narrow terminal wraps its lines, a pipe gets them whole."""
    Console(highlight=False, width=_WIDE).print(table)


def _print_run(run: Run) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if run.metrics:
        names = ("PQ", "AP", "AP50", "AP75") if "PQ" in run.metrics else ("AP", "AP50", "AP75")
        shown = "  ".join(f"{name} {_number(run.metrics[name])}" for name in names)
        console.print(Text(shown, style="bold"))
    kept = "best" if run.metrics else "last"
    console.print(Text(f"{kept} checkpoint  {run.folder / 'checkpoints' / kept}"))
    console.print(Text(f"pictures         {run.folder / 'pictures'}"))
    console.print(Text(f"report           {run.report}"))


def _run_record(run: Run) -> dict[str, Any]:
    return {
        "run": str(run.folder),
        "reason": run.reason,
        "metrics": run.metrics,
        "report": str(run.report) if run.report else None,
        "signal": run.signal or None,
        "resume_with": resume_command(run.folder) if run.reason == "interrupted" else None,
        "was_finished": run.was_finished,
    }


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
