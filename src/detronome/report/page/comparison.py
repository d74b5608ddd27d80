"""Several runs beside each other: results, curves, time of a step, memory, verdicts, and the settings that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detronome.report.formats import (
    clean_text,
    format_bytes,
    format_count,
    format_duration,
    format_fixed,
    format_significant,
)
from detronome.report.frame import Chart
from detronome.report.page.memory import peaks_of
from detronome.report.page.result import METRICS, PANOPTIC_METRICS, VerdictView, verdict_of
from detronome.report.page.words import STATES, percent
from detronome.report.plots import compare_charts
from detronome.report.run_folder import RunFolder, differing_settings, metric
from detronome.report.stacked_bar import Part, parts_of
from detronome.report.wall_time import SECTION_LOOKS

__all__ = ["ComparedBar", "Comparison", "ResultRow", "SettingRow", "compare_runs"]


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One quantity: a text for each run, and which run is best; None where it does not matter or is not clear."""

    name: str
    values: Sequence[str]
    best: int | None = None


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One setting: a value for each run, and whether it is not that of the first run."""

    name: str
    values: Sequence[tuple[str, bool]]


@dataclass(frozen=True, kw_only=True)
class ComparedBar:
    """One bar for one run, on the scale of all."""

    name: str
    total: str
    percent: float
    """Length, 0-100 of the largest."""
    parts: Sequence[Part]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of it; parts that no run knows are empty."""

    names: Sequence[str]
    results: Sequence[ResultRow]
    charts: Sequence[Chart]
    steps: Sequence[ComparedBar]
    """The time of a step by section."""
    step_legend: Sequence[Part]
    memory: Sequence[ComparedBar]
    memory_legend: Sequence[Part]
    verdicts: Sequence[tuple[str, VerdictView | None]]
    """By run; empty where no run has one."""
    settings: Mapping[str, Sequence[SettingRow]]
    """Those that differ, by section of the configuration."""

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Anchor and name of the parts that there are."""
        parts = [
            ("results", "Results", True),
            ("settings", "Settings", bool(self.settings)),
            ("verdicts", "Verdicts", bool(self.verdicts)),
            ("curves", "Curves", bool(self.charts)),
            ("speed", "Time and memory", bool(self.steps or self.memory)),
            ("runs", "Each run", True),
        ]
        return [(anchor, name) for anchor, name, is_there in parts if is_there]


def compare_runs(runs: Sequence[RunFolder]) -> Comparison:
    """Return two runs or more beside each other."""
    steps = _step_bars(runs)
    memory = _memory_bars(runs)
    verdicts = [(run.name, verdict_of(run.verdict)) for run in runs]
    return Comparison(
        names=[run.name for run in runs],
        results=_results(runs),
        charts=compare_charts({run.name: run.records for run in runs}),
        steps=steps,
        step_legend=_legend(steps),
        memory=memory,
        memory_legend=_legend(memory),
        verdicts=verdicts if any(verdict for _, verdict in verdicts) else [],
        settings=_settings(runs),
    )


def _results(runs: Sequence[RunFolder]) -> list[ResultRow]:
    rows = []
    for name in (*METRICS, *PANOPTIC_METRICS):
        values = [metric(run.best, name) for run in runs]
        if any(value is not None for value in values):
            rows.append(_ranked(name.replace("_", " "), values, [format_fixed(value) for value in values]))
    speeds = [run.images_per_s for run in runs]
    rows += [
        ResultRow(name="state", values=[STATES.get(run.state, (run.state, ""))[0] for run in runs]),
        ResultRow(name="best step", values=[f"{run.best['step']:,}" if run.best else "-" for run in runs]),
        ResultRow(name="training time", values=[format_duration(run.training_s) for run in runs]),
        _ranked("images/s", speeds, [format_significant(speed) for speed in speeds]),
        ResultRow(name="data wait", values=[percent(run.data_wait_share) for run in runs]),
        ResultRow(name="peak memory", values=[format_bytes(run.peak_memory_bytes) for run in runs]),
        ResultRow(name="goodput", values=[percent(run.goodput) for run in runs]),
        ResultRow(name="parameters", values=[format_count(run.start.get("num_parameters")) for run in runs]),
        ResultRow(name="skipped steps", values=[str(run.num_skipped) for run in runs]),
    ]
    return [row for row in rows if set(row.values) != {"-"}]


def _ranked(name: str, values: Sequence[float | None], texts: Sequence[str]) -> ResultRow:
    """Return the row with its largest value marked, where it is larger than all others as they are written."""
    winner = max(range(len(values)), key=lambda i: -1.0 if values[i] is None else values[i] or 0.0)
    return ResultRow(name=name, values=texts, best=None if texts.count(texts[winner]) > 1 else winner)


def _step_bars(runs: Sequence[RunFolder]) -> list[ComparedBar]:
    sections = [run.sections_s for run in runs]
    totals = [sum(of_run.values()) for of_run in sections]
    longest = max(totals)
    if longest <= 0:
        return []
    return [
        ComparedBar(
            name=run.name,
            total=f"{1e3 * total:,.0f} ms" if total else "-",
            percent=100 * total / longest,
            parts=parts_of(of_run, SECTION_LOOKS, smallest=0.005),
        )
        for run, of_run, total in zip(runs, sections, totals, strict=True)
    ]


def _memory_bars(runs: Sequence[RunFolder]) -> list[ComparedBar]:
    peaks = [peaks_of(run) for run in runs]
    largest = max(total for total, _ in peaks)
    if largest <= 0:
        return []
    return [
        ComparedBar(
            name=run.name,
            total=format_bytes(total) if total else "-",
            percent=100 * total / largest,
            parts=parts,
        )
        for run, (total, parts) in zip(runs, peaks, strict=True)
    ]


def _legend(bars: Sequence[ComparedBar]) -> list[Part]:
    """Return one part of each name, in the order in which the bars bring them."""
    return list({part.name: part for bar in bars for part in bar.parts}.values())


def _settings(runs: Sequence[RunFolder]) -> dict[str, list[SettingRow]]:
    groups: dict[str, list[SettingRow]] = {}
    for name, values in differing_settings(runs).items():
        group, _, setting = name.rpartition(".")
        marked = [(clean_text(value), value != values[0]) for value in values]
        groups.setdefault(clean_text(group) or "run", []).append(SettingRow(name=clean_text(setting), values=marked))
    return groups
