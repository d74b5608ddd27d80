"""The result: key numbers, and the verdict on what a step waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detronome.report.formats import (
    clean_text,
    format_bytes,
    format_count,
    format_duration,
    format_fixed,
    format_significant,
)
from detronome.report.page.words import percent
from detronome.report.run_files import ProvingNumber, VerdictFile
from detronome.report.run_folder import RunFolder, metric

__all__ = ["METRICS", "PANOPTIC_METRICS", "Tile", "VerdictView", "tiles_of", "verdict_of"]

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
PANOPTIC_METRICS = ("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff")
"""Shown where they were measured."""

_TONES = {"DATA": 1, "HOST": 3, "DEVICE": 2, "MEMORY": 5, "NETWORK": 4, "BALANCED": 0}
"""Series colours of the verdicts: DATA has that of waiting for data."""
_MEANINGS = {
    "DATA": "waits for data",
    "HOST": "waits for the host",
    "DEVICE": "limited by arithmetic",
    "MEMORY": "limited by memory",
    "NETWORK": "waits for other ranks",
    "BALANCED": "nothing stands out",
}
_SOURCES = {"log": "from the run's own log", "profile": "measured by detronome profile"}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One key number."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class VerdictView:
    """The verdict as the page shows it."""

    word: str
    meaning: str
    sentence: str
    color: int
    gain: str
    """How much faster at best; empty where it is not known."""
    proof: Sequence[tuple[str, str]]
    """What was measured, and the number with its unit."""
    changes: Sequence[tuple[str, str]]
    """Setting with its value, why."""
    source: str


def verdict_of(verdict: VerdictFile | None) -> VerdictView | None:
    """Return the verdict in words; None where there is none."""
    if verdict is None:
        return None
    gain = verdict.best_gain
    return VerdictView(
        word=clean_text(verdict.verdict),
        meaning=_MEANINGS.get(verdict.verdict, ""),
        sentence=clean_text(verdict.sentence),
        color=_TONES.get(verdict.verdict, 7),
        gain=f"{format_significant(gain)}×" if gain is not None and gain > 1.005 else "",
        proof=[(clean_text(number.what), _measured(number)) for number in verdict.proof],
        changes=[(change.assignment, clean_text(change.why)) for change in verdict.changes],
        source=_SOURCES.get(verdict.source, ""),
    )


def tiles_of(run: RunFolder) -> list[Tile]:
    """Return the key numbers of a run, those it does not know left out."""
    best, start = run.best, run.start
    at = f"step {best['step']:,}" if best else ""
    tiles = [
        Tile(name=name.replace("_", " "), value=format_fixed(metric(best, name)), note=at if name == "AP" else "")
        for name in (*METRICS, *(name for name in PANOPTIC_METRICS if metric(best, name) is not None))
        if best
    ]
    wall_s = (run.end or {}).get("wall_s")
    last_step = max((record["step"] for record in run.records), default=0)
    total_steps = start.get("total_steps")
    tiles += [
        Tile(
            name="training time",
            value=format_duration(run.training_s),
            note=f"{format_duration(wall_s)} in all" if wall_s else "",
        ),
        Tile(name="steps", value=f"{last_step:,}", note=f"of {total_steps:,}" if total_steps else ""),
        Tile(name="images/s", value=format_significant(run.images_per_s), note="median"),
        Tile(name="data wait", value=percent(run.data_wait_share), note="of the step time"),
        Tile(name="peak memory", value=format_bytes(run.peak_memory_bytes)),
        Tile(
            name="parameters",
            value=format_count(start.get("num_parameters")),
            note=f"{format_count(start.get('num_trainable_parameters'))} trainable" if start else "",
        ),
        Tile(
            name="train images",
            value=format_count(start.get("num_train_images")),
            note=f"{format_count(start.get('num_val_images'))} validation" if start else "",
        ),
        Tile(name="batch", value=format_count(start.get("global_batch_size")), note="images a step"),
        Tile(name="skipped steps", value=f"{run.num_skipped:,}"),
    ]
    tiles.append(Tile(name="goodput", value=percent(run.goodput), note="of the wall time"))
    if run.num_resumes:
        tiles.append(Tile(name="resumed", value=f"{run.num_resumes}×"))
    return [tile for tile in tiles if tile.value != "-" or tile.name in METRICS]


def _measured(number: ProvingNumber) -> str:
    if isinstance(number.value, str) or number.value is None:
        return f"{clean_text(number.value or '-')} {clean_text(number.unit)}".strip()
    unit = clean_text(number.unit)
    if unit in ("B", "bytes"):
        return format_bytes(number.value)
    text = format_significant(number.value)
    return f"{text}{unit}" if unit in ("%", "×") else f"{text} {unit}".strip()
