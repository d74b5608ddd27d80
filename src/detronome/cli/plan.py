"""`detronome plan`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detronome.cli.options import MACHINE_GROUP, MODEL_GROUP, Json, Model, Settings, parse_settings
from detronome.cli.render import print_json, print_notice
from detronome.report.terminal import speaks_unicode

if TYPE_CHECKING:
    from detronome.api import Plan
    from detronome.tempo.batch_fit import FittedCut
    from detronome.tempo.cost import RunTime
    from detronome.tempo.memory.account import MemoryAccount

__all__ = ["plan"]

_GIB = 2**30
_WIDEST = 110
_FIXED_COLUMNS = 50
"""Of the memory table, beside its bars."""
_LEAST_SHOWN = 0.001
"""Of the memory at the peak; causes below are added up."""


def plan(
    data: str,
    /,
    *,
    model: Model = "detr-r50",
    gpu: Annotated[str | None, MACHINE_GROUP] = None,
    gpus: Annotated[int, MACHINE_GROUP] = 1,
    price: Annotated[float | None, MACHINE_GROUP] = None,
    config: Annotated[Path | None, MODEL_GROUP] = None,
    settings: Settings = None,
    json: Json = False,
) -> int:
    """Predict memory, time and price of a run, and fit its batches to a GPU; no GPU is needed.

    Parameters
    ----------
    data
        Data folder or address, as for train.
    model
        A preset (see `detronome models`), or a run or checkpoint to fine-tune.
    gpu
        A GPU's name (h200, "RTX 4090", a100-80), its memory (24GiB), or cpu for this machine; by default what is here.
    gpus
        How many of them share each effective batch.
    price
        Of one GPU for an hour, in any currency.
    config
        TOML file with settings, on top of the preset.
    """
    from detronome import api

    found = api.plan(
        data, model=model, gpu=gpu, gpus=gpus, price=price, config=config, settings=parse_settings(settings)
    )
    if json:
        print_json(found.to_record())
    else:
        _print(found, _train_command(data, model, config, settings, found))
    return 0 if found.fits else 1


def _print(plan: Plan, command: str) -> None:
    console = Console(highlight=False)
    console.print(_headline(plan), soft_wrap=True)
    console.print()
    console.print(_memory(plan, min(console.width, _WIDEST)))
    if plan.time is not None:
        console.print()
        console.print(_time(plan, plan.time))
    console.print()
    console.print(_alternatives([plan.choice, *plan.alternatives]))
    console.print()
    if plan.fits:
        console.print(Text("train so", style="bold"))
        console.print(Text(f"  {command}", style="cyan"), soft_wrap=True)
    else:
        console.print(Text("what would fit", style="bold"))
        for way in plan.would_fit:
            console.print(Text(f"  {way}"), soft_wrap=True)
    for note in plan.notes:
        print_notice(f"note: {note}")


def _headline(plan: Plan) -> Text:
    needed = max(account.peak_bytes for account in (plan.training, plan.evaluation) if account is not None)
    devices = plan.device.name if plan.gpus == 1 else f"{plan.gpus} x {plan.device.name}"
    verdict = (
        Text(" fits ", style="bold reverse green") if plan.fits else Text(" does not fit ", style="bold reverse red")
    )
    cut = plan.choice.cut
    passes = "" if cut.accumulation == 1 else f" in {cut.accumulation} passes"
    share = f"{cut.micro_batch_size} images at once{passes}" if cut.micro_batch_size > 1 else f"1 image at once{passes}"
    return Text.assemble(
        (f"{plan.preset} on {devices}", "bold"),
        "  ",
        verdict,
        f"  {_gib(needed)} of {_gib(plan.budget_bytes)} GiB, {share}, {cut.precision}",
    )


def _memory(plan: Plan, width: int) -> Table:
    accounts = [account for account in (plan.training, plan.evaluation) if account is not None]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("memory, GiB", no_wrap=True)
    for account in accounts:
        table.add_column(account.phase, justify="right", no_wrap=True)
    table.add_column(Text(""))  # the reserve takes several lines in a narrow terminal
    most = max(account.peak_bytes for account in accounts)
    room = max(10, width - _FIXED_COLUMNS)
    shown, rest = _causes(accounts, most)
    for name, held in shown:
        bar = _bar(held[0] / most, room) if held[0] else ""
        table.add_row(name, *(_cell(value) for value in held), Text(bar, style="cyan"))
    if any(rest):
        table.add_row(Text("other", style="dim"), *(_cell(value) for value in rest))
    style = "bold" if plan.fits else "bold red"
    table.add_row(Text("at the peak", style="bold"), *(Text(_gib(one.peak_bytes), style=style) for one in accounts))
    table.add_row("it may take", *(_gib(plan.budget_bytes) for _ in accounts), Text(_reserve(plan), style="dim"))
    for label, cells in (
        ("images", [f"{one.num_images} x {one.shape}" for one in accounts]),
        ("objects", [f"{one.num_objects:,}" for one in accounts]),
        ("moment", [one.moment for one in accounts]),
    ):
        table.add_row(Text(label, style="dim"), *(Text(cell, style="dim") for cell in cells))
    return table


def _causes(accounts: Sequence[MemoryAccount], most: int) -> tuple[list[tuple[str, list[int]]], list[int]]:
    """Return (causes with what each account holds for them, what the small ones hold together)."""
    causes = dict.fromkeys(cause for account in accounts for cause in account.bytes_by_cause)
    ordered = [cause for cause in type(next(iter(causes))) if cause in causes] if causes else []
    shown, rest = [], [0] * len(accounts)
    for cause in ordered:
        held = [account.bytes_by_cause.get(cause, 0) for account in accounts]
        if max(held) < _LEAST_SHOWN * most:
            rest = [a + b for a, b in zip(rest, held, strict=True)]
        else:
            shown.append((str(cause), held))
    return shown, rest


def _time(plan: Plan, time: RunTime) -> Table:

    factor = time.within_factor
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("time", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column(Text(f"right within a factor of {factor:g}", style="dim not bold"))
    parts = sorted(time.sections_s.items(), key=lambda item: -item[1])
    share = ", ".join(f"{name} {100 * seconds / time.device_s:.0f} %" for name, seconds in parts[:4] if seconds)
    table.add_row("step, model", _seconds(time.device_s), Text(share, style="dim"))
    if time.data_s is not None:
        needed = time.workers_needed
        keeps = f"{needed} loader process{'es' if needed != 1 else ''} as fast as those here would keep up"
        table.add_row(
            "step, data", _seconds(time.data_s), Text(keeps, style="yellow" if time.waits_for == "data" else "dim")
        )
    table.add_row("epoch", _duration(time.epoch_s))
    if time.evaluation_s:
        table.add_row("evaluation", _duration(time.evaluation_s))
    low, high = (_duration(time.total_s * f) for f in (1 / factor, factor))
    table.add_row(
        Text(f"{plan.epochs} epochs", style="bold"),
        Text(_duration(time.total_s), style="bold"),
        Text(f"{low} to {high}", style="dim"),
    )
    if plan.price is not None:
        table.add_row(
            Text("price", style="bold"),
            Text(f"{plan.price:,.2f}", style="bold"),
            Text(f"{plan.price / factor:,.2f} to {plan.price * factor:,.2f}", style="dim"),
        )
    return table


def _alternatives(ways: Sequence[FittedCut]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("precision", no_wrap=True)
    table.add_column("recomputed", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
    table.add_column("speed", justify="right", no_wrap=True)
    table.add_column("")
    first = ways[0]
    for way in ways:
        cut = way.cut
        speed = f"{first.step_s / way.step_s:.2f}x" if first.step_s and way.step_s else "-"
        style = "bold green" if way is first and way.fits else "" if way.fits else "red" if way is first else "dim"
        cells = [
            f"{cut.accumulation} x {cut.micro_batch_size}",
            cut.precision,
            cut.checkpointing,
            _gib(way.peak_bytes),
            _gib(way.headroom_bytes),
            speed,
            way.reason,
        ]
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return table


def _train_command(data: str, model: str, config: Path | None, settings: Sequence[str] | None, plan: Plan) -> str:
    chosen = [f"{key}={value}" for key, value in plan.settings.items()]
    asked = [text for text in settings or () if text.partition("=")[0] not in plan.settings]
    launcher = "detronome" if plan.gpus == 1 else f"torchrun --nproc-per-node={plan.gpus} -m detronome"
    options = ["--config", str(config)] if config is not None else []
    return f"{launcher} {shlex.join(['train', data, '--model', model, *options, '--set', *asked, *chosen])}"


def _reserve(plan: Plan) -> str:
    device = plan.device
    taken = f", {_gib(device.taken_bytes)} held by others" if device.taken_bytes else ""
    return f"of {_gib(device.memory_bytes)}: a reserve stays{taken}"


def _bar(part: float, width: int) -> str:
    full = "━" if speaks_unicode(sys.stdout) else "#"
    return full * max(1, round(part * width))


def _cell(value: int) -> Text:
    return Text(_gib(value) if value else "-", style="" if value else "dim")


def _gib(value: int) -> str:
    gib = value / _GIB
    return f"{gib:.1f}" if abs(gib) >= 10 else f"{gib:.2f}" if abs(gib) >= 0.1 else f"{gib:.3f}"


def _duration(seconds: float) -> str:
    from detronome.report.formats import format_duration

    return format_duration(seconds) if seconds >= 60 else _seconds(seconds)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms" if value >= 0.01 else f"{1000 * value:.1f} ms"
