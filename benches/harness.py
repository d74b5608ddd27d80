"""Times competing implementations in one process, in turn, and says on what machine.

A shared machine's speed drifts by tens of percent within minutes, so absolute times of separate runs cannot be
compared. Here every repeat runs each contender once, starting with another one each time, and the ratio is taken
within the repeat: drift hits both sides. Reported are medians with the interquartile range, of wall and of process CPU
time, and the ratio to the baseline with a 95 % interval (bootstrap of the median). The last line of stdout is one JSON
document.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["arguments", "compare", "new_document", "publish", "report"]

Samples = dict[str, list[float]]


def arguments(description: str | None, *, repeats: int, warmup: int = 1) -> argparse.ArgumentParser:
    """Return a parser with the options that every bench has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed runs of each contender")
    parser.add_argument("--warmup", type=int, default=warmup, help="runs of each contender that are not counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--out", type=Path, help="file or folder for the JSON document")
    return parser


def compare(contenders: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int) -> dict[str, Samples]:
    """Run the contenders in turn; return each one's wall and CPU seconds, one entry a repeat."""
    names = list(contenders)
    samples: dict[str, Samples] = {name: {"wall_s": [], "cpu_s": []} for name in names}
    gc.collect()
    gc.disable()
    try:
        for repeat in range(-warmup, repeats):
            first = repeat % len(names)
            for name in names[first:] + names[:first]:
                wall, cpu = time.perf_counter(), time.process_time()
                contenders[name]()
                _synchronize()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                if repeat >= 0:
                    samples[name]["wall_s"].append(wall)
                    samples[name]["cpu_s"].append(cpu)
    finally:
        gc.enable()
    return samples


def report(
    bench: str,
    cases: Mapping[str, dict[str, Samples]],
    *,
    baseline: str,
    settings: Mapping[str, Any],
    out: Path | None = None,
) -> None:
    """Print a table for people, then the JSON document; write the latter to `out` too."""
    document = new_document(bench, settings)
    print(f"{bench} | {document['machine']['cpu']}, {torch.get_num_threads()} threads | torch {torch.__version__}")
    for case, samples in cases.items():
        rows = {name: _summary(values, samples[baseline]) for name, values in samples.items()}
        document["cases"][case] = rows
        print(f"\n{case}\n{'':24}{'wall ms':>10}{'IQR':>18}{'cpu ms':>10}{'x ' + baseline:>16}{'95 %':>16}{'cpu x':>8}")
        for name, row in rows.items():
            low, high = (1e3 * value for value in row["wall_iqr_s"])
            print(
                f"{name:24}{1e3 * row['wall_s']:10.2f}{f'{low:.2f} - {high:.2f}':>18}{1e3 * row['cpu_s']:10.2f}"
                f"{row['speedup_wall']:16.2f}{'{:.2f} - {:.2f}'.format(*row['speedup_wall_95']):>16}"
                f"{row['speedup_cpu']:8.2f}"
            )
    publish(document, out)


def new_document(bench: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document without cases: what was run, when, where and how."""
    return {
        "bench": bench,
        "command": " ".join(["python", *(_without_folder(argument) for argument in sys.argv)]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "settings": dict(settings),
        "cases": {},
    }


def publish(document: Mapping[str, Any], out: Path | None) -> None:
    """Write the document to `out`, if given, and print it as the last line."""
    line = json.dumps(document)
    if out is not None:
        path = out / _file_name(document) if out.is_dir() else out
        path.write_text(line + "\n")
    print()
    print(line)


def _summary(own: Samples, baseline: Samples) -> dict[str, Any]:
    ratios = [b / a for a, b in zip(own["wall_s"], baseline["wall_s"], strict=True)]
    return {
        "wall_s": statistics.median(own["wall_s"]),
        "wall_iqr_s": _interval(own["wall_s"], 0.25, 0.75),
        "cpu_s": statistics.median(own["cpu_s"]),
        "speedup_wall": statistics.median(ratios),
        "speedup_wall_95": _bootstrap(ratios),
        "speedup_cpu": statistics.median(b / a for a, b in zip(own["cpu_s"], baseline["cpu_s"], strict=True)),
        "samples": own,
    }


def _interval(values: Sequence[float], low: float, high: float) -> list[float]:
    ordered = sorted(values)
    return [ordered[round(q * (len(ordered) - 1))] for q in (low, high)]


def _bootstrap(ratios: Sequence[float], draws: int = 2000) -> list[float]:
    rng = random.Random(0)
    medians = [statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws)]
    return _interval(medians, 0.025, 0.975)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0],
    }


def _cpu_name() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", info, flags=re.MULTILINE))
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields['cpu family']} model {fields['model']})" if "cpu family" in fields else name


def _without_folder(argument: str) -> str:
    """Where data lie on one machine is nobody's business."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _file_name(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    hardware = re.sub(r"[^a-z0-9]+", "-", (machine["gpu"] or machine["cpu"]).lower()).strip("-")
    return f"{document['bench']}_{hardware}-{machine['threads']}t_{document['date'][:10]}.json"
