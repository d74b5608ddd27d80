"""How soon the command line answers what needs no computing: help, the version, an error, what Tab asks for.

Each is a process of its own, as a user starts it, timed from start to end and in turn with the others; no program on
this interpreter is faster than `python -c pass`. Processor time is the process's own: a busy machine hardly changes it.

    python benches/bench_startup.py --out benches/results
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import Any

from harness import arguments, new_document, publish

BUDGET_S = 0.5
PROGRAM = [sys.executable, "-m", "detronome"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "--help": [*PROGRAM, "--help"],
    "--version": [*PROGRAM, "--version"],
    "train --help": [*PROGRAM, "train", "--help"],
    "data check --help": [*PROGRAM, "data", "check", "--help"],
    "doctor --help": [*PROGRAM, "doctor", "--help"],
    "doctor --explain": [*PROGRAM, "doctor", "--explain", "Bus error"],
    "an unknown command": [*PROGRAM, "trian"],
    "Tab after --model": [*PROGRAM, "__complete", "train", "--model", ""],
    "completion bash": [*PROGRAM, "completion", "bash"],
}


def main() -> None:
    """Time the processes, and print a line for each."""
    options = arguments(__doc__, repeats=10).parse_args()
    document = new_document("startup", {"budget_s": BUDGET_S, "repeats": options.repeats})
    samples: dict[str, dict[str, list[float]]] = {name: {"wall_s": [], "cpu_s": []} for name in COMMANDS}
    for repeat in range(-options.warmup, options.repeats):
        for name, command in COMMANDS.items():
            wall_s, cpu_s = timed(command)
            if repeat >= 0:
                samples[name]["wall_s"].append(wall_s)
                samples[name]["cpu_s"].append(cpu_s)
    machine = document["machine"]
    print(f"startup | {machine['cpu']}, load {machine['load_before']:.1f} | Python {machine['python']}")
    print(f"\n{'':24}{'wall ms':>10}{'slowest':>10}{'cpu ms':>10}{'in 0.5 s':>10}")
    for name, found in samples.items():
        row: dict[str, Any] = {key: statistics.median(values) for key, values in found.items()}
        document["cases"][name] = {**row, "samples": found}
        is_soon = "yes" if row["wall_s"] <= BUDGET_S else "no"
        slowest = 1e3 * max(found["wall_s"])
        print(f"{name:24}{1e3 * row['wall_s']:10.0f}{slowest:10.0f}{1e3 * row['cpu_s']:10.0f}{is_soon:>10}")
    publish(document, options.out)


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command to its end; return seconds by the clock and of the processor."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
    return wall_s, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
