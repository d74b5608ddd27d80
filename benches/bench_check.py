"""Checking annotations of COCO train2017's size: the data doctor, beside hotcoco's health check and a bare `json.load`.

The file is synthetic, of COCO train2017's shape (see `synthetic_coco`), sound, with polygons. All of it is checked:
structure, references, ids, boxes, areas, repetitions, every polygon against its box and image, run-length codes,
categories; hotcoco's check looks at less. `json.load` checks nothing: it is what a checker in plain Python begins with.
Peak memory is that of a fresh process that does the one thing.

    python benches/bench_check.py --threads 1 --out benches/results
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from hotcoco import COCO

from detronome.data.check.annotations import check_annotations
from harness import arguments, compare, report
from synthetic_coco import write_synthetic_coco


def main() -> None:
    """Time the three, measure their memory, report."""
    parser = arguments(__doc__, repeats=3, warmup=0)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_001)
    parser.add_argument(
        "--measure", nargs=2, metavar=("WHAT", "FILE"), help="print one contender's peak memory and end"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        what, file = options.measure
        CONTENDERS[what](Path(file))
        # Not getrusage: its peak is that of the parent before this program was executed, where that was higher.
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        assert peak is not None
        print(1024 * int(peak[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "instances_train.json"
        write_synthetic_coco(file, options.images, options.annotations)
        checked = check_annotations(file)
        assert {finding.severity for finding in checked.findings} <= {"note"}, "the synthetic file is not sound"
        peaks = {what: peak_bytes(what, file) for what in CONTENDERS}
        samples = compare(
            {what: lambda run=run: run(file) for what, run in CONTENDERS.items()},
            repeats=options.repeats,
            warmup=options.warmup,
        )
        report(
            "check",
            {f"{options.images:,} images, {options.annotations:,} annotations": samples},
            baseline="json.load",
            settings={
                "images": options.images,
                "annotations": options.annotations,
                "json_bytes": file.stat().st_size,
                "peak_bytes_with_torch_imported": peaks,
            },
            out=options.out,
        )


def ours(file: Path) -> None:
    """Check everything."""
    check_annotations(file)


def hotcoco_health(file: Path) -> None:
    """Load and check with hotcoco."""
    with contextlib.redirect_stdout(io.StringIO()):
        COCO(str(file)).healthcheck()


def plain_json(file: Path) -> None:
    """Parse only."""
    with file.open("rb") as content:
        json.load(content)


CONTENDERS: dict[str, Callable[[Path], None]] = {
    "json.load": plain_json,
    "hotcoco healthcheck": hotcoco_health,
    "detronome": ours,
}


def peak_bytes(what: str, file: Path) -> int:
    """Return the peak memory of a fresh process that runs one contender, its imports included."""
    command = [sys.executable, __file__, "--measure", what, str(file)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
