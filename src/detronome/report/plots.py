"""The charts of a run, and of several compared: which numbers of the log are drawn, and how."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detronome.report.chart import Chart, Marks, draw_chart
from detronome.report.curve import NOISY_POINTS, Curve, finite, smooth

__all__ = ["compare_charts", "run_charts"]

Record = Mapping[str, Any]


def run_charts(records: Sequence[Record]) -> list[Chart]:
    """Return the charts of one run, those without a single value left out. No record gives no chart."""
    steps, evaluations = _steps(records), _evaluations(records)
    marks = _marks(records)
    epochs = _column(steps, "epoch")

    def noisy(label: str, values: Sequence[float], color: int) -> list[Curve]:
        return [Curve(label=label, x=epochs, y=values, color=color, is_noisy=True)]

    rates = [
        Curve(label=name, x=epochs, y=_column(steps, "learning_rates", name), color=color)
        for color, name in enumerate(_names(steps, "learning_rates"))
    ]
    waits = [
        _share(wait_s, step_s)
        for wait_s, step_s in zip(_column(steps, "data_wait_s"), _column(steps, "step_s"), strict=True)
    ]
    memory = [value / 2**30 for value in _column(steps, "memory_bytes")]
    return _with_values(
        draw_chart("Average precision", _metrics(evaluations), unit="AP", floor=0.0, is_large=True),
        draw_chart("Loss", noisy("loss", _column(steps, "loss"), 0), allow_log=True, marks=marks, is_large=True),
        *_loss_terms(steps, evaluations, marks),
        draw_chart("Gradient norm", noisy("norm", _column(steps, "grad_norm"), 3), allow_log=True, marks=marks),
        draw_chart("Learning rate", rates, allow_log=True),
        draw_chart("Images per second", noisy("images/s", _column(steps, "images_per_s"), 2), floor=0.0),
        draw_chart("Waiting for data", noisy("wait", waits, 1), floor=0.0, is_share=True),
        draw_chart("Peak memory, GiB", [Curve(label="GiB", x=epochs, y=memory, color=5)], floor=0.0),
    )


def compare_charts(runs: Mapping[str, Sequence[Record]]) -> list[Chart]:
    """Return AP and loss of several runs over one another, by the run's name."""
    metrics, losses = [], []
    for color, (name, records) in enumerate(runs.items()):
        steps, evaluations = _steps(records), _evaluations(records)
        ap = _column(evaluations, "metrics", "AP")
        metrics.append(Curve(label=name, x=_column(evaluations, "epoch"), y=ap, color=color))
        x, y = finite(Curve(label=name, x=_column(steps, "epoch"), y=_column(steps, "loss")))
        x, y = smooth(x, y) if len(x) >= NOISY_POINTS else (x, y)  # the noise of several would hide them all
        losses.append(Curve(label=name, x=x.tolist(), y=y.tolist(), color=color))
    return _with_values(
        draw_chart("AP", metrics, unit="AP", floor=0.0, is_large=True),
        draw_chart("Loss", losses, allow_log=True, is_large=True),
    )


def _metrics(evaluations: Sequence[Record]) -> list[Curve]:
    epochs = _column(evaluations, "epoch")
    marked = [_number(record.get("epoch")) for record in evaluations if record.get("is_best")]
    best = {"AP": marked[-1]} if marked else {}
    return [
        Curve(label=name, x=epochs, y=_column(evaluations, "metrics", name), color=color, best=best.get(name))
        for color, name in enumerate(("AP", "AP50", "AP75"))
    ]


def _loss_terms(steps: Sequence[Record], evaluations: Sequence[Record], marks: Marks) -> list[Chart]:
    """Return a chart for each loss term, the validation split's values beside those of training."""
    epochs, eval_epochs = _column(steps, "epoch"), _column(evaluations, "epoch")
    charts = []
    for name in _names([*steps, *evaluations], "losses"):
        train = Curve(label="train", x=epochs, y=_column(steps, "losses", name), is_noisy=True)
        val = Curve(label="val", x=eval_epochs, y=_column(evaluations, "losses", name), color=1, is_dashed=True)
        charts.append(draw_chart(f"{name}, unweighted", [train, val], allow_log=True, marks=marks))
    return charts


def _marks(records: Sequence[Record]) -> Marks:
    per_epoch = next((r["steps_per_epoch"] for r in records if r.get("steps_per_epoch")), math.nan)
    skips = [_number(r.get("epoch")) for r in records if r["kind"] == "skip"]
    undone = [
        (_number(r.get("epoch")), _number(r.get("from_step")) / per_epoch) for r in records if r["kind"] == "rollback"
    ]
    return Marks(
        skips=[epoch for epoch in skips if math.isfinite(epoch)],
        undone=[(start, end) for start, end in undone if math.isfinite(start) and math.isfinite(end)],
    )


def _with_values(*charts: Chart) -> list[Chart]:
    return [chart for chart in charts if not chart.is_empty]


def _steps(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record["kind"] == "step"]


def _evaluations(records: Sequence[Record]) -> list[Record]:
    """Return one record a step: a resume from a checkpoint that was just evaluated does so again."""
    return list({record.get("step"): record for record in records if record["kind"] == "eval"}.values())


def _names(records: Iterable[Record], group: str) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.get(group) or {}))


def _column(records: Sequence[Record], name: str, key: str | None = None) -> list[float]:
    """Return one number of each record, or of a group in it; nan where it has none."""
    if key is None:
        return [_number(record.get(name)) for record in records]
    return [_number((record.get(name) or {}).get(key)) for record in records]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
