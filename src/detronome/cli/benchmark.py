"""`detronome benchmark`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detronome.cli.options import DATA_GROUP, MACHINE_GROUP, OUTPUT_GROUP, Json
from detronome.cli.render import print_json, print_line, print_notice, print_table
from detronome.errors import ConfigError
from detronome.report.formats import format_fixed, format_significant

if TYPE_CHECKING:
    from detronome.api import Benchmark
    from detronome.deploy.benchmark.records import BatchRecord, FormRecord

__all__ = ["benchmark"]

_MIB = 2**20
_SHAPES_SHOWN = 4
_BUSY = 0.8


def benchmark(
    model: str,
    data: str,
    /,
    *,
    split: Annotated[str, DATA_GROUP] = "val",
    forms: Annotated[str | None, Parameter(help="Names with commas between them; by default all that can run.")] = None,
    also: Annotated[list[str] | None, Parameter(negative=(), consume_multiple=True)] = None,
    batch_sizes: str = "1,4",
    threads: Annotated[int | None, MACHINE_GROUP] = None,
    images: Annotated[int, DATA_GROUP] = 200,
    seconds: float = 5.0,
    image_size: Annotated[int | None, DATA_GROUP] = None,
    device: Annotated[str, MACHINE_GROUP] = "auto",
    out: Annotated[Path, OUTPUT_GROUP] = Path("benchmark"),
    json: Json = False,
) -> int:
    """Measure a detector in every form that this machine can run, each in turn with the others.

    Time is measured on the data's own images, from files to detections and for the network alone; each form has a
    process of its own. A form whose package is missing is left out, one that fails is told, and the others go on.

    Parameters
    ----------
    model
        Run or checkpoint folder, published weights, or an exported file (.onnx, .xml, .pt2, .engine).
    data
        Data folder.
    split
        Split of the data folder.
    also
        Exported files, runs or checkpoints to measure beside them, e.g. of a trimmed model.
    batch_sizes
        Images of a call, with commas between them.
    threads
        That a form may use; by default as many as there are processors.
    images
        Of the split, on which AP is measured; 0 measures none.
    seconds
        About how long a form is measured at one batch size.
    image_size
        Short side in pixels, instead of the model's own.
    device
        auto, cpu, cuda, cuda:N or mps.
    out
        Folder for results.json, pictures and exported files, which are not made a second time.
    """
    from detronome import api

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    found = api.benchmark(
        model,
        data,
        split=split,
        forms=[name.strip() for name in forms.split(",")] if forms is not None else None,
        also=also or (),
        batch_sizes=_whole_numbers(batch_sizes),
        threads=threads,
        images=images,
        seconds=seconds,
        image_size=image_size,
        device=device,
        out=out,
        on_begin=lambda what: console.print(Text(what, style="dim")),
    )
    print_json(found.to_json()) if json else _print(found)
    return _exit_code(found)


def _exit_code(found: Benchmark) -> int:
    """Return 1 if nothing could be measured."""
    return 0 if any(form.batches or form.metrics is not None for form in found.forms) else 1


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{text!r} is no list of numbers", where="--batch-sizes", fix="give e.g. 1,4,8") from error


def _print(found: Benchmark) -> None:
    environment = found.environment
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    print_line(f"{found.model} on {found.data} ({found.split})")
    print_line(f"{environment['device']}, {threads}, {_versions(environment)}")
    print_line(f"images enter the network as {_shapes(found.shapes_hw)}")
    print_table(_table(found))
    _print_legend(found)
    share = found.share_of_processor
    if share is not None and share < _BUSY:
        print_notice(
            f"other programs took {1 - share:.0%} of the processor while the network ran: milliseconds say little, "
            "ratios more, and those by processor time most"
        )
    for one in found.left_out:
        print_notice(f"left out: {one.form}: {one.why}{f' ({one.fix})' if one.fix else ''}")
    for form in found.forms:
        if form.failure:
            print_notice(f"failed: {form.form}: {form.failure}{f' ({form.fix})' if form.fix else ''}")
    print_line(f"results  {found.folder / 'results.json'}")
    if any(form.batches for form in found.forms):
        print_line(f"picture  {found.folder / 'benchmark.png'}")


def _table(found: Benchmark) -> Table:
    first = found.forms[0]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("form", no_wrap=True)
    for heading in ("batch", "network", f"x {first.form}"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("95 %", no_wrap=True)
    if found.is_on_cpu:
        table.add_column("x cpu", justify="right", no_wrap=True)
    for heading in ("p50", "p95", "p99", "images/s", "MiB", "AP", "loses", "apart"):
        table.add_column(heading, justify="right", no_wrap=True)
    best = found.recommended
    for form in found.forms:
        style = "bold green" if form is best else ""
        for n, batch in enumerate(form.batches):
            name = Text(form.form if n == 0 else "", style=style)
            table.add_row(name, *_times(batch, is_on_cpu=found.is_on_cpu), *(_quality(form, first) if n == 0 else ()))
        if not form.batches:
            table.add_row(Text(form.form, style="red"), "", Text("failed", style="red"))
    return table


def _times(batch: BatchRecord, *, is_on_cpu: bool) -> list[str]:
    speedup, by_cpu, whole = batch.network_speedup, batch.network_cpu_speedup, batch.whole
    return [
        str(batch.batch_size),
        format_significant(batch.network.p50_ms),
        f"{speedup.ratio:.2f}" if speedup else "",
        f"{speedup.low:.2f}-{speedup.high:.2f}" if speedup else "",
        *([f"{by_cpu.ratio:.2f}" if by_cpu else ""] if is_on_cpu else []),
        *(format_significant(value) for value in (whole.p50_ms, whole.p95_ms, whole.p99_ms)),
        format_significant(batch.images_per_s),
        f"{batch.peak_bytes / _MIB:,.0f}",
    ]


def _quality(form: FormRecord, first: FormRecord) -> list[str]:
    apart = f"{form.difference.largest_score:.1g}" if form.difference else ""
    if form.metrics is None:
        return ["-", "", apart]
    lost = math.nan if form is first or first.metrics is None else first.metrics["AP"] - form.metrics["AP"]
    # + 0.0: no minus before zero
    return [format_fixed(form.metrics["AP"]), f"{round(lost, 4) + 0.0:+.4f}" if math.isfinite(lost) else "", apart]


def _print_legend(found: Benchmark) -> None:
    console = Console(highlight=False, soft_wrap=True)
    on_images = f"AP on {found.num_images} images; " if found.num_images else ""
    compared = next((form.difference.num_images for form in found.forms if form.difference), 0)
    apart = f"apart: largest difference of a score on {compared} images; " if compared else ""
    by_cpu = "x cpu: by processor time; " if found.is_on_cpu else ""
    legend = (
        f"network: pixels to boxes, median ms of a batch; {by_cpu}p50, p95, p99: ms from files to detections; "
        f"MiB: peak while it runs; {on_images}{apart}a dash: too few calls to tell, or not measured"
    )
    console.print()
    console.print(Text(legend, style="dim"))
    best = found.recommended
    if best is not None:
        console.print(
            Text("recommended  ")
            + Text(best.form, style="bold green")
            + Text("  the fastest that loses at most 0.01 AP", style="dim")
        )


def _versions(environment: Mapping[str, str]) -> str:
    names = ("torch", "onnxruntime", "openvino", "tensorrt")
    return ", ".join(f"{name} {environment[name]}" for name in names if name in environment)


def _shapes(shapes_hw: Sequence[tuple[int, int]]) -> str:
    shown = ", ".join(f"{height}x{width}" for height, width in shapes_hw[:_SHAPES_SHOWN])
    more = len(shapes_hw) - _SHAPES_SHOWN
    return shown + (f" and {more} other shapes" if more > 0 else "")
