"""How far the planned memory of training steps and evaluation batches is from what they really take.

Each case runs in a process of its own: the run's step is built, two updates are made with images of noise, and one
batch is detected. Two instruments that know nothing of the plan measure it. `allocator`: torch's profiler records every
allocation and release of torch's CPU allocator, kernels' workspaces included; the plan is compared with their running
sum. `resident`: by how much the process's resident memory grew at most, which adds what the C library keeps, the
libraries' own buffers and their code. On a GPU, `torch.cuda.max_memory_allocated` (the plan without context and slack)
and `max_memory_reserved` (the plan without context) take their places.

Memory does not depend on how busy a machine is, nor on the number of its processors.

    python benches/bench_memory_plan.py --out benches/results
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from detronome.config.presets import preset
from detronome.config.schema import DetrConfig, RunConfig
from detronome.tempo.memory.account import Cause, MemoryAccount
from detronome.tempo.memory.planner import MemoryPlanner
from harness import new_document, publish

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "unit" / "tempo" / "memory"))

from measured import (
    allocated_peak_bytes,
    annotated_split,
    evaluation_run,
    gpu_peak_bytes,
    resident_peak_bytes,
    training_run,
)

_MIB = 2**20
_OBJECTS = 20
_CLASSES = 80


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run."""

    model: str
    micro_batch_size: int
    size_hw: tuple[int, int]
    precision: str = "fp32"
    checkpointing: str = "none"
    accumulation: int = 1

    def __str__(self) -> str:
        height, width = self.size_hw
        cut = f"{self.micro_batch_size}x{self.accumulation}"
        return f"{self.model} {cut} {height}x{width} {self.precision} {self.checkpointing}"


CASES = [
    Case(model="nano", micro_batch_size=8, size_hw=(192, 256)),
    Case(model="nano", micro_batch_size=16, size_hw=(192, 256), precision="bf16"),
    Case(model="nano", micro_batch_size=4, size_hw=(192, 256), accumulation=2),
    Case(model="nano", micro_batch_size=8, size_hw=(192, 256), checkpointing="all"),
    Case(model="detr-r18", micro_batch_size=2, size_hw=(320, 320), accumulation=2),
    Case(model="detr-r18", micro_batch_size=4, size_hw=(320, 416)),
    Case(model="detr-r18", micro_batch_size=4, size_hw=(320, 416), precision="bf16"),
    Case(model="detr-r18", micro_batch_size=4, size_hw=(320, 416), checkpointing="backbone"),
    Case(model="detr-r18", micro_batch_size=4, size_hw=(320, 416), checkpointing="transformer"),
    Case(model="detr-r18", micro_batch_size=4, size_hw=(320, 416), checkpointing="all"),
    Case(model="detr-r18-dc5", micro_batch_size=1, size_hw=(320, 416)),
    Case(model="detr-r50", micro_batch_size=2, size_hw=(480, 640)),
    Case(model="detr-r50", micro_batch_size=2, size_hw=(480, 640), precision="bf16"),
    Case(model="detr-r50", micro_batch_size=2, size_hw=(480, 640), checkpointing="all"),
    Case(model="detr-r50", micro_batch_size=1, size_hw=(800, 1088)),
]


def main() -> None:
    """Measure every case, print a table, then the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file or folder for the JSON document")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one case as JSON, in a process of its own
    options = parser.parse_args()
    if options.measure:
        fields = json.loads(options.measure)
        print(json.dumps(measure(Case(**fields | {"size_hw": tuple(fields["size_hw"])}))))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    columns = ("allocated", "reserved") if device == "cuda" else ("allocator", "resident")
    print(f"{'MiB':50}{'planned':>10}{columns[0]:>11}{'error':>8}{columns[1]:>11}{'error':>8}  at       plan s")
    rows: dict[str, dict[str, Any]] = {}
    for case in CASES:
        if options.only in str(case):
            for phase, row in _in_own_process(case).items():
                rows[f"{case} {phase}"] = row
                print(_line(f"{case} {phase}", row), flush=True)
    worst = max(rows, key=lambda name: abs(rows[name]["error"]))
    print(f"\nworst error: {rows[worst]['error']:+.1%} ({worst})\n")
    _write(options.out, rows, worst)


def measure(case: Case) -> dict[str, dict[str, Any]]:
    """Return what was planned and measured, by phase."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DETRONOME_CACHE"] = f"{folder}/cache"
        config = _config(case)
        num_images = config.batch.global_batch_size
        split = annotated_split(
            Path(folder), size_hw=case.size_hw, objects=[_OBJECTS] * num_images, num_classes=_CLASSES
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        train = training_run(config, split, case.size_hw, device)
        evaluate = evaluation_run(config, split, case.size_hw, case.micro_batch_size, device)
        planner = MemoryPlanner(config, split, split, device_type="cuda" if device.type == "cuda" else "cpu")
        began = time.perf_counter()
        training = planner.training(case.micro_batch_size)
        plan_s = time.perf_counter() - began
        evaluation = planner.evaluation(case.micro_batch_size)
        assert evaluation is not None
        if device.type == "cuda":
            rows = {"training": _gpu_row(training, *gpu_peak_bytes(train))}
            rows["evaluation"] = _gpu_row(evaluation, *gpu_peak_bytes(evaluate))
        else:
            resident = resident_peak_bytes(train)  # first, while the process has kept nothing of a run before
            rows = {"training": _row(training, training.peak_bytes, allocated_peak_bytes(train), resident)}
            measured = allocated_peak_bytes(evaluate, since_mark=True)
            rows["evaluation"] = _row(evaluation, evaluation.peak_bytes, measured, None)
        rows["training"]["plan_s"] = plan_s
        return rows


def _config(case: Case) -> RunConfig:
    config = preset(case.model)
    height, width = case.size_hw
    if isinstance(config.model, DetrConfig):
        model: Any = replace(config.model, backbone_weights="none")
    else:
        model = replace(config.model, num_queries=2 * _OBJECTS)
    return replace(
        config,
        model=model,
        augment=replace(
            config.augment,
            sizes=(height,),
            max_size=width,
            crop="none",
            eval_size=height,
            eval_max_size=width,
        ),
        data=replace(config.data, buckets=(f"{height}x{width}",)),
        batch=replace(
            config.batch,
            micro_batch_size=case.micro_batch_size,
            global_batch_size=case.micro_batch_size * case.accumulation,
        ),
        train=replace(
            config.train,
            epochs=3,
            eval_epochs=1,
            precision=case.precision,  # type: ignore[arg-type]
            checkpoint_activations=case.checkpointing,  # type: ignore[arg-type]
        ),
    )


def _gpu_row(account: MemoryAccount, allocated: int, reserved: int) -> dict[str, Any]:
    held = dict(account.bytes_by_cause)
    without_context = account.peak_bytes - held.get(Cause.CONTEXT, 0)
    row = _row(account, without_context - held.get(Cause.SLACK, 0), allocated, reserved)
    return row | {"second_error": without_context / reserved - 1}


def _row(account: MemoryAccount, planned: int, measured: int, second: int | None) -> dict[str, Any]:
    return {
        "planned_bytes": planned,
        "measured_bytes": measured,
        "error": planned / measured - 1,
        "second_bytes": second,
        "second_error": None if second is None else planned / second - 1,
        "moment": account.moment,
        "bytes_by_cause": account.to_record()["bytes_by_cause"],
    }


def _in_own_process(case: Case) -> dict[str, dict[str, Any]]:
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{case} failed:\n{done.stderr[-4000:]}")
    rows: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def _line(name: str, row: dict[str, Any]) -> str:
    second = "" if row["second_bytes"] is None else f"{row['second_bytes'] / _MIB:11.1f}{row['second_error']:+8.1%}"
    plan = f"{row['plan_s']:.2f}" if "plan_s" in row else ""
    return (
        f"{name:50}{row['planned_bytes'] / _MIB:10.1f}{row['measured_bytes'] / _MIB:11.1f}{row['error']:+8.1%}"
        f"{second:19}  {row['moment']:8} {plan}"
    )


def _write(out: Path | None, rows: dict[str, dict[str, Any]], worst: str) -> None:
    for row in rows.values():
        row.pop("plan_s", None)  # a time, which says nothing on a busy machine
    document = new_document("memory_plan", {"objects_per_image": _OBJECTS, "classes": _CLASSES})
    publish(document | {"cases": rows, "worst_error": rows[worst]["error"]}, out)


if __name__ == "__main__":
    main()
