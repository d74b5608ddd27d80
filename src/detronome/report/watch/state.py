"""How a run is doing at this moment, from its folder alone. Nothing is written there."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from detronome.report.formats import clean_text
from detronome.report.happenings import Happening
from detronome.report.run_files import PlanFile, VerdictFile, read_run_file
from detronome.report.stacked_bar import Part
from detronome.report.trackers.remembered import FILE_NAME as TRACKERS
from detronome.report.wall_time import time_parts
from detronome.report.watch.history import RunHistory, Series, number
from detronome.report.watch.log_tail import LogTail

__all__ = ["Evaluation", "RunState", "Status", "VerdictOf", "Watcher", "newest_run"]

Status = Literal["waiting", "starting", "running", "silent", "finished", "early_stop", "interrupted"]
"""`waiting`: there is no log yet. `silent`: no word for longer than this run's usual pauses."""

Record = Mapping[str, Any]
VerdictOf = Callable[[Path, Sequence[Record]], VerdictFile | None]
"""Given the run folder, its start record and last step records, says what a step waits for."""

_MOST_EVALUATIONS = 12
_MOST_HAPPENINGS = 30
_MOST_HANGS = 8
_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
_STEP_NUMBERS = (
    "loss", "grad_norm", "images_per_s", "step_s", "data_wait_s", "memory_bytes", "training_s", "skipped_steps",
    "batches_ready",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One row of the table of evaluations."""

    step: int
    epoch: float | None
    metrics: Mapping[str, float | None]
    is_best: bool
    eval_s: float | None


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Everything that a live view shows. Whatever a run has not told yet is empty or None."""

    folder: str
    name: str
    status: Status
    time: float
    """Of the look, in seconds since 1970."""
    silent_s: float | None = None
    """Seconds since the run's last word."""
    preset: str = ""
    step: int = 0
    total_steps: int | None = None
    epoch: float | None = None
    total_epochs: int | None = None
    eta_s: float | None = None
    step_numbers: Mapping[str, float] = field(default_factory=dict)
    """Of the last step record, e.g. `loss`, `images_per_s`."""
    losses: Mapping[str, float] = field(default_factory=dict)
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    step_parts: Sequence[Part] = ()
    """Where the time of a step goes, means over the last records."""
    device_parts: Sequence[Part] = ()
    """The same on the device's clock."""
    data_stages_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds for one image by stage of loading."""
    system: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    """Curves over the epochs: `loss`, `AP`, `images_per_s`, `memory_bytes`, ..."""
    evaluations: Sequence[Evaluation] = ()
    """The last ones, oldest first."""
    best: Evaluation | None = None
    num_evaluations: int = 0
    happenings: Sequence[Happening] = ()
    """The last ones, oldest first."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How often each kind has happened."""
    num_resumes: int = 0
    verdict: VerdictFile | None = None
    planned_bytes: float | None = None
    """What the `memory_bytes` of the steps was planned to be at most; None also on a CPU."""
    device_bytes: float | None = None
    """Memory of the device that was planned for."""
    hangs: Sequence[str] = ()
    """What the hang reports in the folder say, newest first."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Where trackers show the run."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing more to come; an interrupted run may go on."""
        return self.status in ("finished", "early_stop")

    @property
    def data_wait_share(self) -> float | None:
        step_s = self.step_numbers.get("step_s", 0.0)
        return self.step_numbers.get("data_wait_s", 0.0) / step_s if step_s > 0 else None

    def to_record(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
        record = asdict(self)
        record["verdict"] = _verdict_record(self.verdict)
        record["step_parts"] = [_part_record(part) for part in self.step_parts]
        record["device_parts"] = [_part_record(part) for part in self.device_parts]
        record["happenings"] = [{**asdict(one), "sentence": one.sentence, "fix": one.fix} for one in self.happenings]
        record["data_wait_share"] = self.data_wait_share
        return record


class Watcher:
    """Looks at a run again and again; each look reads what was added since.

    Args:
        path: a run folder, or a folder of runs, of which the newest is watched. It need not exist yet.
        verdict_of: the live verdict; without it, or where it has none, `verdict.json` is shown.
        clock: seconds since 1970; given in tests.
    """

    def __init__(
        self, path: Path, *, verdict_of: VerdictOf | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._verdict_of = verdict_of
        self._clock = clock
        self._live_verdict: VerdictFile | None = None
        self._follow(path)

    def look(self) -> RunState:
        """Return how the run is doing now."""
        run_dir = newest_run(self._path) or self._path
        if run_dir != self.run_dir:
            self._follow(run_dir)
        records, is_new = self._tail.read()
        if is_new:
            self._history, self._num_resumes = RunHistory(), 0
        for record in records:
            self._history.add(record)
            self._num_resumes += record["kind"] == "start" and record["step"] > 0
        if records:
            self._live_verdict = self._judge()
        return self._state()

    def _follow(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        """The run that is being watched."""
        self._tail = LogTail(run_dir / "log.jsonl")
        self._history = RunHistory()
        self._num_resumes = 0
        self._live_verdict = None

    def _judge(self) -> VerdictFile | None:
        if self._verdict_of is None or not self._history.recent:
            return None
        return self._verdict_of(self.run_dir, [self._history.start, *self._history.recent])

    def _state(self) -> RunState:
        history, now, run_dir = self._history, self._clock(), self.run_dir
        start, latest = history.start, history.latest
        heard = history.last_heard
        silent_s = None if heard is None else max(0.0, now - heard)
        evaluations = [_evaluation(record) for record in history.evaluations]
        happened = history.happenings
        counts: Counter[str] = Counter()
        for one in happened:
            counts[one.kind] += one.count
        gaps: list[str] = []
        plan = read_run_file(run_dir / "plan.json", PlanFile, gaps)
        return RunState(
            folder=str(run_dir),
            name=clean_text(run_dir.resolve().name),
            status=_status(history, silent_s),
            time=now,
            silent_s=silent_s,
            preset=clean_text(start.get("preset") or ""),
            step=history.step,
            total_steps=_whole(start.get("total_steps")),
            epoch=number(((history.end or latest) or start).get("epoch")),
            total_epochs=_whole(start.get("total_epochs")),
            eta_s=history.eta_s,
            step_numbers={name: value for name in _STEP_NUMBERS if (value := number(latest.get(name))) is not None},
            losses=_numbers(latest.get("losses")),
            learning_rates=_numbers(latest.get("learning_rates")),
            step_parts=time_parts(history.mean("sections_s")),
            device_parts=time_parts(history.mean("device_s")),
            data_stages_s=_clean(history.mean("data_stages_s")),
            system=_clean(history.mean("system")),
            series=history.series(),
            evaluations=evaluations[-_MOST_EVALUATIONS:],
            best=_best(evaluations),
            num_evaluations=len(evaluations),
            happenings=happened[-_MOST_HAPPENINGS:],
            counts=dict(counts),
            num_resumes=self._num_resumes,
            verdict=self._live_verdict or read_run_file(run_dir / "verdict.json", VerdictFile, gaps),
            planned_bytes=plan.tensor_bytes if plan else None,
            device_bytes=plan.device.memory_bytes if plan else None,
            hangs=_hangs(run_dir / "hangs"),
            links=_links(run_dir / TRACKERS),
            environment={clean_text(key): clean_text(value) for key, value in (start.get("environment") or {}).items()},
        )


def newest_run(path: Path) -> Path | None:
    """Return the run that a path names, or the one in this folder that was written to last; None without any."""
    if _is_run(path):
        return path
    try:
        runs = [folder for folder in path.iterdir() if _is_run(folder)]
    except OSError:
        return None
    return max(runs, key=_written_at, default=None)


def _is_run(folder: Path) -> bool:
    return (folder / "config.toml").is_file() or (folder / "log.jsonl").is_file()


def _written_at(folder: Path) -> float:
    return max((_modified(folder / name) for name in ("log.jsonl", "config.toml")), default=0.0)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _status(history: RunHistory, silent_s: float | None) -> Status:
    if history.end is not None:
        reason = history.end.get("reason")
        return reason if reason in ("finished", "early_stop", "interrupted") else "interrupted"
    if not history.start:
        return "waiting"
    if silent_s is not None and silent_s > history.patience_s:
        return "silent"
    return "running" if history.recent else "starting"


def _evaluation(record: Record) -> Evaluation:
    metrics = record.get("metrics") or {}
    return Evaluation(
        step=record["step"],
        epoch=number(record.get("epoch")),
        metrics={name: number(metrics.get(name)) for name in _METRICS},
        is_best=bool(record.get("is_best")),
        eval_s=number(record.get("eval_s")),
    )


def _best(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    marked = [evaluation for evaluation in evaluations if evaluation.is_best]
    if marked:
        return marked[-1]
    return max(evaluations, key=lambda evaluation: evaluation.metrics["AP"] or 0.0, default=None)


def _hangs(folder: Path) -> list[str]:
    reports = sorted(folder.glob("hang-*.json"), key=_modified, reverse=True)[:_MOST_HANGS]
    return [clean_text(told.get("what", "")) for path in reports if (told := _read_object(path))]


def _links(path: Path) -> dict[str, str]:
    """Return the addresses that trackers gave; nothing that a page should not lead to."""
    known = _read_object(path)
    found = {clean_text(name): facts.get("url") for name, facts in known.items() if isinstance(facts, dict)}
    return {
        name: url for name, url in found.items() if isinstance(url, str) and url.startswith(("https://", "http://"))
    }


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _numbers(group: object) -> dict[str, float]:
    if not isinstance(group, Mapping):
        return {}
    return {clean_text(key): value for key, raw in group.items() if (value := number(raw)) is not None}


def _clean(numbers: Mapping[str, float]) -> dict[str, float]:
    return {clean_text(name): value for name, value in numbers.items() if math.isfinite(value)}


def _whole(value: object) -> int | None:
    return int(found) if (found := number(value)) is not None else None


def _verdict_record(verdict: VerdictFile | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    changes = [{**msgspec.to_builtins(change), "assignment": change.assignment} for change in verdict.changes]
    return {**msgspec.to_builtins(verdict), "changes": changes}


def _part_record(part: Part) -> dict[str, Any]:
    return {**asdict(part), "percent": part.percent}
