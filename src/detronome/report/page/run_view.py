"""One run as the page shows it, part by part; every text is still to be escaped by the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detronome.report.formats import format_duration, format_fixed
from detronome.report.frame import Chart
from detronome.report.happenings import Happening
from detronome.report.page.album import ShownPicture, gallery_of, worst_of
from detronome.report.page.data import DataView, data_of
from detronome.report.page.events import EventsView, events_of
from detronome.report.page.memory import MemoryView, memory_of
from detronome.report.page.quality import QualityView, quality_of
from detronome.report.page.result import Tile, VerdictView, tiles_of, verdict_of
from detronome.report.page.words import STATES, percent, plural
from detronome.report.plots import learning_charts, speed_charts, system_charts
from detronome.report.run_folder import RunFolder, metric
from detronome.report.stacked_bar import Part
from detronome.report.wall_time import time_parts

__all__ = ["RunView", "view_run"]


@dataclass(frozen=True, kw_only=True)
class RunView:
    """All parts; what a run does not know is empty or None."""

    name: str
    preset: str
    state: str
    tone: str
    headline: str
    headline_note: str
    gaps: Sequence[str]
    hints: Sequence[tuple[str, str]]
    """What the page could show besides, and the command that makes it."""
    warnings: Sequence[Happening]
    verdict: VerdictView | None
    tiles: Sequence[Tile]
    learning: Sequence[Chart]
    marks: Sequence[str]
    """Kinds of happenings that the charts mark."""
    speed: Sequence[Chart]
    system: Sequence[Chart]
    time_parts: Sequence[Part]
    wall_time: str
    goodput: str
    memory: MemoryView | None
    events: EventsView
    quality: QualityView
    worst: Sequence[ShownPicture]
    pictures: Sequence[ShownPicture]
    num_pictures: int
    data: DataView | None
    resolved: Mapping[str, str]
    environment: Mapping[str, str]
    config_text: str

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Anchor and name of the parts that there are."""
        quality = self.quality
        has_quality = bool(quality.class_columns or quality.curve_chart or quality.rows or quality.error_bar)
        parts = [
            ("result", "Result", True),
            ("learning", "Learning", bool(self.learning)),
            ("speed", "Speed", bool(self.speed or self.time_parts)),
            ("machine", "Memory", bool(self.memory or self.system)),
            ("events", "Events", bool(self.events.rows)),
            ("quality", "Quality", has_quality),
            ("worst", "Worst images", bool(self.worst)),
            ("pictures", "Pictures", bool(self.pictures)),
            ("data", "Data", self.data is not None),
            ("settings", "Settings", bool(self.resolved or self.environment or self.config_text)),
        ]
        return [(anchor, name) for anchor, name, is_there in parts if is_there]


def view_run(run: RunFolder, *, max_pictures: int) -> RunView:
    """Return what the page shows of a run.

    Args:
        run: the run.
        max_pictures: of the gallery and of the worst images, each.
    """
    best, happened = run.best, run.happenings
    state, tone = STATES.get(run.state, (run.state, "warn"))
    return RunView(
        name=run.name,
        preset=str(run.start.get("preset") or run.config.get("preset") or ""),
        state=state,
        tone=tone,
        headline=format_fixed(metric(best, "AP")),
        headline_note=f"best of {plural(len(run.evaluations), 'evaluation', 'evaluations')}"
        if best
        else "no evaluation yet",
        gaps=run.gaps,
        hints=_hints(run),
        warnings=[one for one in happened if one.kind == "warning"],
        verdict=verdict_of(run.verdict),
        tiles=tiles_of(run),
        learning=learning_charts(run.records),
        marks=[kind for kind in ("skip", "rollback") if any(one.kind == kind for one in happened)],
        speed=speed_charts(run.records),
        system=system_charts(run.records),
        time_parts=time_parts(run.seconds),
        wall_time=format_duration(sum(run.seconds.values())),
        goodput=percent(run.goodput),
        memory=memory_of(run),
        events=events_of(happened),
        quality=quality_of(run),
        worst=worst_of(run, max_pictures),
        pictures=gallery_of(run, max_pictures),
        num_pictures=len(run.pictures),
        data=data_of(run.data),
        resolved={str(key): str(value) for key, value in (run.start.get("resolved") or {}).items()},
        environment={str(key): str(value) for key, value in (run.start.get("environment") or {}).items()},
        config_text=run.config_text,
    )


def _hints(run: RunFolder) -> list[tuple[str, str]]:
    """Return what a run that was evaluated lacks because an older version made it, with the command that adds it."""
    if not run.evaluations:
        return []
    eval_command = "detronome eval RUN DATA --details RUN/evaluation.json"
    parts = [
        (run.verdict, "what a step waits for", "detronome profile RUN"),
        (run.details, "confusion matrix, precision over recall, worst images", eval_command),
        (run.data, "label statistics", "detronome data stats DATA"),
    ]
    return [(what, command) for part, what, command in parts if part is None]
