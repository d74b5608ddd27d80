"""A run folder read back: configuration, log and pictures, with the questions that reports ask of them."""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from detronome.errors import DataError, Problem
from detronome.report.happenings import Happening, happenings
from detronome.report.run_files import DataFile, EvaluationFile, PlanFile, VerdictFile, read_run_file
from detronome.report.run_log import read_run_log

__all__ = ["Picture", "RunFolder", "differing_settings", "metric", "read_pictures", "read_run_folders"]

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of the run: truth beside prediction."""

    path: Path
    caption: str


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What a run folder holds. Every part may be missing; `gaps` says what is, in sentences."""

    path: Path
    name: str
    config: Mapping[str, Any]
    config_text: str
    records: Sequence[Record]
    pictures: Sequence[Picture]
    gaps: Sequence[str] = field(default=())
    plan: PlanFile | None = None
    verdict: VerdictFile | None = None
    details: EvaluationFile | None = None
    """Of the evaluation of the best checkpoint."""
    data: DataFile | None = None

    @property
    def start(self) -> Record:
        """The latest `start` record, or an empty one."""
        return next((record for record in reversed(self.records) if record["kind"] == "start"), {})

    @property
    def end(self) -> Record | None:
        return next((record for record in reversed(self.records) if record["kind"] == "end"), None)

    @property
    def steps(self) -> list[Record]:
        return [record for record in self.records if record["kind"] == "step"]

    @property
    def skips(self) -> list[Record]:
        return [record for record in self.records if record["kind"] == "skip"]

    @property
    def happenings(self) -> list[Happening]:
        """All that happened besides training, in the order of the log."""
        return happenings(self.records)

    @property
    def seconds(self) -> Mapping[str, float]:
        """Wall time by section; empty before the run has ended, and in logs of earlier versions."""
        seconds = (self.end or {}).get("seconds") or {}
        return {name: float(s) for name, s in seconds.items() if isinstance(s, (int, float))}

    @property
    def goodput(self) -> float | None:
        """Part of the wall time spent on steps that count, 0-1, as the run said at its end."""
        value = (self.end or {}).get("goodput")
        return float(value) if self.seconds and isinstance(value, (int, float)) else None

    @property
    def num_resumes(self) -> int:
        return sum(record["kind"] == "start" and record.get("step", 0) > 0 for record in self.records)

    @property
    def evaluations(self) -> list[Record]:
        """One record per evaluated step: a resume from a checkpoint that was just evaluated does so again."""
        by_step = {record.get("step"): record for record in self.records if record["kind"] == "eval"}
        return list(by_step.values())

    @property
    def best(self) -> Record | None:
        """The evaluation that the run called its best, or the one with the highest AP."""
        evaluations = self.evaluations
        marked = [record for record in evaluations if record.get("is_best")]
        if marked:
            return marked[-1]
        return max(evaluations, key=lambda record: _or(metric(record, "AP"), -1.0), default=None)

    @property
    def state(self) -> str:
        """`finished`, `early_stop` or `interrupted` as the run said, else `not ended`."""
        return "not ended" if self.end is None else str(self.end.get("reason", "ended"))

    @property
    def training_s(self) -> float | None:
        values = [r["training_s"] for r in self.records if r.get("training_s") is not None]
        return float(values[-1]) if values else None

    @property
    def images_per_s(self) -> float | None:
        """Median over the log records, so that a warm-up or a pause does not count."""
        return _median(self.steps, "images_per_s")

    @property
    def data_wait_share(self) -> float | None:
        """Part of the step time spent waiting for data, 0-1; the first record (workers starting) left out."""
        steps = self.steps[1:] or self.steps
        pairs = [(r.get("data_wait_s"), r.get("step_s")) for r in steps]
        total = sum(step_s for wait_s, step_s in pairs if wait_s is not None and step_s is not None)
        waited = sum(wait_s for wait_s, step_s in pairs if wait_s is not None and step_s is not None)
        return waited / total if total > 0 else None

    @property
    def peak_memory_bytes(self) -> int | None:
        return max((r["memory_bytes"] for r in self.steps if r.get("memory_bytes") is not None), default=None)

    @property
    def sections_s(self) -> Mapping[str, float]:
        """Mean seconds of a step by section; the first record (workers starting) left out. Empty in older logs."""
        known = [r["sections_s"] for r in self.steps if r.get("sections_s")]
        known = known[1:] or known
        names = dict.fromkeys(name for sections in known for name in sections)
        return {name: sum(_or(sections.get(name), 0.0) for sections in known) / len(known) for name in names}

    @property
    def num_skipped(self) -> int:
        return max([int(r["skipped_steps"]) for r in self.steps if r.get("skipped_steps")] + [len(self.skips)])


def metric(record: Record | None, name: str) -> float | None:
    """Return a metric of an evaluation record, or None where it has none."""
    value = ((record or {}).get("metrics") or {}).get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def read_run_folders(paths: Sequence[Path]) -> list[RunFolder]:
    """Read run folders, each named by the shortest part of its path that sets it apart from the others.

    Raises:
        DataError: a folder holds neither `config.toml` nor `log.jsonl` (all such folders at once), or a log is
            damaged.
    """
    problems = [
        Problem(
            what="this folder is no run: it holds neither config.toml nor log.jsonl"
            if path.is_dir()
            else "there is no such folder",
            where=str(path),
            fix="give the folder that 'detronome train' made",
        )
        for path in paths
        if not (path / "config.toml").is_file() and not (path / "log.jsonl").is_file()
    ]
    if problems:
        raise DataError(problems)
    return [_read(path, name) for path, name in zip(paths, _short_names(paths), strict=True)]


def differing_settings(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    """Return the settings that are not the same in all runs: dotted name to one value a run, in the file's order."""
    flat = [dict(_flatten(run.config)) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = {name: [settings.get(name, "-") for settings in flat] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _read(path: Path, name: str) -> RunFolder:
    gaps: list[str] = []
    config_text, config = _read_config(path / "config.toml", gaps)
    if (path / "log.jsonl").is_file():
        records = [record for record in read_run_log(path / "log.jsonl") if isinstance(record.get("step"), int)]
    else:
        records = []
        gaps.append("There is no log (log.jsonl): the run has not started, or the file was removed.")
    pictures = read_pictures(path / "pictures")
    run = RunFolder(
        path=path,
        name=name,
        config=config,
        config_text=config_text,
        records=records,
        pictures=pictures,
        plan=read_run_file(path / "plan.json", PlanFile, gaps),
        verdict=read_run_file(path / "verdict.json", VerdictFile, gaps),
        details=read_run_file(path / "evaluation.json", EvaluationFile, gaps),
        data=read_run_file(path / "data.json", DataFile, gaps),
    )
    if records and run.end is None:
        last = records[-1]
        gaps.append(f"The run has not ended: its last record is of step {last['step']}, {_minute(last.get('time'))}.")
    if records and not run.evaluations:
        gaps.append("There is no evaluation yet, so there is no AP.")
    if not pictures:
        gaps.append("There are no pictures: they are drawn when a run ends.")
    return replace(run, gaps=gaps)


def _read_config(path: Path, gaps: list[str]) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        gaps.append("The configuration (config.toml) is missing or cannot be read.")
        return "", {}
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        gaps.append(f"The configuration (config.toml) is shown as it is, for it is no valid TOML: {error}.")
        return text, {}


def read_pictures(folder: Path) -> list[Picture]:
    """Return the pictures that exist, in the order of `index.json`, or by name where there is no index."""
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    try:
        entries = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        pictures = [_indexed(folder, entry) for entry in entries if isinstance(entry, dict)]
    except (OSError, ValueError, TypeError):
        pictures = [Picture(path=path, caption=path.stem) for path in files]
    return [picture for picture in pictures if picture.path in files]


def _indexed(folder: Path, entry: Mapping[str, Any]) -> Picture:
    # Only the name counts: an index must not pull a file from elsewhere into a page that is passed on.
    name = Path(str(entry.get("file", ""))).name
    image_id = entry.get("image_id")
    parts = [str(entry.get("caption") or ""), "" if image_id is None else f"image {image_id}"]
    return Picture(path=folder / name, caption=" · ".join(part for part in parts if part) or name)


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as many as it takes to tell the paths apart."""
    parts = [path.resolve().parts for path in paths]
    deepest = max((len(p) for p in parts), default=1)
    for count in range(1, deepest + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(p[-1:])} ({number})" for number, p in enumerate(parts, start=1)]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _minute(time: object) -> str:
    """Return an ISO time as `2026-01-31 12:05 UTC`, to the minute."""
    try:
        return f"{datetime.fromisoformat(str(time)).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return "at an unknown time"


def _median(records: Sequence[Record], name: str) -> float | None:
    values = [record[name] for record in records if record.get(name) is not None]
    return statistics.median(values) if values else None


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
