"""The report: one HTML page about one run, or several compared, that needs nothing but a browser."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from detronome.report.frame import Chart
from detronome.report.formats import (
    clean_text,
    format_bytes,
    format_count,
    format_duration,
    format_fixed,
    format_significant,
)
from detronome.report.happenings import Happening
from detronome.report.plots import compare_charts, learning_charts, speed_charts, system_charts
from detronome.report.run_folder import Picture, RunFolder, differing_settings, metric, read_run_folders
from detronome.report.svg import FALLBACK_COLORS
from detronome.report.stacked_bar import Part
from detronome.report.wall_time import time_parts
from detronome.runtime.files import write_atomic
from detronome.runtime.progress import goodput

__all__ = ["write_report"]

_MAX_PICTURES = 24
_MAX_ROWS_OF_A_KIND = 20
_MAX_PICTURE_WIDTH_PX = 1440
_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
_ROWS_PER_COLUMN = 14
_KINDS = {
    "skip": ("skipped step", "skipped steps"),
    "rollback": ("rollback", "rollbacks"),
    "split": ("memory split", "memory splits"),
    "checkpoint_failed": ("failed checkpoint", "failed checkpoints"),
    "bad_image": ("bad image", "bad images"),
    "warning": ("warning", "warnings"),
}
"""What happens to a run, one and several, in the order of the summary."""
_STATES = {
    "finished": ("finished", "good"),
    "early_stop": ("stopped early", "good"),
    "interrupted": ("interrupted", "warn"),
    "not ended": ("not ended", "warn"),
}


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """One key number."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class _EventRow:
    """One row of what happened."""

    kind: str
    label: str
    steps: str
    what: str
    where: str
    action: str


@dataclass(frozen=True, kw_only=True)
class _RunView:
    """One run as the page shows it; every text is still to be escaped by the template."""

    name: str
    preset: str
    state: str
    tone: str
    headline: str
    headline_note: str
    gaps: Sequence[str]
    tiles: Sequence[_Tile]
    charts: Sequence[Chart]
    class_columns: Sequence[Sequence[tuple[str, str, float]]]
    pictures: Sequence[tuple[str, str]]
    num_pictures: int
    resolved: Mapping[str, str]
    warnings: Sequence[Happening]
    events: Sequence[_EventRow]
    event_counts: Sequence[tuple[str, str]]
    has_hidden_events: bool
    marks: Sequence[str]
    time_parts: Sequence[Part]
    wall_time: str
    goodput: str
    config_text: str
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """Several runs side by side; `rows` hold the name, one value a run, and the index of the best or None."""

    names: Sequence[str]
    results: Sequence[tuple[str, Sequence[str], int | None]]
    settings: Mapping[str, Sequence[str]]
    charts: Sequence[Chart]


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write one self-contained HTML page about these runs and return its path.

    With several runs the page starts with what differs between them. Whatever a run lacks (it has not ended, was
    never evaluated, has no pictures) is said on the page.

    Args:
        run_dirs: run folders, at least one.
        out: the file to write; a folder that exists gets `report.html`.

    Raises:
        DataError: a folder is no run, or its log is damaged.
    """
    assert run_dirs, "a report needs a run"
    if out.is_dir():
        out = out / "report.html"
    runs = read_run_folders(run_dirs)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = _trusted_svg
    environment.filters["duration"] = format_duration
    page = environment.get_template("template.html.j2").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        runs=[_view(run) for run in runs],
        comparison=_compare(runs) if len(runs) > 1 else None,
        num_series=len(FALLBACK_COLORS),
        max_rows=_MAX_ROWS_OF_A_KIND,
    )
    write_atomic(out, page)
    return out


def _trusted_svg(chart: Chart) -> Markup:
    return Markup(chart.svg)


def _view(run: RunFolder) -> _RunView:
    best, happened = run.best, run.happenings
    rows = _event_rows(happened)
    state, tone = _STATES.get(run.state, (run.state, "warn"))
    ap = metric(best, "AP")
    return _RunView(
        name=run.name,
        preset=str(run.start.get("preset") or run.config.get("preset") or ""),
        state=state,
        tone=tone,
        headline=format_fixed(ap),
        headline_note=f"best of {_plural(len(run.evaluations), 'evaluation', 'evaluations')}"
        if best
        else "no evaluation yet",
        gaps=run.gaps,
        tiles=_tiles(run),
        charts=[*learning_charts(run.records), *speed_charts(run.records), *system_charts(run.records)],
        class_columns=_class_columns(best),
        pictures=[(_data_uri(picture), picture.caption) for picture in run.pictures[:_MAX_PICTURES]],
        num_pictures=len(run.pictures),
        resolved={str(key): str(value) for key, value in (run.start.get("resolved") or {}).items()},
        warnings=[one for one in happened if one.kind == "warning"],
        events=rows,
        event_counts=_event_counts(happened),
        has_hidden_events=len(rows) < len(happened),
        marks=[kind for kind in ("skip", "rollback") if any(one.kind == kind for one in happened)],
        time_parts=time_parts(run.seconds),
        wall_time=format_duration(sum(run.seconds.values())),
        goodput=_percent(goodput(run.seconds)),
        config_text=run.config_text,
        environment={str(key): str(value) for key, value in (run.start.get("environment") or {}).items()},
    )


def _tiles(run: RunFolder) -> list[_Tile]:
    best, start = run.best, run.start
    tiles = [_Tile(name=name.replace("_", " "), value=format_fixed(metric(best, name))) for name in _METRICS if best]
    if best:
        tiles.append(
            _Tile(name="best step", value=f"{best['step']:,}", note=f"epoch {format_significant(best.get('epoch'))}")
        )
    wall_s = (run.end or {}).get("wall_s")
    last_step = max((record["step"] for record in run.records), default=0)
    total_steps = start.get("total_steps")
    tiles += [
        _Tile(
            name="training time",
            value=format_duration(run.training_s),
            note=f"{format_duration(wall_s)} in all" if wall_s else "",
        ),
        _Tile(name="steps", value=f"{last_step:,}", note=f"of {total_steps:,}" if total_steps else ""),
        _Tile(name="images/s", value=format_significant(run.images_per_s), note="median"),
        _Tile(name="data wait", value=_percent(run.data_wait_share), note="of the step time"),
        _Tile(name="peak memory", value=format_bytes(run.peak_memory_bytes)),
        _Tile(
            name="parameters",
            value=format_count(start.get("num_parameters")),
            note=f"{format_count(start.get('num_trainable_parameters'))} trainable" if start else "",
        ),
        _Tile(
            name="train images",
            value=format_count(start.get("num_train_images")),
            note=f"{format_count(start.get('num_val_images'))} validation" if start else "",
        ),
        _Tile(name="batch", value=format_count(start.get("global_batch_size")), note="images a step"),
        _Tile(name="skipped steps", value=f"{run.num_skipped:,}"),
    ]
    if run.seconds:
        tiles.append(_Tile(name="goodput", value=_percent(goodput(run.seconds)), note="of the wall time"))
    if run.num_resumes:
        tiles.append(_Tile(name="resumed", value=f"{run.num_resumes}×"))
    return [tile for tile in tiles if tile.value != "-" or tile.name in _METRICS]


def _compare(runs: Sequence[RunFolder]) -> _Comparison:
    rows: list[tuple[str, Sequence[str], int | None]] = []
    for name in _METRICS:
        values = [metric(run.best, name) for run in runs]
        if any(value is not None for value in values):
            texts = [format_fixed(value) for value in values]
            winner = max(range(len(runs)), key=lambda i: -1.0 if values[i] is None else values[i] or 0.0)
            rows.append((name.replace("_", " "), texts, None if texts.count(texts[winner]) > 1 else winner))
    rows += [
        ("state", [_STATES.get(run.state, (run.state, ""))[0] for run in runs], None),
        ("best step", [f"{run.best['step']:,}" if run.best else "-" for run in runs], None),
        ("training time", [format_duration(run.training_s) for run in runs], None),
        ("images/s", [format_significant(run.images_per_s) for run in runs], None),
        ("data wait", [_percent(run.data_wait_share) for run in runs], None),
        ("peak memory", [format_bytes(run.peak_memory_bytes) for run in runs], None),
        ("goodput", [_percent(goodput(run.seconds)) if run.seconds else "-" for run in runs], None),
        ("parameters", [format_count(run.start.get("num_parameters")) for run in runs], None),
        ("skipped steps", [str(run.num_skipped) for run in runs], None),
    ]
    return _Comparison(
        names=[run.name for run in runs],
        results=rows,
        settings=differing_settings(runs),
        charts=compare_charts({run.name: run.records for run in runs}),
    )


def _event_rows(happened: Sequence[Happening]) -> list[_EventRow]:
    """Return the table of what happened, in the order of the log; of each kind the last ones."""
    rows: list[_EventRow] = []
    shown: Counter[str] = Counter()
    for one in reversed(happened):
        shown[one.kind] += 1
        if shown[one.kind] > _MAX_ROWS_OF_A_KIND:
            continue
        steps = f"{one.step:,}" if one.count == 1 else f"{one.step:,}-{one.last_step:,}"
        label = _KINDS[one.kind][0] if one.count == 1 else f"{one.count:,} {_KINDS[one.kind][1]}"
        where = one.where if one.count == 1 else ", ".join(filter(None, (one.where, "told of the first of them")))
        rows.append(_EventRow(kind=one.kind, label=label, steps=steps, what=one.what, where=where, action=one.action))
    return rows[::-1]


def _event_counts(happened: Sequence[Happening]) -> list[tuple[str, str]]:
    """Return each kind that occurred, and how often, in words."""
    counts: Counter[str] = Counter()
    for one in happened:
        counts[one.kind] += one.count
    return [(kind, _plural(counts[kind], *names)) for kind, names in _KINDS.items() if counts[kind]]


def _class_columns(best: Mapping[str, Any] | None) -> list[list[tuple[str, str, float]]]:
    """Return (class, AP as text, AP in percent for the bar), best class first, in up to three columns."""
    per_class = (best or {}).get("per_class_ap") or {}
    rows = [
        (clean_text(name), format_fixed(ap), 100 * min(max(ap, 0.0), 1.0) if isinstance(ap, (int, float)) else 0.0)
        for name, ap in per_class.items()
    ]
    rows.sort(key=lambda row: (row[1] == "-", -row[2], row[0]))
    columns = min(3, -(-len(rows) // _ROWS_PER_COLUMN))
    height = -(-len(rows) // columns) if columns else 0
    return [rows[start : start + height] for start in range(0, len(rows), height)] if height else []


def _data_uri(picture: Picture) -> str:
    """Return the picture as a data URI, made smaller where it is larger than a page shows; empty if unreadable."""
    try:
        content = picture.path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            kind = "png" if image.format == "PNG" else "jpeg"
            if image.width > _MAX_PICTURE_WIDTH_PX:
                height = round(image.height * _MAX_PICTURE_WIDTH_PX / image.width)
                small = image.convert("RGB").resize((_MAX_PICTURE_WIDTH_PX, max(1, height)), Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                small.save(buffer, "JPEG", quality=86)
                content, kind = buffer.getvalue(), "jpeg"
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _plural(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"
