"""`detronome profile`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from detronome.cli.options import MODEL_GROUP, OUTPUT_GROUP, Json, Model, Settings, parse_settings
from detronome.cli.render import print_json, print_notice
from detronome.report.terminal import speaks_unicode

if TYPE_CHECKING:
    from detronome.api import Profile
    from detronome.tempo.remedies import Change

__all__ = ["profile"]

_WIDEST = 100
_FIXED_COLUMNS = 36
"""Of a line with a bar, beside it."""
_COLORS = {"DATA": "yellow", "HOST": "yellow", "MEMORY": "red", "NETWORK": "yellow", "DEVICE": "green"}
_NAMES = {
    "run": "the run",
    "loader": "loader alone",
    "device": "device alone",
    "copy": "copies alone",
    "network": "network alone",
}
_LEAST_SHOWN = 0.005
"""Of a step; sections below are added up."""


def profile(
    data_or_run: str,
    /,
    *,
    model: Model = "detr-r50",
    steps: int | None = None,
    config: Annotated[Path | None, MODEL_GROUP] = None,
    settings: Settings = None,
    trace: Annotated[Path | None, OUTPUT_GROUP] = None,
    memory_snapshot: Annotated[Path | None, OUTPUT_GROUP] = None,
    json: Json = False,
) -> None:
    """Say what a training step waits for, with the numbers that prove it, and what to change.

    Measures the run as it is, and the loader, the device, copies and the network alone. Nothing is trained that stays,
    and a run's folder is only read. Under torchrun all ranks take part.

    Parameters
    ----------
    data_or_run
        Data folder or address, as for train; or a run, whose configuration is taken.
    model
        A preset (see `detronome models`), or a run or checkpoint; a run brings its own.
    steps
        Steps to measure; by default as many as take some seconds.
    config
        TOML file with settings, on top of the preset.
    trace
        File for a profiler's trace of two steps: JSON for Perfetto or chrome://tracing.
    memory_snapshot
        File for the allocations of two steps, for pytorch.org/memory_viz; needs a CUDA device.
    """
    from detronome import api

    found = api.profile(
        data_or_run,
        model=model,
        steps=steps,
        settings=parse_settings(settings),
        config=config,
        trace=trace,
        memory_snapshot=memory_snapshot,
    )
    if not found.is_main:
        return
    print_json(found.to_json()) if json else _print(found)
    for what, path in (("trace", trace), ("memory snapshot", memory_snapshot)):
        if path is not None:
            print_notice(f"{what} written to {path}")


def _print(found: Profile) -> None:
    console = Console(highlight=False)
    width = min(console.width, _WIDEST)
    console = Console(highlight=False, width=width)
    verdict = found.verdict
    name = str(verdict.bottleneck)
    headline = Text(name, style=f"bold {_COLORS.get(name, 'green')}")
    if verdict.best_gain is not None:
        if_solved = "on a faster device" if name == "DEVICE" else "without it"
        headline += Text(f"  at best {_times(verdict.best_gain)} as fast {if_solved}", style="dim")
    console.print(headline)
    console.print(Text(verdict.sentence))
    console.print()
    _print_ceilings(console, found)
    console.print()
    _print_sections(console, found)
    if verdict.changes:
        console.print()
        console.print(Text("changes to try, the most promising first", style="bold"))
        for change in verdict.changes:
            _print_change(console, change)
    console.print()
    console.print(Text(f"detronome tune tries those that leave the recipe alone; {_where(found)}", style="dim"))


def _print_ceilings(console: Console, found: Profile) -> None:
    rates = {name: rate for name, rate in found.to_json()["images_per_s"].items() if name in _NAMES}
    largest = max([*rates.values(), 1e-9])
    table = _table("images/s", bold="ceilings")
    for name, rate in rates.items():
        style = "bold" if name == "run" else ""
        table.add_row(Text(_NAMES[name], style=style), f"{rate:,.1f}", "", _bar(console, rate / largest, "cyan"))
    console.print(table)


def _print_sections(console: Console, found: Profile) -> None:
    run = found.measured.run[0]
    step_s = sum(run.sections_s.values()) or 1.0
    table = _table("ms", bold="a step")
    longest = max([*run.sections_s.values(), 1e-9])
    other = 0.0
    for section, seconds in run.sections_s.items():
        if seconds / step_s < _LEAST_SHOWN:
            other += seconds
            continue
        bar = _bar(console, seconds / longest, "yellow" if section in ("data_wait", "agree") else "cyan")
        table.add_row(section.replace("_", " "), f"{1e3 * seconds:,.1f}", f"{seconds / step_s:.0%}", bar)
    table.add_row("other", f"{1e3 * other:,.1f}", f"{other / step_s:.0%}", "")
    console.print(table)
    if run.data_stages_s:
        stages = "  ".join(f"{stage} {1e3 * s:.3g}" for stage, s in run.data_stages_s.items())
        console.print(Text(f"an image, ms in the loader: {stages}", style="dim"))


def _table(unit: str, *, bold: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(Text(bold, style="bold"), min_width=14, no_wrap=True)
    table.add_column(unit, justify="right", min_width=9, no_wrap=True)
    table.add_column("", justify="right", min_width=4, no_wrap=True)
    table.add_column("", no_wrap=True)
    return table


def _bar(console: Console, part: float, style: str) -> Text:
    room = max(8, console.width - _FIXED_COLUMNS)
    return Text(("━" if speaks_unicode(sys.stdout) else "#") * max(1, round(room * part)), style=style)


def _print_change(console: Console, change: Change) -> None:
    gain = f"  up to {_times(change.best_gain)}" if change.best_gain is not None else ""
    value = str(change.value).lower() if isinstance(change.value, bool) else str(change.value)
    is_setting = "." in change.setting or change.setting.isupper()
    line = Text(f"  {change.setting}{'=' if is_setting else ': '}{value}", style="cyan") + Text(gain, style="bold")
    console.print(line)
    console.print(Padding(Text(change.why, style="dim"), (0, 0, 0, 4)))


def _where(found: Profile) -> str:
    environment = found.environment
    ranks = f", {len(found.measured.run)} ranks" if len(found.measured.run) > 1 else ""
    threads = f"{environment['threads']} thread" + ("" if environment["threads"] == "1" else "s")
    return f"measured on {environment['device']}, {threads}, torch {environment['torch']}{ranks}"


def _times(gain: float) -> str:
    return f"{gain:.0f}x" if gain >= 10 else f"{gain:.1f}x"
