"""The charts of a run, and of several compared: which numbers of the log are drawn, and how."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detronome.report.chart import Marks, draw_chart
from detronome.report.curve import NOISY_POINTS, Curve, finite, smooth
from detronome.report.frame import Chart
from detronome.report.stack_chart import draw_stack
from detronome.report.wall_time import SECTION_LOOKS

__all__ = ["compare_charts", "learning_charts", "speed_charts", "system_charts"]

Record = Mapping[str, Any]


def learning_charts(records: Sequence[Record]) -> list[Chart]:
    """Return AP, losses, gradient norm and rates of one run, those without a value left out. No record gives none."""
    steps, evaluations = _steps(records), _evaluations(records)
    marks = _marks(records)
    epochs = _column(steps, "epoch")
    rates = [
        Curve(label=name, x=epochs, y=_column(steps, "learning_rates", name), color=color)
        for color, name in enumerate(_names(steps, "learning_rates"))
    ]
    loss, norm = _noisy(steps, "loss", "loss", 0), _noisy(steps, "grad_norm", "norm", 3)
    return _with_values(
        draw_chart("Average precision", _metrics(evaluations), unit="AP", floor=0.0, is_large=True),
        draw_chart("Loss", [loss], allow_log=True, marks=marks, is_large=True),
        *_loss_terms(steps, evaluations, marks),
        draw_chart("Gradient norm", [norm], allow_log=True, marks=marks),
        draw_chart("Learning rate", rates, allow_log=True),
    )


def speed_charts(records: Sequence[Record]) -> list[Chart]:
    """Return what a step takes by section, images a second, and what the loader has to do with it.

    Sections tell what is spent waiting for data: its own chart is for logs without them, and where workers fetch.
    """
    steps = _steps(records)
    stacks = _with_values(
        _sections(steps, "sections_s", "Time of a step by section"),
        _sections(steps, "device_s", "Time of a step on the device's own clock"),
    )
    wait = Curve(label="wait", x=_column(steps, "epoch"), y=_waits(steps), color=1, is_noisy=True)
    ready = [_noisy(steps, "batches_ready", "batches", 5)] if any(_column(steps, "batches_ready")) else []
    speed = _noisy(steps, "images_per_s", "images/s", 2)
    return _with_values(
        *stacks,
        draw_chart("Images per second", [speed], floor=0.0, is_large=len(stacks) == 1),
        draw_chart("Waiting for data", [wait] if ready or not stacks else [], floor=0.0, is_share=True),
        draw_chart("Batches ready when asked for", ready, floor=0.0),
    )


def system_charts(records: Sequence[Record]) -> list[Chart]:
    """Return what the machine did: processors, GPU, memory, disk; what was not measured is left out."""
    steps = _steps(records)
    epochs = _column(steps, "epoch")

    def curve(key: str, label: str, color: int, *, scale: float = 1.0) -> Curve:
        values = [value * scale for value in _column(steps, "system", key)]
        return Curve(label=label, x=epochs, y=values, color=color, is_noisy=True)

    gib, mib, percent = 1 / 2**30, 1 / 2**20, 0.01
    peak = [value * gib for value in _column(steps, "memory_bytes")]
    busy = [curve("gpu_percent", "GPU", 2, scale=percent), curve("cpu_percent", "processors", 0, scale=percent)]
    busy.append(curve("ram_percent", "memory", 7, scale=percent))
    disk = [curve("disk_read_bytes_s", "read", 5, scale=mib), curve("disk_write_bytes_s", "written", 6, scale=mib)]
    memory = [
        Curve(label="peak", x=epochs, y=peak, color=5),
        curve("gpu_memory_bytes", "on the GPU", 3, scale=gib),
        curve("rss_bytes", "on the host", 7, scale=gib),
    ]
    return _with_values(
        draw_chart("In use on the machine", busy, floor=0.0, is_share=True),
        draw_chart("Processors kept busy by this run", [curve("process_cpus", "processors", 0)], floor=0.0),
        draw_chart("Memory of the run, GiB", memory, floor=0.0),
        draw_chart("Disk, MiB/s", disk, floor=0.0),
        draw_chart("GPU power, W", [curve("gpu_power_w", "W", 4)], floor=0.0),
        draw_chart("GPU temperature, °C", [curve("gpu_temperature_c", "°C", 1)]),
    )


def compare_charts(runs: Mapping[str, Sequence[Record]]) -> list[Chart]:
    """Return AP, PQ where it was measured, loss and speed of several runs over one another, by the run's name."""
    metrics, panoptic, losses, speeds, waits = [], [], [], [], []
    for color, (name, records) in enumerate(runs.items()):
        steps, evaluations = _steps(records), _evaluations(records)
        epochs = _column(evaluations, "epoch")
        metrics.append(Curve(label=name, x=epochs, y=_column(evaluations, "metrics", "AP"), color=color))
        panoptic.append(Curve(label=name, x=epochs, y=_column(evaluations, "metrics", "PQ"), color=color))
        losses.append(_calm(steps, _column(steps, "loss"), name, color))
        speeds.append(_calm(steps, _column(steps, "images_per_s"), name, color))
        waits.append(_calm(steps, _waits(steps), name, color))
    return _with_values(
        draw_chart("AP", metrics, unit="AP", floor=0.0, is_large=True),
        draw_chart("PQ", panoptic, unit="AP", floor=0.0, is_large=True),
        draw_chart("Loss", losses, allow_log=True, is_large=True),
        draw_chart("Images per second", speeds, floor=0.0, is_large=True),
        draw_chart("Waiting for data", waits, floor=0.0, is_share=True, is_large=True),
    )


def _noisy(steps: Sequence[Record], column: str, label: str, color: int) -> Curve:
    return Curve(label=label, x=_column(steps, "epoch"), y=_column(steps, column), color=color, is_noisy=True)


def _calm(steps: Sequence[Record], values: Sequence[float], label: str, color: int) -> Curve:
    """Return a smooth curve: the noise of several runs would hide them all."""
    x, y = finite(Curve(label=label, x=_column(steps, "epoch"), y=values))
    x, y = smooth(x, y) if len(x) >= NOISY_POINTS else (x, y)
    return Curve(label=label, x=x.tolist(), y=y.tolist(), color=color)


def _waits(steps: Sequence[Record]) -> list[float]:
    """Return the part of each step spent waiting for data."""
    pairs = zip(_column(steps, "data_wait_s"), _column(steps, "step_s"), strict=True)
    return [_share(wait_s, step_s) for wait_s, step_s in pairs]


def _sections(steps: Sequence[Record], group: str, title: str) -> Chart:
    known = [record for record in steps if record.get(group)]
    values = {name: [1e3 * s for s in _column(known, group, name)] for name in _names(known, group)}
    return draw_stack(title, _column(known, "epoch"), values, SECTION_LOOKS, unit="ms")


def _metrics(evaluations: Sequence[Record]) -> list[Curve]:
    epochs = _column(evaluations, "epoch")
    marked = [_number(record.get("epoch")) for record in evaluations if record.get("is_best")]
    best = {"AP": marked[-1]} if marked else {}
    return [
        Curve(label=name, x=epochs, y=_column(evaluations, "metrics", name), color=color, best=best.get(name))
        for color, name in enumerate(("AP", "AP50", "AP75", "PQ"))
        if name != "PQ" or any("PQ" in (record.get("metrics") or {}) for record in evaluations)
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
