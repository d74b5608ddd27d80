"""`detronome trim`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detronome.cli.options import DATA_GROUP, MACHINE_GROUP, OUTPUT_GROUP, Json, Settings, parse_settings
from detronome.cli.render import print_json, print_line, print_notice, print_table
from detronome.errors import ConfigError

if TYPE_CHECKING:
    from detronome.api import Trimmed, TrimSweep
    from detronome.deploy.sweep import SweepPoint
    from detronome.deploy.trim import Extent

__all__ = ["trim"]

_SPLIT, _DEVICE = "val", "auto"
"""Where nothing else is asked for."""

Numbers = Annotated[list[int] | None, Parameter(negative=(), consume_multiple=True)]


def trim(
    checkpoint: str,
    data: str | None = None,
    /,
    *,
    decoder_layers: Numbers = None,
    queries: Numbers = None,
    image_size: Numbers = None,
    sweep: Annotated[bool, Parameter(negative=())] = False,
    tolerance: float = 0.01,
    rounds: int = 30,
    fine_tune: int = 0,
    settings: Settings = None,
    out: Annotated[Path | None, OUTPUT_GROUP] = None,
    picture: Annotated[Path | None, OUTPUT_GROUP] = None,
    split: Annotated[str, DATA_GROUP] = _SPLIT,
    device: Annotated[str, MACHINE_GROUP] = _DEVICE,
    json: Json = False,
) -> None:
    """Make a smaller, faster model of a trained one without training; or find out which one is worth having.

    With one number for each, the model is trimmed and written. Given DATA and no numbers, or several numbers, or
    --sweep, all combinations are measured, and the fastest is recommended that loses no more than the tolerance.

    Parameters
    ----------
    checkpoint
        Run or checkpoint folder, or published weights, as for eval.
    data
        Data folder: to measure on, to fine-tune on, and to choose among learned queries (classic DETR).
    decoder_layers
        Decoder layers to keep.
    queries
        Queries to keep.
    image_size
        Short side of images, or side of squares, in pixels.
    sweep
        Measure all combinations of the numbers given; of those not given, some useful ones.
    tolerance
        Accuracy that the recommended model may lose: 0.01 is one point of AP.
    rounds
        Sweep: timed turns of each model, at least six.
    fine_tune
        Epochs of training after trimming, on DATA.
    settings
        Settings of the fine-tuning.
    out
        New folder for the trimmed model, of a sweep for the recommended one; by default runs/PRESET-trimmed, and none
        of a sweep.
    picture
        Sweep: PNG file for accuracy against latency.
    split
        Split of the data folder to measure on.
    device
        auto, cpu, cuda, cuda:N or mps.
    """
    from detronome import api
    from detronome.report.console import ConsoleProgress

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    axes = (decoder_layers or [], queries or [], image_size or [])
    is_sweep = sweep or max(map(len, axes)) > 1 or (data is not None and not any(axes))
    if is_sweep and data is None:
        raise ConfigError(
            "a sweep measures on data", where="detronome trim", fix="detronome trim CHECKPOINT DATA --sweep"
        )
    if picture is not None and not is_sweep:
        raise ConfigError("a single model makes no picture", where="--picture", fix="leave it out, or add --sweep")
    found: TrimSweep | None = None
    with closing(ConsoleProgress()) as progress:
        if is_sweep and data is not None:
            found = api.trim_sweep(
                checkpoint,
                data,
                decoder_layers=axes[0],
                queries=axes[1],
                image_sizes=axes[2],
                split=split,
                tolerance=tolerance,
                rounds=rounds,
                out=out,
                picture=picture,
                fine_tune=fine_tune,
                settings=parse_settings(settings),
                device=device,
                observers=[progress],
                on_progress=lambda what: console.print(Text(what, style="dim")),
            )
            done = found.trimmed
        else:
            done = api.trim(
                checkpoint,
                data,
                decoder_layers=_only(decoder_layers),
                queries=_only(queries),
                image_size=_only(image_size),
                out=out,
                split=split,
                fine_tune=fine_tune,
                settings=parse_settings(settings),
                device=device,
                observers=[progress],
                on_progress=lambda what: console.print(Text(what, style="dim")),
            )
    if json:
        result = found or done
        assert result is not None
        print_json(result.to_json())
        return
    if found is not None:
        _print_sweep(found)
    if done is not None:
        _print_trimmed(done)
    elif found is not None and data is not None and found.recommended is not found.result.whole:
        print_line(f"next  {_command(checkpoint, data, found.recommended.extent, split=split, device=device)}")
    if picture is not None:
        print_line(f"picture  {picture}")


def _only(numbers: list[int] | None) -> int | None:
    return numbers[0] if numbers else None


def _print_sweep(found: TrimSweep) -> None:
    result = found.result
    names = [name for name in ("PQ", "AP", "AP50") if name in result.whole.metrics]
    table = Table(box=None, pad_edge=False)
    for heading in ("layers", "queries", "image px", *names, "ms", "middle half", "speed", "95 %"):
        table.add_column(heading, justify="right")
    table.add_column("")
    front = result.front()
    for point in result.points:
        low, high = point.latency_iqr_s
        table.add_row(
            str(point.extent.decoder_layers),
            str(point.extent.num_queries),
            str(point.extent.image_size),
            *(f"{point.metrics[name]:.3f}" for name in names),
            f"{1e3 * point.latency_s:.1f}",
            f"{1e3 * low:.1f}-{1e3 * high:.1f}",
            f"x {point.speedup.ratio:.2f}",
            f"{point.speedup.low:.2f}-{point.speedup.high:.2f}",
            _mark(point, found, is_on_front=point in front),
        )
    print_table(table)
    within = f"within {found.tolerance:g} {result.metric} of the whole model"
    if found.recommended is result.whole:
        print_line(f"recommended: the model as it is, for nothing {within} is proven to be faster")
    else:
        print_line(f"recommended: {found.recommended.extent}, the fastest {within}")
    machine = found.environment
    threads = "1 thread" if machine["threads"] == "1" else f"{machine['threads']} threads"
    print_line(
        f"measured on {result.num_images} images ({found.split}), times: {machine['device']}, {threads}, one image "
        f"at a time, {len(result.whole.latencies_s)} rounds in turn"
    )
    for note in found.notes:
        print_notice(note)


def _mark(point: SweepPoint, found: TrimSweep, *, is_on_front: bool) -> Text:
    words = "the whole model" if point is found.result.whole else "front" if is_on_front else ""
    if point is found.recommended:
        return Text(f"{words}, recommended", style="bold green")
    return Text(words, style="dim")


def _print_trimmed(done: Trimmed) -> None:
    print_line(f"{done.whole} -> {done.extent}")
    if done.metrics:
        print_line(f"{_change(done.whole_metrics, done.metrics)} ({done.split})")
    if done.run is not None:
        print_line(f"fine-tuned: {_change(done.metrics, done.fine_tuned_metrics)} ({done.split})")
    for note in done.notes:
        print_notice(note)
    print_line(f"{'run' if done.run else 'checkpoint'}  {done.folder}")


def _change(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    names = [name for name in ("PQ", "AP", "AP50") if name in before and name in after]
    return "  ".join(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in names)


def _command(checkpoint: str, data: str, extent: Extent, *, split: str, device: str) -> str:
    command = (
        f"detronome trim {shlex.quote(checkpoint)} {shlex.quote(data)} --decoder-layers {extent.decoder_layers} "
        f"--queries {extent.num_queries} --image-size {extent.image_size}"
    )
    if split != _SPLIT:
        command += f" --split {shlex.quote(split)}"
    if device != _DEVICE:
        command += f" --device {shlex.quote(device)}"
    return command
