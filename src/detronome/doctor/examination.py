"""The examination: probes in child processes side by side, then the judgements."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from threading import Event

from detronome.doctor.calls import judge_calls
from detronome.doctor.child import Answer, Batch, run_batch
from detronome.doctor.findings import Examination, Finding, Severity
from detronome.doctor.install import Installer
from detronome.doctor.machine import judge_gpu, judge_machine, judge_speed
from detronome.doctor.packages import Inventory, judge_packages, judge_python

__all__ = ["GROUPS", "examine_environment"]

GROUPS = ("packages", "calls", "machine", "GPU", "speed")

_LIMIT_S = 120.0
"""Of one child process. A sound machine needs a few seconds; a busy one with cold disks may take a minute for torch."""
_METADATA = Batch(probes=("installed.python", "installed.packages"), limit_s=30)
_SIDE_BY_SIDE = (
    Batch(
        probes=tuple(
            f"torch_calls.{name}"
            for name in ("import_torch", "numpy_round_trip", "ranks", "worker_tensor", "nms", "devices")
        ),
        limit_s=_LIMIT_S,
        is_first_needed=True,
        environment={"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
    ),
    Batch(
        probes=tuple(
            f"compiled.{name}"
            for name in (
                "simplejpeg",
                "pillow",
                "scipy",
                "safetensors",
                "hotcoco",
                "core_imports",
                "coco_api",
                "opencv",
                "onnx",
                "onnxruntime",
            )
        ),
        limit_s=_LIMIT_S,
    ),
    Batch(
        probes=(
            "machine.processors",
            "machine.memory",
            "machine.shared_memory",
            "machine.open_files",
            "machine.compiler",
            "machine.start_methods",
            "gpu.driver",
        ),
        limit_s=60,
    ),
    Batch(probes=("machine.disks",), limit_s=30),
)
_ALONE = Batch(probes=("speed.decoding", "speed.matrices"), limit_s=20)
"""After the others, whose work would take part of the processors."""


def examine_environment(on_stage: Callable[[str], None] = lambda stage: None) -> Examination:
    """Examine the Python that runs, the packages that it finds, and this machine.

    Nothing that could be broken is imported here. Takes a few seconds; what hangs is ended after two minutes.

    Args:
        on_stage: is told what is being done.
    """
    begin = time.monotonic()
    on_stage("calling the packages")
    answers: dict[str, Answer] = {}
    stop = Event()
    with ThreadPoolExecutor(max_workers=1 + len(_SIDE_BY_SIDE)) as pool:
        try:
            for told in pool.map(lambda batch: run_batch(batch, stop=stop), (_METADATA, *_SIDE_BY_SIDE)):
                answers |= told
        except BaseException:
            stop.set()  # Ctrl-C: the pool waits for its threads, and they for their children
            raise
    on_stage("measuring the speed")
    answers |= run_batch(_ALONE)
    findings = _judge(answers)
    python = answers["installed.python"].facts
    return Examination(
        version=_own_version(),
        python=sys.version.split()[0],
        executable=sys.executable,
        platform=python.get("platform", sys.platform),
        findings=findings,
        seconds=time.monotonic() - begin,
    )


def _judge(answers: dict[str, Answer]) -> list[Finding]:
    unread = [answers[probe] for probe in _METADATA.probes if not answers[probe].is_answered]
    if unread:
        return [
            Finding(
                group="packages",
                check="python",
                severity=Severity.FAILURE,
                what="this Python cannot tell what is installed",
                cause="it is damaged, or its folders cannot be read",
                fix="uv venv --python 3.12 && uv pip install detronome",
                evidence=unread[0].last_line,
            )
        ]
    inventory = Inventory(
        python=answers["installed.python"].facts,
        packages=answers["installed.packages"].facts,
        installer=Installer.of_this_environment(),
    )
    packages = [*judge_python(inventory), *judge_packages(inventory)]
    usable = int(answers["machine.processors"].facts.get("usable", 1))
    judged: tuple[Iterable[Finding], ...] = (
        packages,
        judge_calls(answers, inventory, packages),
        judge_machine(answers),
        judge_gpu(answers, inventory.installer),
        judge_speed(answers, usable),
    )
    return [replace(finding, group=group) for group, found in zip(GROUPS, judged, strict=True) for finding in found]


def _own_version() -> str:
    try:
        return version("detronome")
    except PackageNotFoundError:
        return "from source"
